"""Files of a folder on a disk or in an object store, by fsspec.

One border for all that is remote: listing, reading, atomic writing, and trying again.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import fsspec

from dr2pipe.core import files
from dr2pipe.core.config import stable_seed
from dr2pipe.core.errors import ConfigError, describe_error

logger = logging.getLogger(__name__)

PARTIAL = ".partial"
_TRIES = 10  # over a minute or two
_TRIES_TO_LIST = 4  # somebody waits for an answer
_ABANDONED_S = 30.0  # a file takes less to be written
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.25, 20.0
# Asking again changes nothing.
_FINAL = (
    *(FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError),
    *(NotADirectoryError, NotImplementedError, TypeError),
)
_SHORT = 256  # bytes; no part of such a name is too long for a disk
_FINAL_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG)
_FINAL_NAMES = ("NoCredentialsError", "PartialCredentialsError", "ParamValidationError")
# What stores call the version of an object; the time of its last change is the weakest.
_VERSIONS = ("ETag", "etag", "generation", "md5Hash", "mtime", "LastModified", "last_modified")

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class StoredFile:
    """What a listing says of a file.

    Attributes:
        size: bytes.
        version: a text that changes with the content: the store's ETag, or the time of the last
            change in a folder on a disk.
    """

    size: int
    version: str


class Storage:
    """A folder by its path or URL, such as ``photos``, ``s3://bucket/photos`` or ``gs://...``.

    Nothing is contacted before the first call.

    Args:
        url: the folder. Credentials and endpoints are found as fsspec's file systems find them:
            in the environment and in the files of the store's own tools.
    """

    def __init__(self, url: str):
        self.url = url
        self.fs, root = _file_system(url)
        self.root = root.rstrip("/")
        self.is_local = "file" in _protocols(self.fs)

    def find(self) -> dict[str, StoredFile]:
        """{path below the folder: file} of all files, by one listing; empty without a folder.

        Raises:
            ConfigError: the store cannot be reached, or refuses.
        """
        try:
            found = again(
                lambda: self.fs.find(self.root, detail=True, withdirs=False),
                self.url,
                tries=_TRIES_TO_LIST,
            )
        except FileNotFoundError:
            return {}
        except Exception as error:
            raise unreachable(self.url, error) from error
        return {
            path[len(self.root) :].lstrip("/"): StoredFile(int(info["size"] or 0), _version(info))
            for path, info in found.items()
            if path != self.root and info.get("type", "file") == "file"
        }

    def names(self) -> list[str]:
        """Names of the files and folders in the folder itself; empty without a folder.

        Raises:
            ConfigError: the store cannot be reached, or refuses.
        """
        try:
            found = again(
                lambda: self.fs.ls(self.root, detail=False), self.url, tries=_TRIES_TO_LIST
            )
        except FileNotFoundError:
            return []
        except Exception as error:
            raise unreachable(self.url, error) from error
        return [path.rstrip("/").rpartition("/")[2] for path in found]

    def listed_name(self, name: str) -> str:
        """The name by which a listing has a file: a disk holds shortened names of long ones."""
        if not self.is_local or len(os.fsencode(name)) < _SHORT:
            return name
        return files.safe_join(self.root, name).relative_to(self.root).as_posix()

    def file(self, name: str) -> StoredFile:
        """Size and version of a file below the folder; of size 0 where it is gone."""
        try:
            info = self.fs.info(self._path(name))
        except FileNotFoundError:
            return StoredFile(0, "")
        return StoredFile(int(info["size"] or 0), _version(info))

    def read(self, name: str) -> bytes:
        """The content of a file below the folder.

        Raises:
            FileNotFoundError: there is none.
            OSError: it could not be read, in several tries.
        """
        path = self._path(name)
        return again(lambda: bytes(self.fs.cat_file(path)), path)

    def write(self, name: str, data: bytes) -> None:
        """Write a file, whole or not at all.

        Raises:
            OSError: it could not be written, in several tries.
        """
        path = self._path(name)
        if self.is_local:
            again(lambda: self._write_local(path, data), path)
        else:  # a put is atomic
            again(lambda: self.fs.pipe_file(path, data), path)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        path = self._path(name)
        try:
            again(lambda: self.fs.rm_file(path), path)
        except FileNotFoundError:
            return

    def remove_partial(self) -> None:
        """Remove what killed processes left in a folder on a disk; stores keep no such things."""
        folder = Path(self.root, PARTIAL)
        if not self.is_local or not folder.is_dir():
            return
        for path in folder.glob(".*.partial"):
            with suppress(FileNotFoundError):  # another run has just finished it
                if time.time() - path.stat().st_mtime > _ABANDONED_S:
                    path.unlink(missing_ok=True)
        with suppress(OSError):
            folder.rmdir()

    def _write_local(self, path: str, data: bytes) -> None:
        partial = Path(self.root, PARTIAL)
        for tried in range(1, _TRIES + 1):
            try:
                partial.mkdir(parents=True, exist_ok=True)
                files.write_bytes(path, data, partial_folder=partial)
                return
            # Another run may remove the empty folder at any moment.
            except (FileNotFoundError, FileExistsError):
                if tried == _TRIES:
                    raise

    def _path(self, name: str) -> str:
        return os.fspath(files.safe_join(self.root, name)) if self.is_local else _keyed(self, name)


class StoredObject:
    """One file by its path or URL, of which parts are read.

    Args:
        url: as of :class:`Storage`.
    """

    def __init__(self, url: str):
        self.url = url
        # Looked up again in every process: connections do not outlive a fork.
        self.fs, self.path = _file_system(url)

    def describe(self) -> StoredFile:
        """Its size and version.

        Raises:
            ConfigError: there is no such file, or the store cannot be reached.
        """
        try:
            info = again(lambda: self.fs.info(self.path), self.url)
        except FileNotFoundError:
            raise ConfigError(f"no file at {self.url}") from None
        except Exception as error:
            raise unreachable(self.url, error) from error
        if info.get("type", "file") != "file":
            raise ConfigError(f"{self.url} is no file")
        return StoredFile(int(info["size"] or 0), _version(info))

    def open(self) -> BinaryIO:
        """The file, to be read in steps; seeking over a part does not read it.

        Raises:
            OSError: it cannot be opened, in several tries.
        """
        file: BinaryIO = again(lambda: self.fs.open(self.path, "rb"), self.url)
        return file

    def read(self, start: int, end: int) -> bytes:
        """The bytes from ``start`` up to ``end``.

        Raises:
            OSError: they could not be read, in several tries.
        """
        data = again(lambda: bytes(self.fs.cat_file(self.path, start=start, end=end)), self.url)
        if len(data) != end - start:
            raise OSError(f"{self.url} gave {len(data)} bytes of {end - start}; has it changed?")
        return data


def read_url(url: str) -> bytes:
    """The content of a file by its path or URL.

    Raises:
        OSError: as :meth:`Storage.read`.
    """
    fs, path = _file_system(url)
    return again(lambda: bytes(fs.cat_file(path)), url)


def again(call: Callable[[], _Value], name: str, *, tries: int = _TRIES) -> _Value:
    """What ``call`` returns; it is tried again, with growing waits, where a store is in trouble.

    Stores answer 503 to too many requests, and connections stall.

    Raises:
        Exception: what the last try raised, or the first where another cannot help.
    """
    for tried in range(1, tries + 1):
        try:
            return call()
        except Exception as error:
            if tried == tries or is_final(error):
                raise
            # Not all processes at once: each file waits its own time.
            share = 0.5 + stable_seed(name, tried) % 1000 / 1000
            wait_s = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** (tried - 1) * share)
            logger.info("%s: %s; again in %.1f s", name, describe_error(error), wait_s)
            time.sleep(wait_s)
    raise AssertionError("unreachable")


def is_final(error: Exception) -> bool:
    """Whether trying again changes nothing."""
    if isinstance(error, _FINAL) or type(error).__name__ in _FINAL_NAMES:
        return True
    return isinstance(error, OSError) and error.errno in _FINAL_NUMBERS


def absolute_url(url: str) -> str:
    """The same place by an absolute path or a URL, without a slash at its end."""
    storage = Storage(url)
    return storage.root if storage.is_local else str(storage.fs.unstrip_protocol(storage.root))


def _file_system(url: str) -> tuple[Any, str]:
    try:
        if "::" in url and "://" not in url.partition("::")[2]:  # a name, no chain of file systems
            fs = fsspec.filesystem(fsspec.core.split_protocol(url)[0] or "file")
            path = fs._strip_protocol(url)
        else:
            fs, path = fsspec.core.url_to_fs(url, skip_instance_cache=False)
    except ImportError as error:
        raise ConfigError(f"{url}: {describe_error(error)}") from None
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{url} is no path or URL: {describe_error(error)}") from None
    if hasattr(fs, "use_listings_cache"):  # other processes write too
        fs.dircache.use_listings_cache = False
    return fs, str(path)


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _keyed(storage: Storage, name: str) -> str:
    files.safe_join("store", name)  # refuses the same names as on a disk
    return f"{storage.root}/{name}"


def _version(info: dict[str, Any]) -> str:
    return next((str(info[name]).strip('"') for name in _VERSIONS if info.get(name)), "")


def unreachable(url: str, error: Exception) -> ConfigError:
    """What to say of a store that could not be reached, or refused."""
    if isinstance(error, PermissionError) or type(error).__name__ in _FINAL_NAMES:
        return ConfigError(f"{url}: no access; check the credentials ({describe_error(error)})")
    return ConfigError(f"{url} cannot be reached: {describe_error(error)}")
