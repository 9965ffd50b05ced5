"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dr2pipe.core.errors import FolderInUseError

_CHUNK_BYTES = 1 << 20


def lock_folder(folder: str | Path) -> int | None:
    """Keep other runs out of a folder until ``os.close`` of what is returned, or the end.

    Raises:
        FolderInUseError: another process has it.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows; there two runs in one folder are not noticed
        return None
    # The folder itself is locked, so that no lock file is ever left behind.
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise FolderInUseError(f"another run is writing into {folder}") from None
    return lock


@contextmanager
def locked(folder: str | Path, *, wanted: bool = True) -> Iterator[None]:
    """``lock_folder`` for the length of a block, where ``wanted``; makes the folder."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    lock = lock_folder(folder) if wanted else None
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def write_bytes(path: str | Path, data: bytes, *, partial_folder: str | Path | None = None) -> None:
    """Write a file under a temporary name, flush it to the disk, and rename it.

    ``partial_folder`` (same file system) holds the temporary file, so that whatever a killed
    process left lies in one known place; by default it lies beside ``path``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(partial_folder or path.parent) / f".{uuid.uuid4().hex}.partial"
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_folder(path: str | Path, save: Callable[[Path], object]) -> None:
    """Let ``save`` fill a temporary folder, then put it in the place of ``path``."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        save(partial)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def sha256(path: str | Path) -> str:
    """Hex digest of a file of any size, or over a folder's weight files in order of their names."""
    path = Path(path)
    files = [path]
    if path.is_dir():
        files = sorted(p for suffix in ("*.safetensors", "*.bin") for p in path.rglob(suffix))
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            while chunk := opened.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()
