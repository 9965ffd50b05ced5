"""Pictures in tar files (WebDataset shards), on a disk or in a store, read one by one.

Training reads its faces in an order that depends on the seed alone, so every picture has to be
found without reading what lies before it. Each shard is indexed once; the index is kept in the
user's folder, under the shard's address and version.
"""

from __future__ import annotations

import json
import logging
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO

from dr2pipe.core import files, images
from dr2pipe.core.config import stable_hash
from dr2pipe.core.errors import ConfigError, Dr2pipeError, PictureError
from dr2pipe.core.extras import needs_extra
from dr2pipe.core.foreign import read_object
from dr2pipe.core.models import user_folder
from dr2pipe.core.storage import StoredObject

logger = logging.getLogger(__name__)

_ENDING = re.compile(r"\.tar(\}|,|$)")
_MOST_MEMBERS = 10_000_000
_MOST_INDEX_BYTES = 1 << 30


def are_shards(path: str) -> bool:
    """Whether ``data.path`` names tar files, not a folder or an ``.npz``."""
    return bool(_ENDING.search(path))


@dataclass(frozen=True)
class Member:
    """A picture in a tar file: its name, and the bytes from ``start`` up to ``end``."""

    name: str
    start: int
    end: int


class Shards:
    """The pictures of tar files.

    Args:
        pattern: path or URL of a ``.tar`` file; ``faces-{0000..0099}.tar`` for many.

    Attributes:
        names: of all pictures, each ``SHARD/NAME IN IT``.

    Raises:
        ConfigError: no such file, or a store that cannot be reached.
        Dr2pipeError: a file that is no tar file, one without pictures, or two shards of one name.
    """

    def __init__(self, pattern: str):
        self._places: list[tuple[str, int, int]] = []  # of each picture: URL, start, end
        self.names: list[str] = []
        seen: dict[str, str] = {}
        for url in expand(pattern):
            shard = PurePosixPath(url).stem
            if shard in seen:
                raise Dr2pipeError(f"{seen[shard]} and {url} have one name; faces need their own")
            seen[shard] = url
            for member in _index_of(url):
                self.names.append(f"{shard}/{member.name}")
                self._places.append((url, member.start, member.end))

    def read(self, index: int) -> images.Picture:
        """A picture.

        Args:
            index: its place in ``names``.

        Raises:
            PictureError: it cannot be read, or is none.
        """
        url, start, end = self._places[index]
        try:
            return images.decode_image(StoredObject(url).read(start, end))
        except (OSError, PictureError) as error:
            raise PictureError(f"{url}: {self.names[index]}: {error}") from None


def expand(pattern: str) -> list[str]:
    """The addresses that ``{0000..0099}`` and ``{a,b}`` stand for, as a shell expands them.

    Raises:
        ConfigError: braces that do not match.
        MissingPackageError: the extra ``[train]`` is not installed.
    """
    if "{" not in pattern:
        return [pattern]
    with needs_extra("train"):
        from braceexpand import braceexpand
    try:
        return list(braceexpand(pattern))
    except ValueError:
        raise ConfigError(f"data.path={pattern}: a brace has no partner") from None


def _index_of(url: str) -> Sequence[Member]:
    """The pictures of a shard, from the kept index where the shard is as it was."""
    shard = StoredObject(url)
    stored = shard.describe()
    name = stable_hash([url, stored.size, stored.version])
    path = user_folder() / "shards" / f"{name}.json"
    if path.is_file() and (kept := _read_index(str(path))) is not None:
        return kept
    logger.info("reading the names in %s", url)
    with shard.open() as file:
        members = _scan(file, url, stored.size)
    rows = [[member.name, member.start, member.end] for member in members]
    files.write_bytes(path, json.dumps({"members": rows}).encode())
    return members


def _read_index(path: str) -> list[Member] | None:
    """A kept index; None where it is damaged, and is made again."""
    try:
        rows = read_object(path, max_bytes=_MOST_INDEX_BYTES)["members"]
        return [Member(str(name), int(start), int(end)) for name, start, end in rows]
    except (Dr2pipeError, KeyError, TypeError, ValueError):
        return None


def _scan(file: BinaryIO, url: str, size: int) -> list[Member]:
    found: dict[str, Member] = {}
    end = 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for count, entry in enumerate(archive):
                if count >= _MOST_MEMBERS:
                    raise Dr2pipeError(f"{url} has more than {_MOST_MEMBERS:,} files")
                end = entry.offset_data + -(-entry.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                ending = PurePosixPath(entry.name).suffix.lower()
                if not entry.isreg() or ending not in images.readable_endings():
                    continue
                member = Member(entry.name, entry.offset_data, entry.offset_data + entry.size)
                if found.setdefault(entry.name, member) is not member:
                    raise Dr2pipeError(f"{url} has two files {entry.name}")
    except tarfile.TarError as error:
        raise Dr2pipeError(
            f"{url} is no tar file, or a damaged or compressed one: {error}"
        ) from None
    # Two empty blocks follow the last file; tarfile takes a file that ends early for a whole one.
    if end + 2 * tarfile.BLOCKSIZE > size:
        raise Dr2pipeError(f"{url} is cut off: it ends early")
    if not found:
        raise Dr2pipeError(f"{url} holds no pictures")
    return list(found.values())
