"""What the page keeps of a visitor: a folder of his own, with his photos and results."""

from __future__ import annotations

import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dr2pipe.core import files, images
from dr2pipe.core.errors import PictureError, TooManyPixelsError
from dr2pipe.faces import Face


@dataclass(frozen=True)
class Limits:
    """What a visitor may upload."""

    megabytes: int = 50  # of a file
    pixels: int = images.MAX_PIXELS  # of a photo
    photos: int = 20  # at a time


@dataclass
class FoundFace:
    """A face of an uploaded photo.

    Attributes:
        face: where it is.
        about: a few words on its state.
        skipped: why it is left as it is with the usual settings; None where it is restored.
        degraded: (1,3,S,S) in [-1,1], as the networks see it.
    """

    face: Face
    about: str
    skipped: str | None
    degraded: torch.Tensor


@dataclass
class Photo:
    """An uploaded photo.

    Attributes:
        name: of its file.
        path: where it lies.
        size: height and width in pixels.
        before: a picture of it that browsers show.
        boxes: the same with the numbered boxes of its faces.
        faces: what was found, the largest first.
        marks: a mask of the places that were marked with the brush; None without.
    """

    name: str
    path: Path
    size: tuple[int, int]
    before: Path
    boxes: Path
    faces: list[FoundFace]
    marks: Path | None = None


@dataclass
class Visit:
    """One visitor's photos.

    Attributes:
        folder: of his own; its name cannot be guessed.
        photos: by name.
        chosen: numbers of the faces to restore, by photo, where they were chosen.
        references: folder of photos of the person, or None.
        takes: how often photos were added.
        runs: how many runs there were.
        outcome: of the latest.
        shown: name of the photo that the page shows.
        used: when it was used last, in seconds.
        working: how many of its events are at work.
        asked: how many of its events wait for their turn.
        waiting: uploads that wait for their turn.
    """

    folder: Path
    photos: dict[str, Photo] = field(default_factory=dict)
    chosen: dict[str, list[int]] = field(default_factory=dict)
    references: Path | None = None
    takes: int = 0
    runs: int = 0
    outcome: Any = None
    shown: str | None = None
    used: float = field(default_factory=time.monotonic)
    working: int = 0
    asked: int = 0
    waiting: set[Path] = field(default_factory=set)

    def new_folder(self, name: str) -> Path:
        """An empty folder."""
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def replace_photos(self, photos: dict[str, Photo], folder: Path) -> None:
        """Have other photos, which lie in ``folder``; the former and their results are removed."""
        self.photos, self.chosen, self.outcome = photos, {}, None
        self.shown = next(iter(photos))
        for path in self.folder.iterdir():
            if path not in (folder, self.references):
                shutil.rmtree(path, ignore_errors=True)


_LONGEST_WAIT_SECONDS = 86400.0  # for a turn


class Visits:
    """All visitors, each with a folder below ``root``.

    Args:
        root: folder of the server.
        idle_seconds: visits that were not used for so long are removed.
        stray_seconds: so are other files below ``root``, such as uploads that were not taken.
    """

    def __init__(self, root: Path, *, idle_seconds: float = 3600, stray_seconds: float = 300):
        self.root, self.idle_seconds, self.stray_seconds = root, idle_seconds, stray_seconds
        self._visits: dict[str, Visit] = {}
        self._lock = threading.Lock()

    def of(self, session: str) -> Visit:
        """The visit of a browser's session; a new one at first."""
        with self._lock:
            if session not in self._visits:
                folder = self.root / secrets.token_urlsafe(24)
                folder.mkdir(parents=True)
                self._visits[session] = Visit(folder)
            visit = self._visits[session]
            visit.used = time.monotonic()
            return visit

    def ask(self, session: str, uploads: Sequence[str]) -> None:
        """Keep a visit, and files that it has just sent, until their turn comes."""
        visit = self.of(session)
        with self._lock:
            visit.asked += 1
            visit.waiting = visit.waiting | {Path(upload) for upload in uploads}

    @contextmanager
    def at_work(self, session: str, uploads: Sequence[str] = ()) -> Iterator[Visit]:
        """The visit of a session, which is kept as long as the block lasts."""
        visit = self.of(session)
        with self._lock:
            visit.working += 1
            visit.asked = max(visit.asked - 1, 0)  # a program asks for no turn before
        try:
            yield visit
        finally:
            with self._lock:
                visit.working -= 1
                visit.used = time.monotonic()
                visit.waiting = visit.waiting - {Path(upload) for upload in uploads}

    def end(self, session: str) -> None:
        """Remove all that a visitor left."""
        with self._lock:
            visit = self._visits.pop(session, None)
        if visit is not None:
            shutil.rmtree(visit.folder, ignore_errors=True)

    def sweep(self) -> None:
        """Remove visits that nobody used for long, and what gradio copied for visits that ended."""
        now = time.monotonic()
        with self._lock:
            idle = [session for session, v in self._visits.items() if self._is_idle(v, now)]
            kept = {visit.folder for visit in self._visits.values()}
            kept |= {
                self.root / upload.relative_to(self.root).parts[0]
                for visit in self._visits.values()
                for upload in visit.waiting
                if upload.is_relative_to(self.root)
            }
        for session in idle:
            self.end(session)
        kept.add(self.root / files.LOCK_NAME)
        for path in self.root.iterdir():
            if path not in kept and time.time() - path.stat().st_mtime > self.stray_seconds:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def _is_idle(self, visit: Visit, now: float) -> bool:
        if visit.working:
            return False
        patience = _LONGEST_WAIT_SECONDS if visit.asked else self.idle_seconds
        return now - visit.used > patience

    def sweep_for_ever(self, every_seconds: float = 60.0) -> None:
        """Sweep in a thread of its own as long as the process lives."""

        def work() -> None:
            while self.root.exists():
                time.sleep(every_seconds)
                with suppress(OSError):  # the next time again
                    self.sweep()

        threading.Thread(target=work, daemon=True).start()

    def __len__(self) -> int:
        return len(self._visits)


def take_upload(path: str | Path, folder: Path, limits: Limits) -> tuple[Path, images.Picture]:
    """Copy an uploaded file into ``folder`` and decode it.

    The upload itself stays for the sweep: two visitors who send the same file share it.

    Raises:
        PictureError: no picture, or one over the limits.
    """
    path = Path(path)
    try:
        if path.suffix.lower() not in images.readable_endings():
            known = ", ".join(ending.removeprefix(".") for ending in images.readable_endings())
            raise PictureError(f"this kind of file is not read; there are {known}")
        data = images.read_file(path, max_bytes=limits.megabytes * 1_000_000)
        picture = images.decode_image(
            data, max_pixels=limits.pixels, keep_own=True, whole_photo=True
        )
        target = folder / path.name
        files.write_bytes(target, data)
    except TooManyPixelsError:
        raise PictureError(
            f"{path.name} has more than {limits.pixels / 1e6:g} million pixels: save a smaller copy "
            "and add that"
        ) from None
    except PictureError as error:
        raise PictureError(
            f"{path.name} cannot be used ({error}): add the photo as another file, such as JPEG or PNG"
        ) from None
    except OSError as error:
        raise PictureError(f"{path.name} cannot be kept: {describe_disk(error)}") from None
    return target, picture


def describe_disk(error: OSError) -> str:
    """What an error of the disk says and what to do, without any path of the server."""
    reason = (error.strerror or type(error).__name__).lower()
    return f"{reason}. Free some space on the computer that serves this page, then try again"


def write_preview(pixels: images.Pixels, path: Path) -> Path:
    """Write (H,W,3) uint8 sRGB at full size as a PNG that browsers show."""
    files.write_bytes(path, images.encode_png(np.ascontiguousarray(pixels)))
    return path
