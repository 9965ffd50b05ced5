"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from dr2pipe.core.errors import FolderInUseError, UnreadableFileError

LOCK_NAME = ".lock"
_CHUNK_BYTES = 1 << 20


def lock_folder(folder: str | Path) -> FileLock:
    """Keep other runs out of a folder until ``release`` of the lock, or the end of the process.

    The lock's file ``.lock`` stays in the folder; it says nothing by being there.

    Raises:
        FolderInUseError: another process has locked it.
    """
    lock = FileLock(Path(folder) / LOCK_NAME, thread_local=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise FolderInUseError(f"another run is writing into {folder}") from None
    return lock


@contextmanager
def locked(folder: str | Path, *, wanted: bool = True) -> Iterator[None]:
    """Make a folder and, if ``wanted``, lock it for the length of a block.

    Raises:
        FolderInUseError: another process has locked it.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    lock = lock_folder(folder) if wanted else None
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def read_regular(path: str | Path, *, max_bytes: int) -> bytes:
    """The bytes of a regular file. Pipes and devices are refused without waiting for them.

    Raises:
        UnreadableFileError: no such file, one that may not be read or has more than
            ``max_bytes``, a broken link, a folder, a pipe or a device.
    """
    try:
        # A pipe without a writer would be waited for.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        reason = "the link points to nothing" if os.path.islink(path) else "no such file"
        raise UnreadableFileError(path, reason) from None
    except (OSError, ValueError) as error:  # a loop of links, no permission, a socket, a zero byte
        said = error.strerror if isinstance(error, OSError) else str(error)
        raise UnreadableFileError(path, f"cannot be opened: {said}") from None
    try:
        status = os.fstat(handle)
        if stat.S_ISDIR(status.st_mode):
            raise UnreadableFileError(path, "a folder cannot be read as a file")
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableFileError(path, "not a regular file")
        if status.st_size > max_bytes:
            reason = f"the file has {status.st_size} bytes, more than {max_bytes}"
            raise UnreadableFileError(path, reason)
        with open(handle, "rb", closefd=False) as file:
            return file.read()
    except OSError as error:
        raise UnreadableFileError(path, f"cannot be read: {error.strerror}") from None
    finally:
        os.close(handle)


def write_bytes(path: str | Path, data: bytes, *, partial_folder: str | Path | None = None) -> None:
    """Write a file under a temporary name, flush it to the disk, and rename it.

    ``partial_folder`` holds the temporary file, so that the leftovers of a killed process are in
    one known place; by default, and where it is on another disk, it is the folder of ``path``.

    Raises:
        OSError: the file could not be written; ``filename`` is ``path``.
    """
    path = Path(path)
    name = f".{uuid.uuid4().hex}.partial"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write_and_rename(Path(partial_folder or path.parent) / name, path, data)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            _write_and_rename(path.parent / name, path, data)
    except OSError as error:
        raise named(error, path) from None


def named(error: OSError, path: str | Path) -> OSError:
    """The same error with ``path`` as the file that it is about.

    Errors of open files name none, and those of a temporary file name one that is gone.
    """
    if error.errno is None:
        return OSError(errno.EIO, str(error), str(path))
    return OSError(error.errno, error.strerror, str(path))


def _write_and_rename(partial: Path, path: Path, data: bytes) -> None:
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):  # the first error says what is wrong
            partial.unlink(missing_ok=True)
        raise


def sync_folder(folder: str | Path) -> None:
    """Flush a folder's names to the disk, so that a renamed file survives a power cut."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(handle)
    except OSError:  # some network disks refuse
        return
    finally:
        os.close(handle)


def write_folder(path: str | Path, save: Callable[[Path], object]) -> None:
    """Let ``save`` fill a temporary folder, then rename it to ``path``, replacing what was there."""
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
    """Hex digest of a file, or of all weight files below a folder in the order of their names."""
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
