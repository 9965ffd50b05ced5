"""Folders of networks: config.json and safetensors, checked before anything is built.

A folder is data. It names one of the classes that its reader knows, and it cannot bring code,
pickles, or a config that needs more memory than its weights justify.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.nn.modules import module as torch_modules

from dr2pipe.core.diffusers_types import ModelMixin
from dr2pipe.core.errors import CheckpointError, UnreadableFileError
from dr2pipe.core.foreign import read_object
from dr2pipe.core.weights import tensor_shapes

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
_MAX_CONFIG_BYTES = 1 << 20
_MOST_NUMBER, _MOST_SIZE_PX, _MOST_ENTRIES, _MOST_LETTERS = 1 << 17, 8192, 4096, 1000
# A network that is built may have that many more parameters than its file has weights: shared
# ones are stored once.
_SPARE_ELEMENTS, _SPARE_SHARE = 1 << 16, 1.25
_SPARE_TENSORS, _MOST_TENSORS_SHARE = 10_000, 4

Network = TypeVar("Network", bound=ModelMixin)


def read_config(path: str | Path) -> dict[str, Any]:
    """A config of diffusers (JSON), its numbers and texts within what networks have.

    Raises:
        CheckpointError: no such file, no JSON object, or a value that no network has.
    """
    try:
        config = read_object(path, max_bytes=_MAX_CONFIG_BYTES)
    except UnreadableFileError as error:
        raise CheckpointError(f"cannot read {error}") from None
    for name, value in config.items():
        if name in ("quantization_config", "auto_map"):
            raise CheckpointError(f"{path}: '{name}' is not supported")
        reason = _why_impossible(name, value)
        if reason is not None:
            raise CheckpointError(f"{path}: '{name}' {reason}")
    return config


def _why_impossible(name: str, value: Any, depth: int = 0) -> str | None:
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, str):
        return "is too long" if len(value) > _MOST_LETTERS else None
    if isinstance(value, int | float):
        most = _MOST_SIZE_PX if name.endswith("size") else _MOST_NUMBER
        if not math.isfinite(value) or abs(value) > most:
            return f"is {value}; at most {most} is possible"
        return None
    if len(value) > _MOST_ENTRIES and not name.startswith("_"):
        return f"has {len(value)} entries; at most {_MOST_ENTRIES} are possible"
    if depth > 3:
        return "is nested too deeply"
    inner = value.values() if isinstance(value, dict) else value
    return next(filter(None, (_why_impossible(name, one, depth + 1) for one in inner)), None)


def class_in_folder(folder: str | Path) -> str | None:
    """Name of the class that wrote the ``config.json`` of a folder; None without such a file.

    Raises:
        CheckpointError: a ``config.json`` that cannot be read.
    """
    path = Path(folder) / CONFIG
    if not path.exists():
        return None
    name = read_config(path).get("_class_name")
    return str(name) if name is not None else None


def check_class(folder: str | Path, kind: type, *, hint: str = "") -> None:
    """Check that a folder holds a network of the class ``kind``.

    Args:
        folder: native folder of a network.
        kind: the class that is wanted.
        hint: where such a folder comes from; ends the message.

    Raises:
        CheckpointError: no ``config.json`` there, or one of another class.
    """
    found = class_in_folder(folder)
    if found == kind.__name__:
        return
    ending = f"; {hint}" if hint else ""
    if found is None:
        raise CheckpointError(
            f"no {kind.__name__} at {folder} (config.json is missing or names no class){ending}"
        )
    raise CheckpointError(f"{folder} holds a {found}, not a {kind.__name__}{ending}")


def check_network(folder: str | Path, kind: type[ModelMixin], *, hint: str = "") -> None:
    """Check a folder before diffusers sees it: its class, its config, its weights' sizes.

    Args:
        folder: config.json and safetensors.
        kind: the class that is wanted.
        hint: where such a folder comes from; ends the message.

    Raises:
        CheckpointError: another class, an impossible config, no weights, or weights that cannot
            fill what the config describes.
    """
    folder = Path(folder)
    check_class(folder, kind, hint=hint)
    try:
        shapes = tensor_shapes(folder / WEIGHTS)
    except UnreadableFileError as error:
        raise CheckpointError(f"{folder} holds no weights: {error}") from None
    index = next(folder.glob("*.index.json"), None)
    if index is not None:  # diffusers would read the files that it names, which nobody checked
        raise CheckpointError(f"{index}: weights in several files are not supported")
    config = read_config(folder / CONFIG)
    elements = sum(math.prod(shape) for shape in shapes.values())
    with (
        _only_misfits(folder),
        within_budget(len(shapes), elements, what=f"the config.json of {folder}"),
    ):
        from_config(kind, config)


def load_network(folder: str | Path, kind: type[Network], *, hint: str = "") -> Network:
    """The network of a folder, in float32 or as it was saved.

    Args:
        folder: config.json and safetensors.
        kind: the class that is wanted; code of the folder is never run.
        hint: where such a folder comes from; ends the message.

    Raises:
        CheckpointError: see :func:`check_network`; or weights that do not fit the config.
    """
    folder = Path(folder)
    check_network(folder, kind, hint=hint)
    with _only_misfits(folder):
        load: Any = kind.from_pretrained
        loaded = load(
            str(folder),
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            # True takes the memory from every network that any thread builds meanwhile.
            low_cpu_mem_usage=False,
        )
    network: Network = loaded[0]
    missing = sorted(loaded[1]["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{folder / WEIGHTS} lacks {len(missing)} weights of the network, such as {missing[0]}"
        )
    return network


def from_config(kind: type[Network], config: Mapping[str, Any]) -> Network:
    """A fresh network of the class ``kind``, as diffusers builds it from a config."""
    build: Any = kind
    network: Network = build.from_config({k: v for k, v in config.items() if k[0] != "_"})
    return network


@contextlib.contextmanager
def _only_misfits(folder: Path) -> Iterator[None]:
    """Report whatever foreign values make the classes raise as one kind of error."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:500] or type(error).__name__
        raise CheckpointError(f"{folder} holds no usable network: {said}") from None


@contextlib.contextmanager
def within_budget(tensors: int, elements: float = math.inf, *, what: str) -> Iterator[None]:
    """Inside the block, this thread builds networks without memory for their parameters.

    So what a foreign file says cannot make a network that its weights cannot fill.

    Args:
        tensors: of the weights that are to fill the network; it may have some more.
        elements: likewise.
        what: what says how to build the network, for the message.

    Raises:
        CheckpointError: the network would be larger.
    """
    most_elements = _SPARE_ELEMENTS + _SPARE_SHARE * elements
    most_parameters = _SPARE_TENSORS + _MOST_TENSORS_SHARE * tensors
    built = parameters = 0
    thread = threading.get_ident()

    def count(module: torch.nn.Module, name: str, parameter: torch.Tensor | None) -> None:
        nonlocal built, parameters
        if parameter is None or threading.get_ident() != thread:  # torch's hooks are for all
            return
        built, parameters = built + parameter.numel(), parameters + 1
        if built > most_elements or parameters > most_parameters:
            raise CheckpointError(f"{what} describes a larger network than its weights can fill")

    hooks: Any = torch_modules
    handles = [
        hooks.register_module_parameter_registration_hook(count),
        hooks.register_module_buffer_registration_hook(count),
    ]
    try:
        with torch.device("meta"):
            yield
    finally:
        for handle in handles:
            handle.remove()
