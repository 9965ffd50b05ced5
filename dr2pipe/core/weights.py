"""Files of tensors that other people made, checked before anything is built from them.

``torch.load(weights_only=True)`` runs no code of a file, and since version 2.10 refuses storages
that claim more than the file holds. What is left to check are packed archives, and tensors that
repeat few values: reading a file then needs little more memory than the file has bytes.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch.utils._pytree import tree_leaves

from dr2pipe.core import files
from dr2pipe.core.errors import CheckpointError, UnreadableFileError

_MAX_HEADER_BYTES = 1 << 26  # of safetensors
_MAX_PICKLE_BYTES = 1 << 28  # of pickled arrays
# Tensors may share a storage, and repeat one value without storing it often.
_MOST_GROWTH, _FREE_BYTES = 4, 1 << 24
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_MAX_ARRAYS, _MAX_DEPTH = 10_000, 8  # of a pickled dict


def read_tensors(path: str | Path, *, allowed: Iterable[Any] = ()) -> Any:
    """What a file of PyTorch (``.pth`` and the like) or a ``.safetensors`` file holds, on the CPU.

    Args:
        path: the file.
        allowed: further functions that the file may call, as
            ``torch.serialization.safe_globals`` takes them.

    Raises:
        UnreadableFileError: no regular file there.
        pickle.UnpicklingError: the file wants to run code.
        CheckpointError: a damaged file, or one whose tensors are larger than what it holds.
    """
    path = Path(path)
    files.check_regular(path)
    try:
        check_sizes(path)
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(list(allowed)):
            content = torch.load(path, map_location="cpu", weights_only=True)
        _check_growth(path, content, path.stat().st_size)
        return content
    except (CheckpointError, UnreadableFileError, pickle.UnpicklingError):
        raise
    except (TypeError, AttributeError) as error:  # torch's way to refuse some classes
        raise pickle.UnpicklingError(str(error)) from None
    # A damaged file makes the readers fail in any way; nothing unsafe is tried after it.
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{path} is no readable checkpoint: {said}") from None


def check_sizes(path: str | Path) -> None:
    """Check that a file would not grow when it is read; no tensor is built.

    Raises:
        CheckpointError: they are, or the file is damaged.
        pickle.UnpicklingError: no file of tensors.
        UnreadableFileError: no regular file there.
    """
    path = Path(path)
    size = files.check_regular(path)
    if path.suffix == ".safetensors":
        tensor_shapes(path)
    else:
        _check_archive(path, size)


def check_checksums(path: str | Path) -> None:
    """Compare the checksums of a file that ``torch.save`` wrote with its content.

    Raises:
        CheckpointError: it is damaged.
        UnreadableFileError: no regular file there.
    """
    files.check_regular(path)
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # a damaged archive fails in any way
        raise CheckpointError(f"{path} is damaged: {error}") from None
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: {damaged}")


def tensor_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors in a ``.safetensors`` file by name, from its header alone.

    Raises:
        CheckpointError: a damaged file, or one that says it holds more than it does.
        UnreadableFileError: no regular file there.
    """
    size = files.check_regular(path)
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size - 8, _MAX_HEADER_BYTES):
                raise ValueError(f"its header would have {length} bytes")
            header = json.loads(file.read(length))
        shapes = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            start, end = entry["data_offsets"]
            if not 0 <= start <= end <= size - 8 - length:
                raise ValueError(f"{name} lies outside of the file")
            shapes[name] = tuple(int(side) for side in entry["shape"])
            if min(shapes[name], default=0) < 0 or _count(shapes[name]) > 8 * (end - start):
                raise ValueError(f"{name} says that it has the shape {shapes[name]}; it has not")
    # A damaged header is wrong in any way.
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise CheckpointError(f"{path} is no readable safetensors file: {error}") from None
    return shapes


def _count(shape: Iterable[int]) -> int:
    count = 1
    for side in shape:
        count *= int(side)
    return count


def _check_archive(path: Path, size: int) -> None:
    """Raise CheckpointError for what is no archive or pickle, and for a packed archive."""
    with open(path, "rb") as file:
        start = file.read(4)
    if start.startswith(_PICKLE):  # as torch wrote before 2020
        return
    if start != _ZIP:
        raise CheckpointError(f"{path} is no file of PyTorch")
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > size:
            raise CheckpointError(f"{path} is packed, and would grow")


def _check_growth(path: Path, content: Any, size: int) -> None:
    """Raise CheckpointError for tensors that repeat what the file holds far too often."""
    tensors = [one for one in tree_leaves(content) if isinstance(one, torch.Tensor)]
    needed = sum(one.nbytes for one in tensors)
    if needed > _MOST_GROWTH * size + _FREE_BYTES:
        raise CheckpointError(f"{path} has {size} bytes, and its tensors would need {needed}")


# -- pickled arrays ----------------------------------------------------------------------------


class _StoredKind:
    """Stands for a ``numpy.dtype``."""

    def __init__(self, name: Any = "", *_: Any):
        self.name, self.order = str(name), "<"

    def __setstate__(self, state: Any) -> None:
        self.order = str(state[1])


class _StoredArray:
    """Stands for a ``numpy.ndarray``; it is no larger than its bytes in the file."""

    def __init__(self, *_: Any):
        self.values: npt.NDArray[Any] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, is_fortran, content = state
        if not isinstance(kind, _StoredKind) or kind.name[:1] not in {"f", "i", "u", "b"}:
            raise ValueError("an array holds something else than numbers")
        dtype = np.dtype(f"{kind.order if kind.order in {'<', '>'} else '|'}{kind.name}")
        values = np.frombuffer(content, dtype)
        self.values = values.reshape(tuple(shape), order="F" if is_fortran else "C")


class _ArrayUnpickler(pickle._Unpickler):
    """Builds dicts and arrays, and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in for what a file names."""
        known = {"_reconstruct": _StoredArray, "ndarray": _StoredArray, "dtype": _StoredKind}
        if module.partition(".")[0] != "numpy" or name not in known:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no array")
        return known[name]


def read_pickled_arrays(
    path: str | Path, *, max_bytes: int = _MAX_PICKLE_BYTES
) -> dict[str, npt.NDArray[Any]]:
    """The arrays in a pickle of dicts, as Flax' users save weights; no code of the file runs.

    Returns:
        Read-only arrays by the keys that lead to them, joined by ``/``.

    Raises:
        CheckpointError: a damaged file, or one that holds something else.
        UnreadableFileError: no regular file there, or a larger one.
    """
    content = files.read_regular(path, max_bytes=max_bytes)
    found: dict[str, npt.NDArray[Any]] = {}

    def collect(value: Any, keys: tuple[str, ...]) -> None:
        if isinstance(value, _StoredArray) and value.values is not None and keys:
            found["/".join(keys)] = value.values
        elif isinstance(value, dict) and len(keys) < _MAX_DEPTH:
            for key, inner in value.items():
                collect(inner, (*keys, str(key)))
        else:
            raise ValueError("it is no dict of arrays")
        if len(found) > _MAX_ARRAYS:
            raise ValueError(f"it has more than {_MAX_ARRAYS} arrays")

    try:
        collect(_ArrayUnpickler(io.BytesIO(content)).load(), ())
    # A damaged file makes the reader fail in any way.
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{path} is no readable pickle of arrays: {said}") from None
    return found
