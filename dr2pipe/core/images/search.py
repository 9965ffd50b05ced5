"""The pictures of a folder."""

from __future__ import annotations

import logging
import os
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from dr2pipe.core.errors import UnreadableFileError
from dr2pipe.core.markers import result_files, result_folders

logger = logging.getLogger(__name__)

_READABLE = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif",
    ".jp2", ".j2k", ".apng", ".mpo", ".ppm", ".pgm", ".pnm",
)  # fmt: skip
_WITH_PILLOW_HEIF = (".heic", ".heif")
# Pictures too, but nothing here reads them.
_OTHER_PICTURES = (
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".eps", ".erf", ".exr", ".hdr", ".iiq",
    ".jxl", ".jxr", ".kdc", ".mrw", ".nef", ".nrw", ".orf", ".pcx", ".pef", ".psb", ".psd", ".raf",
    ".rw2", ".rwl", ".sr2", ".srw", ".svg", ".tga", ".x3f", ".xcf",
)  # fmt: skip
_VIDEOS = (
    ".avi",
    ".m2ts",
    ".m4v",
    ".mkv",
    ".mov",
    ".mp4",
    ".mpeg",
    ".mpg",
    ".mts",
    ".webm",
    ".wmv",
)
# Folders in which programs keep what was deleted, or small copies.
_NOT_ENTERED = (
    "$recycle.bin", "#recycle", "@eadir", ".@__thumb", ".appledouble", ".thumbnails", ".trash",
    ".trashes", "__macosx",
)  # fmt: skip


@dataclass
class FoundImages:
    """What a folder holds.

    Attributes:
        paths: files with a picture's ending, sorted; broken links, special files and folders
            that may not be opened are among them, so that reading them says what is wrong.
        result_folders: folders that were left out because a command filled them.
        unreadable: files by an ending that belongs to pictures and cannot be read here.
        videos: number of files with a video's ending.
    """

    paths: list[Path] = field(default_factory=list)
    result_folders: list[Path] = field(default_factory=list)
    unreadable: Counter[str] = field(default_factory=Counter)
    videos: int = 0

    def say_what_was_left_out(self) -> None:
        """Log a line for each kind of what was left out."""
        if self.result_folders:
            logger.warning(
                "skipped %d folder(s) with results of earlier runs, the first: %s",
                len(self.result_folders),
                self.result_folders[0],
            )
        if self.unreadable:
            counted = ", ".join(f"{count} {ending}" for ending, count in self.unreadable.items())
            hint = ""
            if any(ending in self.unreadable for ending in _WITH_PILLOW_HEIF):
                hint = "; pip install pillow-heif reads heic"
            logger.warning("skipped pictures that cannot be read: %s%s", counted, hint)
        if self.videos:
            logger.warning("skipped %d video(s): dr2pipe video takes them", self.videos)


@lru_cache(maxsize=1)
def readable_endings() -> tuple[str, ...]:
    """Endings, in small letters, of the pictures that can be read here."""
    Image.init()
    known = Image.registered_extensions()
    endings = tuple(e for e in _READABLE if e in known or e == ".jfif")
    if find_spec("pillow_heif") is None:
        return endings
    from pillow_heif import register_heif_opener

    register_heif_opener()
    return endings + _WITH_PILLOW_HEIF


def find_images(
    folder: str | Path, *, exclude: tuple[Path, ...] = (), with_results: bool = False
) -> FoundImages:
    """The pictures below ``folder``, by their endings (any letter case).

    Folders with results of earlier runs are left out, unless ``with_results``; so are trash and
    thumbnail folders. Linked folders are entered once, so a loop of links ends.

    Args:
        exclude: files and folders that are left out.

    Raises:
        UnreadableFileError: the folder itself may not be opened.
    """
    folder = Path(folder)
    excluded = {os.path.realpath(path) for path in exclude}
    endings = readable_endings()
    unreadable_endings = _OTHER_PICTURES + tuple(
        e for e in _READABLE + _WITH_PILLOW_HEIF if e not in endings
    )
    seen: set[str] = set()
    found = FoundImages()

    def note(error: OSError) -> None:  # reading the folder as a picture tells why
        if Path(error.filename) == folder:
            raise UnreadableFileError(folder, f"the folder cannot be opened: {error.strerror}")
        found.paths.append(Path(error.filename))

    for parent, folders, names in os.walk(folder, followlinks=True, onerror=note):
        real = os.path.realpath(parent)
        if real in seen or real in excluded:
            folders.clear()
            continue
        seen.add(real)
        results = frozenset() if with_results else result_folders(parent)
        own_files = result_files(parent)
        found.result_folders += [Path(parent) / name for name in folders if name in results]
        folders[:] = sorted(name for name in folders if name not in results and not _is_trash(name))
        for name in names:
            # macOS keeps a companion "._name" of each file on foreign disks; it is no picture.
            ending = os.path.splitext(name)[1].lower()
            if name.startswith("._") or not ending or name in own_files:
                continue
            path = Path(parent) / name
            if ending in endings and os.path.realpath(path) not in excluded:
                found.paths.append(path)
            elif ending in unreadable_endings:
                found.unreadable[ending] += 1
            elif ending in _VIDEOS:
                found.videos += 1
    found.paths.sort(key=lambda path: path.relative_to(folder).parts)
    return found


def is_picture_path(relative: str) -> bool:
    """Whether :func:`find_images` would take a file of this path below a folder, by its name."""
    *folders, name = relative.split("/")
    is_picture = os.path.splitext(name)[1].lower() in readable_endings()
    return is_picture and not name.startswith("._") and not any(map(_is_trash, folders))


def _is_trash(name: str) -> bool:
    name = name.lower()
    return name in _NOT_ENTERED or name.startswith((".trash-", ".trashed-"))
