"""Reading foreign state dicts safely, and loading them without a key left over."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from dr2pipe.core.errors import CheckpointError, UnreadableFileError
from dr2pipe.core.weights import read_tensors

# Where training code puts the weights inside a file; averaged weights come first.
_WRAPPERS = ("params_ema", "g_ema", "params", "state_dict")
# Tensors of the network that stand beside its wrapped weights.
_BESIDE = ("latent_avg",)
_MOST_KEYS_LISTED = 8
_MOST_LAYERS_PER_KEY, _LONGEST_KEY = 16, 500

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
    if not os.path.lexists(path):
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        return _unwrap(read_tensors(path), str(path), prefer)
    except UnreadableFileError as error:
        raise CheckpointError(f"no checkpoint at {error}") from None
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
    tensors |= beside
    _check_tensors(tensors, where)
    return tensors


def _check_tensors(tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Raise CheckpointError for tensors and keys that no network of PyTorch has."""
    # Networks count their layers; activations between them count too.
    most = _MOST_LAYERS_PER_KEY * len(tensors) + _MOST_LAYERS_PER_KEY
    for key, value in tensors.items():
        is_plain = value.layout == torch.strided and value.device.type == "cpu"
        if not is_plain or value.is_quantized or value.is_complex():
            raise CheckpointError(f"{where}: {key} is no plain tensor")
        if len(key) > _LONGEST_KEY or any(
            len(number) > 9 or int(number) > most for number in re.findall(r"\.([0-9]+)\.", key)
        ):
            raise CheckpointError(
                f"{where}: the key {key[:100]} counts more layers than there are tensors"
            )


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
