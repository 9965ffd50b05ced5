"""Reading foreign state dicts safely, and loading them without a key left over."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file

from dr2pipe.core.errors import CheckpointError

# Where training code puts the weights inside a file; averaged weights come first.
_WRAPPERS = ("params_ema", "g_ema", "params", "state_dict")
# Tensors of the network that stand beside its wrapped weights.
_BESIDE = ("latent_avg",)
_MOST_KEYS_LISTED = 8

Network = TypeVar("Network", bound=torch.nn.Module)


def read_state_dict(
    source: str | Path | Mapping[str, Any], *, prefer: str | None = None
) -> dict[str, torch.Tensor]:
    """Tensors by name from a file or mapping, wrappers and ``module.`` prefixes removed.

    ``prefer`` names the wrapper to take where a file holds several networks.

    ``.pth``, ``.pt``, ``.ckpt`` and ``.pkl`` are read by ``torch.load(weights_only=True)``
    alone: a file that needs anything else is refused, never executed.

    Raises:
        CheckpointError: no such file, an unreadable one, or one that holds no state dict.
    """
    if isinstance(source, Mapping):
        return _unwrap(source, "the given state dict", prefer)
    path = Path(source)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        if path.suffix == ".safetensors":
            return _unwrap(load_file(path), str(path), prefer)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        return _unwrap(loaded, str(path), prefer)
    except pickle.UnpicklingError as error:
        # torch goes on with advice to load unsafely, in colours.
        named = re.search(r"Unsupported (global|operand|class)[^\n]*", str(error))
        reason = named[0].split(" was not an allowed")[0] if named else "not a file of tensors"
        raise CheckpointError(
            f"{path} was not loaded: it is damaged, or loading it would have "
            f"to run code ({reason}). If you trust it, save its weights alone where it was "
            f"made: loaded = torch.load(FILE, weights_only=False); for a training file "
            f"torch.save(loaded['{prefer or 'g_ema'}'], NEW), for a whole network "
            f"torch.save(loaded.state_dict(), NEW)."
        ) from None
    except CheckpointError:
        raise
    # A damaged file makes the reader fail in any way; nothing unsafe is tried after it.
    except Exception as error:
        raise CheckpointError(f"{path} is no readable checkpoint: {error}") from None


def _unwrap(loaded: Any, where: str, prefer: str | None) -> dict[str, torch.Tensor]:
    wrappers = _WRAPPERS if prefer is None else (prefer, *_WRAPPERS)
    beside: dict[str, torch.Tensor] = {}
    while isinstance(loaded, Mapping):
        wrapper = next((w for w in wrappers if isinstance(loaded.get(w), Mapping)), None)
        if wrapper is None:
            break
        beside |= {k: loaded[k] for k in _BESIDE if isinstance(loaded.get(k), torch.Tensor)}
        loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not loaded:
        raise CheckpointError(f"{where} holds a {type(loaded).__name__}, not a state dict")
    strange = [str(k) for k, v in loaded.items() if not isinstance(v, torch.Tensor)]
    if strange:
        raise CheckpointError(f"{where} holds no tensors under: {_some(strange)}")
    tensors: dict[str, torch.Tensor] = {str(key): value for key, value in loaded.items()}
    if all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors | beside


def load_exactly(
    network: Network,
    weights: Mapping[str, torch.Tensor],
    *,
    kind: str,
    original_names: Mapping[str, str] | None = None,
) -> Network:
    """Load ``weights`` into ``network`` and return it.

    ``original_names`` (native to foreign) makes the message speak of the file's own keys.

    Raises:
        CheckpointError: missing, left-over or misshapen keys; the message lists them.
    """
    names = original_names or {}
    expected = network.state_dict()
    missing = sorted({names.get(k, k) for k in expected.keys() - weights.keys()})
    extra = sorted({names.get(k, k) for k in weights.keys() - expected.keys()})
    misshapen = [
        f"{names.get(k, k)} {tuple(weights[k].shape)} instead of {tuple(expected[k].shape)}"
        for k in sorted(expected.keys() & weights.keys())
        if weights[k].shape != expected[k].shape
    ]
    problems = [
        f"{len(keys)} {what} ({_some(keys)})"
        for what, keys in (("missing", missing), ("left over", extra), ("misshapen", misshapen))
        if keys
    ]
    if problems:
        raise CheckpointError(f"the checkpoint does not fit '{kind}': {'; '.join(problems)}")
    network.load_state_dict({k: v.to(expected[k].dtype) for k, v in weights.items()})
    return network


def _some(keys: list[str]) -> str:
    shown = ", ".join(keys[:_MOST_KEYS_LISTED])
    rest = len(keys) - _MOST_KEYS_LISTED
    return f"{shown}, and {rest} more" if rest > 0 else shown
