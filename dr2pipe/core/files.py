"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from dr2pipe.core.errors import Dr2pipeError, FolderInUseError, UnreadableFileError

LOCK_NAME = ".lock"
_CHUNK_BYTES = 1 << 20
_LONGEST_NAME_BYTES = 255


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
    check_regular(path, max_bytes=max_bytes)
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UnreadableFileError(path, f"cannot be opened: {error.strerror}") from None


def check_regular(path: str | Path, *, max_bytes: int | None = None) -> int:
    """The size in bytes of a regular file, for a reader that opens large files by their paths.

    Raises:
        UnreadableFileError: as :func:`read_regular`; nothing is opened or waited for.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        reason = "the link points to nothing" if os.path.islink(path) else "no such file"
        raise UnreadableFileError(path, reason) from None
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else str(error)
        raise UnreadableFileError(path, f"cannot be opened: {said}") from None
    if stat.S_ISDIR(status.st_mode):
        raise UnreadableFileError(path, "a folder cannot be read as a file")
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableFileError(path, "not a regular file")
    if max_bytes is not None and status.st_size > max_bytes:
        raise UnreadableFileError(
            path, f"the file has {status.st_size} bytes, more than {max_bytes}"
        )
    return status.st_size


def safe_join(folder: str | Path, name: str) -> Path:
    """The path below ``folder`` of a relative name that stood in a file.

    The one place where such names become paths. Parts that are too long for a file system keep
    their beginning and their ending, with a hash between them, so that they stay different.

    Raises:
        Dr2pipeError: an absolute name, one that leaves the folder, or one that no file can have.
    """
    parts = re.split(r"[/\\]" if os.name == "nt" else "/", name)
    reason = None
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[/\\]", name):
        reason = "it is absolute"
    elif ".." in re.split(r"[/\\]", name):
        reason = "it leads out of its folder"
    elif "\0" in name or not _encodes(name) or not any(part not in ("", ".") for part in parts):
        reason = "no file can have it"
    elif os.name == "nt" and (":" in name or any(map(_is_reserved, parts))):
        reason = "Windows keeps it for devices"
    if reason is not None:
        raise Dr2pipeError(f"the name {name!r} cannot be used for a file in {folder}: {reason}")
    return Path(folder, *map(_shortened, parts))


def _encodes(name: str) -> bool:
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


def _is_reserved(part: str) -> bool:
    return re.fullmatch(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])", part.split(".")[0]) is not None


def _shortened(part: str) -> str:
    """A name of at most 255 bytes; longer ones get a hash of themselves."""
    encoded = os.fsencode(part)
    if len(encoded) <= _LONGEST_NAME_BYTES:
        return part
    stem, ending = os.path.splitext(part)
    if len(os.fsencode(ending)) > 16:
        ending = ""
    mark = "~" + hashlib.sha256(encoded).hexdigest()[:16] + ending
    while len(os.fsencode(stem + mark)) > _LONGEST_NAME_BYTES:
        stem = stem[:-1]
    return stem + mark


def write_bytes(path: str | Path, data: bytes, *, partial_folder: str | Path | None = None) -> None:
    """Write a file under a temporary name, flush it to the disk, and rename it.

    ``partial_folder`` holds the temporary file, so that the leftovers of a killed process are in
    one known place, and several processes may write the same file; by default, and where it is on
    another disk, it is the folder of ``path``, and the next write of the same file takes the
    place of the leftover.

    Raises:
        UnreadableFileError: a pipe, a device or a folder is in the place of the file.
        OSError: the file could not be written; ``filename`` is ``path``.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():  # a rename would put the file in the place of a device
            check_regular(path)
        if partial_folder is not None:
            try:
                partial = Path(partial_folder) / f".{uuid.uuid4().hex}.partial"
                return _write_and_rename(partial, path, data)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
        mark = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
        _write_and_rename(path.with_name(f".{mark}.partial"), path, data)
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
    """Let ``save`` fill a temporary folder, then rename it to ``path``, replacing what was there.

    The content is flushed to the disk before the rename: after a power cut the folder is whole,
    or it is not there. What was there before is removed last.

    Raises:
        OSError: it could not be written, and names a file; what was there before is unchanged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, former = (path.with_name(f".{path.name}.{word}") for word in ("partial", "former"))
    shutil.rmtree(partial, ignore_errors=True)
    if former.exists() and not path.exists():  # killed between the renames
        os.replace(former, path)
    try:
        try:
            save(partial)
        except OSError as error:
            if error.filename:
                raise
            raise named(error, path) from None
        # Writers of weights raise errors of their own kinds where a disk is full.
        except Exception as error:
            if not _is_of_disk(error):
                raise
            raise OSError(
                errno.EIO,
                "cannot be written; is the disk full, or the file larger than is allowed here?",
                str(path),
            ) from error
        _sync_tree(partial)
        shutil.rmtree(former, ignore_errors=True)
        if path.exists():
            os.replace(path, former)
        os.replace(partial, path)
        sync_folder(path.parent)
        shutil.rmtree(former, ignore_errors=True)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _is_of_disk(error: BaseException) -> bool:
    """Whether a writer failed because of the disk, by its own words."""
    return (
        re.search(r"(?i)file ?write|I/O ?error|os error|enforce fail|no space", str(error))
        is not None
    )


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            handle = os.open(os.path.join(parent, name), os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        sync_folder(parent)


def sha256(path: str | Path) -> str:
    """Hex digest of a file, or of all weight files below a folder in the order of their names.

    Raises:
        UnreadableFileError: no such file, a pipe or a device.
    """
    path = Path(path)
    files = [path]
    if path.is_dir():
        files = sorted(p for suffix in ("*.safetensors", "*.bin") for p in path.rglob(suffix))
    digest = hashlib.sha256()
    for file in files:
        check_regular(file)
        with file.open("rb") as opened:
            while chunk := opened.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()
