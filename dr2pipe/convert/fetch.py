"""``dr2pipe fetch``: official files by name, resumed, verified, and whole or not there at all."""

from __future__ import annotations

import errno
import http.client
import logging
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from dr2pipe.core import files
from dr2pipe.core.errors import FetchError, UnreadableFileError
from dr2pipe.core.models import downloads_folder, user_folder
from dr2pipe.core.official import FILES

_CHUNK_BYTES = 1 << 20
_ATTEMPTS = 3
_MOST_BYTES = 800_000_000  # no file of FILES has more
_OF_DISK = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EIO)

logger = logging.getLogger(__name__)


# How PyTorch's files begin: zip archives, and pickles of before 2020.
_SIGNATURES = (b"PK\x03\x04", b"\x80\x02")
_SHA256 = re.compile("[0-9a-f]{64}")


def fetch(
    name: str,
    *,
    folder: str | Path | None = None,
    mirror: str | None = None,
    sha256: str | None = None,
    timeout_seconds: float = 30.0,
) -> Path:
    """The path of an official file, which is downloaded unless it is there.

    An interrupted download leaves ``<file>.part``; the next call continues it if the server
    still has the same file. The file gets its name when it is complete: it has the length that
    the server announced, and the known sha256 or, without one, the first bytes of a PyTorch file.
    The sha256 of the first file that comes under a name is remembered in ``known`` of the user
    folder, and every later file of the name must have it. Of several processes one downloads, and the others wait for it.

    Args:
        name: one of ``FILES``.
        folder: where the file goes; by default ``downloads`` in the user folder.
        mirror: address of a folder that has the file under the same name.
        sha256: of the file or its first digits, where ``FILES`` knows none.
        timeout_seconds: an attempt ends after this time without a byte; there are three.

    Raises:
        FetchError: unknown name, a failed download, a full disk, or another file than expected.
    """
    if name not in FILES:
        raise FetchError(f"unknown file '{name}'; there are {', '.join(FILES)}")
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{1,64}", sha256):
        raise FetchError(f"sha256 '{sha256}' must be up to 64 hexadecimal digits, not empty")
    file = FILES[name]
    folder = downloads_folder() if folder is None else Path(folder)
    address = file.address if mirror is None else f"{mirror.rstrip('/')}/{file.name}"
    wanted = (sha256 or file.sha256 or remembered(file.name)).lower()
    target = folder / file.name
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if not os.path.lexists(target):
            with _only_one(target):
                if not os.path.lexists(target):
                    _fetch(address, target, wanted, timeout_seconds)
                    remember(target)
                    return target
        _verify(target, wanted, target)
        remember(target)
    except UnreadableFileError as error:
        raise FetchError(str(error)) from None
    return target


def remember(path: Path) -> None:
    """Note the sha256 of an official file, unless one is noted already."""
    if not remembered(path.name):
        line = f"{files.sha256(path)}  {path.name}\n"  # as sha256sum writes it
        files.write_bytes(_note_of(path.name), line.encode())


def remembered(name: str) -> str:
    """The sha256 of the first official file of this name; empty where none has come yet."""
    try:
        noted = files.read_regular(_note_of(name), max_bytes=1 << 10)
    except UnreadableFileError:
        return ""
    found = _SHA256.match(noted.decode("ascii", "replace"))
    return found[0] if found else ""


def check_remembered(path: Path) -> None:
    """See that an official file is the one that came first under its name.

    Raises:
        FetchError: it is another one.
    """
    if wanted := remembered(path.name):
        _verify(path, wanted, path)


def _note_of(name: str) -> Path:
    return user_folder() / "known" / f"{name}.sha256"


def _fetch(address: str, target: Path, wanted: str, timeout_seconds: float) -> None:
    part = target.with_name(f"{target.name}.part")
    by_hand = f"download {address} by hand and put it at {target}"
    length: int | None = None
    for attempt in range(_ATTEMPTS):
        try:
            length = _download(address, part, timeout_seconds, length_needed=not wanted)
            break
        except FetchError as error:
            raise FetchError(f"{error}; {by_hand}") from None
        except (OSError, http.client.HTTPException) as error:
            refused = isinstance(error, urllib.error.HTTPError) and error.code < 500
            if refused or attempt == _ATTEMPTS - 1:
                raise FetchError(f"{address}: {_reason(error)}; {by_hand}") from None
            time.sleep(min(2**attempt, timeout_seconds))
        except ValueError as error:  # an address that is none, also where the server leads to one
            raise FetchError(f"{address}: {error}; {by_hand}") from None
    try:
        size = files.check_regular(part)
        if length is not None and size != length:
            raise FetchError(f"{target.name} has {size} bytes instead of {length}.")
        _verify(part, wanted, target)
    except FetchError as error:
        _remove(part)
        raise FetchError(f"{error} The download was removed; {by_hand}") from None
    os.replace(part, target)
    files.sync_folder(target.parent)
    _tag_of(part).unlink(missing_ok=True)


@contextmanager
def _only_one(target: Path) -> Iterator[None]:
    """Keep other processes from downloading the same file; wait while one of them does."""
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        logger.warning("another process is downloading %s; waiting for it", target)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


class _OnlyHttp(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, request: urllib.request.Request, *rest: Any
    ) -> urllib.request.Request | None:
        redirected = super().redirect_request(request, *rest)
        if redirected is not None and request.type == "https" and redirected.type != "https":
            raise FetchError("the server leads from https to an open connection")
        if redirected is not None and redirected.type not in ("http", "https"):
            raise FetchError(f"the server leads to {redirected.type}, not to https")
        return redirected


def _download(
    address: str, part: Path, timeout_seconds: float, *, length_needed: bool
) -> int | None:
    """Append what is missing to ``part``; OSError where the connection ends early.

    Returns:
        The length of the file by the server; None where it does not say.
    """
    done, tag = _state_of(part, address)
    if urllib.parse.urlsplit(address).scheme not in ("http", "https"):
        raise FetchError(f"{address} must begin with https:// or http://")
    request = urllib.request.Request(address, headers={"User-Agent": "dr2pipe"})
    if done:
        request.add_header("Range", f"bytes={done}-")
        if tag:  # a server whose file has changed sends all of it
            request.add_header("If-Range", tag)
    try:
        opener = urllib.request.build_opener(_OnlyHttp)
        response = opener.open(request, timeout=timeout_seconds)
    except urllib.error.HTTPError as error:
        if error.code == 416 and done:  # nothing is missing, or the part is of another file
            whole = (error.headers.get("Content-Range") or "").rpartition("/")[2]
            if whole == str(done):
                return done
            _remove(part)
            raise OSError("what was there does not belong to this file; it was removed") from None
        raise
    with response:
        offset = (response.headers.get("Content-Range") or "").removeprefix("bytes ")
        if response.status == 206 and not (done and offset.startswith(f"{done}-")):
            _remove(part)
            raise OSError(f"the server sent the bytes {offset}, not those from {done} on")
        if response.status != 206:
            done = 0  # it sends all of it
        total = _total_length(response.headers.get("Content-Length"), done)
        if total is None and length_needed:
            raise FetchError(
                f"{address}: the server does not say how long the file is; give its sha256"
            )
        tag = response.headers.get("ETag") or ""
        tag = tag if tag.isascii() and tag.isprintable() else ""
        files.write_bytes(_tag_of(part), f"{address}\n{tag}\n".encode())
        done = _append(response, part, done, total)
    if total is not None and done < total:
        raise OSError(f"the connection ended after {done} of {total} bytes")
    return total


def _total_length(length: str | None, done: int) -> int | None:
    if length is None:
        return None
    if not re.fullmatch("[0-9]{1,18}", length):
        raise FetchError(f"the server says that the file has {length[:20]!r} bytes")
    if done + int(length) > _MOST_BYTES:
        raise FetchError(
            f"the server says that the file has {done + int(length)} bytes; no official file has "
            f"more than {_MOST_BYTES}"
        )
    return done + int(length)


def _append(response: http.client.HTTPResponse, part: Path, done: int, total: int | None) -> int:
    """Write what comes behind the first ``done`` bytes; returns the bytes that are there then."""
    most = _MOST_BYTES if total is None else total
    with (
        part.open("ab" if done else "wb") as file,
        tqdm(total=total, initial=done, unit="B", unit_scale=True, desc=part.stem) as progress,
    ):
        # read1 gives what has come; read would lose it where the server stalls.
        while chunk := response.read1(_CHUNK_BYTES):
            if done + len(chunk) > most:
                file.close()
                _remove(part)
                raise FetchError(f"the server sends more than {most} bytes; stopped")
            try:
                file.write(chunk)
                file.flush()
            except OSError as error:
                if error.errno not in _OF_DISK:
                    raise
                raise FetchError(f"{part} cannot be written: {error.strerror}") from None
            done += len(chunk)
            progress.update(len(chunk))
        os.fsync(file.fileno())
    return done


def _state_of(part: Path, address: str) -> tuple[int, str]:
    """Bytes that are there from ``address``, and the server's tag of the file."""
    if not os.path.lexists(part):
        return 0, ""
    size = files.check_regular(part)
    try:
        known = files.read_regular(_tag_of(part), max_bytes=1 << 16).decode("utf-8", "replace")
    except UnreadableFileError:
        known = ""
    lines = known.split("\n")
    if lines[0] != address:
        part.unlink()  # from another server, or of unknown origin
        return 0, ""
    return size, lines[1] if len(lines) > 1 else ""


def _tag_of(part: Path) -> Path:
    return part.with_suffix(".source")


def _remove(part: Path) -> None:
    part.unlink(missing_ok=True)
    _tag_of(part).unlink(missing_ok=True)


def _verify(path: Path, wanted: str, target: Path) -> None:
    if wanted:
        found = files.sha256(path)
        if not found.startswith(wanted):
            noted = _note_of(target.name)
            if wanted == remembered(target.name):
                raise FetchError(
                    f"{target.name} has the sha256 {found}, not {wanted}, which it had when it came "
                    f"first. If you trust the new file, remove {noted}."
                )
            raise FetchError(f"{target.name} has the sha256 {found}, not {wanted}: it was altered.")
        return
    files.check_regular(path)
    with path.open("rb") as file:
        if not file.read(4).startswith(_SIGNATURES):
            raise FetchError(
                f"{target.name} is no file of PyTorch; the server sent something else."
            )


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return str(error.reason)
    return str(error) or type(error).__name__
