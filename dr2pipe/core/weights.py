"""Files of tensors that other people made, checked before anything is built from them.

``torch.load(weights_only=True)`` runs no code of a file, but it believes what the file says of
sizes. So a file is first gone through without building a tensor: every storage must have the
bytes that it claims, and every tensor must lie in its storage. Reading a file then needs little
more memory than the file has bytes.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file

from dr2pipe.core import files
from dr2pipe.core.errors import CheckpointError, UnreadableFileError

_MAX_HEADER_BYTES = 1 << 26  # of safetensors
_MAX_PICKLE_BYTES = 1 << 28  # of what describes the tensors of a file
# Tensors may share a storage, and repeat one value without storing it often.
_MOST_GROWTH, _FREE_BYTES = 4, 1 << 24
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_MAX_ARRAYS, _MAX_DEPTH = 10_000, 8  # of a pickled dict
_LEGACY_PARTS = 5  # magic number, version, system, content, keys of the storages
_ELEMENT_BYTES = {
    "UntypedStorage": 1, "ByteStorage": 1, "CharStorage": 1, "BoolStorage": 1, "ShortStorage": 2,
    "HalfStorage": 2, "BFloat16Storage": 2, "IntStorage": 4, "FloatStorage": 4, "LongStorage": 8,
    "DoubleStorage": 8, "ComplexFloatStorage": 8, "ComplexDoubleStorage": 16,
}  # fmt: skip
_REBUILDS = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3")


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
            return torch.load(path, map_location="cpu", weights_only=True)
    except (CheckpointError, UnreadableFileError, pickle.UnpicklingError):
        raise
    except (TypeError, AttributeError) as error:  # torch's way to refuse some classes
        raise pickle.UnpicklingError(str(error)) from None
    # A damaged file makes the readers fail in any way; nothing unsafe is tried after it.
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{path} is no readable checkpoint: {said}") from None


def check_sizes(path: str | Path) -> None:
    """Check that the tensors of a file are no larger than what it holds; none is built.

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
        _check_pickles(path, size)


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


# -- pickles -----------------------------------------------------------------------------------


class _StorageKind:
    """A class of storages, by the bytes of an element."""

    def __init__(self, element_bytes: int):
        self.element_bytes = element_bytes


class _Storage:
    """A storage as a file claims it: its key, number of elements, and bytes of each."""

    def __init__(self, key: Any, count: Any, element_bytes: int):
        if not isinstance(count, int) or count < 0:
            raise CheckpointError(f"a storage claims {count!r} elements")
        self.key, self.count, self.element_bytes = str(key), count, element_bytes

    @property
    def nbytes(self) -> int:
        return self.count * self.element_bytes


class _Stub:
    """Stands for whatever a file would build."""

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """Take an element of a list."""

    def extend(self, values: Any) -> None:
        """Take elements of a list."""


# The unpickler in Python: that in C makes room for as many memos as a file claims.
class _Scan(pickle._Unpickler):
    """Goes through a pickle, calls nothing that it names, and notes its storages and tensors."""

    def __init__(self, file: io.BufferedIOBase | io.BytesIO, file_bytes: int):
        super().__init__(file, encoding="utf-8")
        self.file_bytes = file_bytes
        self.storages: dict[str, _Storage] = {}
        self.tensor_bytes = 0

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in for what a file names."""
        if module == "torch._utils" and name in _REBUILDS:
            return self._tensor
        if name in _ELEMENT_BYTES:
            return _StorageKind(_ELEMENT_BYTES[name])
        return self._other

    def persistent_load(self, pid: Any) -> _Storage:
        """Note a storage."""
        if not (isinstance(pid, tuple) and len(pid) > 4 and isinstance(pid[1], _StorageKind)):
            raise CheckpointError("it refers to something that is no storage")
        storage = _Storage(pid[2], pid[4], pid[1].element_bytes)
        known = self.storages.get(storage.key)
        if known is None or known.nbytes < storage.nbytes:
            self.storages[storage.key] = storage
        return storage

    def _tensor(
        self, storage: Any, offset: Any = 0, shape: Any = (), stride: Any = (), *_: Any
    ) -> _Stub:
        sides, steps = tuple(shape), tuple(stride)
        numbers = (offset, *sides, *steps)
        if not isinstance(storage, _Storage) or any(
            not isinstance(number, int) or number < 0 for number in numbers
        ):
            raise CheckpointError("a tensor has no storage or an impossible shape")
        count = _count(sides)
        last = offset + sum((side - 1) * step for side, step in zip(sides, steps, strict=True))
        if count and last >= storage.count:
            raise CheckpointError(
                f"a tensor of the shape {sides} does not lie in its storage of {storage.count}"
            )
        self.tensor_bytes += count * storage.element_bytes
        return _Stub()

    def _other(self, *arguments: Any) -> _Stub:
        for argument in arguments:
            if isinstance(argument, int) and argument > 8 * self.file_bytes:
                raise CheckpointError(f"it asks for something of the size {argument}")
        return _Stub()


def _check_pickles(path: Path, size: int) -> None:
    """Raise CheckpointError for a file of PyTorch that claims more than it holds."""
    with open(path, "rb") as file:
        start = file.read(4)
        file.seek(0)
        if start == _ZIP:
            scans, held = _scan_archive(file, size)
        elif start.startswith(_PICKLE):
            scans, held = _scan_legacy(file, size)
        else:
            raise CheckpointError(f"{path} is no file of PyTorch")
    claimed = 0
    for scan in scans:
        for storage in scan.storages.values():
            claimed += storage.nbytes
            if storage.nbytes > held(storage.key):
                raise CheckpointError(
                    f"{path} is damaged: a storage claims {storage.nbytes} bytes and has "
                    f"{held(storage.key)}"
                )
        if scan.tensor_bytes > _MOST_GROWTH * size + _FREE_BYTES:
            raise CheckpointError(
                f"{path} has {size} bytes, and its tensors would need {scan.tensor_bytes}"
            )
    if claimed > size:
        raise CheckpointError(f"{path} has {size} bytes and claims {claimed}")


def _scan_archive(file: Any, size: int) -> tuple[list[_Scan], Callable[[str], int]]:
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if len(members) < len(archive.infolist()):
            raise CheckpointError("it holds two records of one name")
        if sum(member.file_size for member in members.values()) > size:
            raise CheckpointError("it is packed, and would grow")
        described = [name for name in members if name.endswith("/data.pkl")]
        if len(described) != 1 or members[described[0]].file_size > _MAX_PICKLE_BYTES:
            raise CheckpointError("it has no record data.pkl, or one that is too large")
        root = described[0].removesuffix("data.pkl")
        scan = _scan(io.BytesIO(archive.read(described[0])), size)
    sizes = {name: member.file_size for name, member in members.items()}
    return [scan], lambda key: sizes.get(f"{root}data/{key}", 0)


def _scan_legacy(file: Any, size: int) -> tuple[list[_Scan], Callable[[str], int]]:
    """Files of before 2020: pickles, then the storages one after another."""
    magic = _Scan(file, size).load()
    if magic != torch.serialization.MAGIC_NUMBER:
        raise pickle.UnpicklingError("not a file of tensors")
    scans = [_scan(file, size) for _ in range(_LEGACY_PARTS - 1)]
    rest = size - file.tell()
    return scans, lambda key: rest


def _scan(file: Any, size: int) -> _Scan:
    scan = _Scan(file, size)
    scan.load()
    return scan


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
