"""What a run of the page gave: pictures, sentences, and a zip of all files."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dr2pipe.core import images
from dr2pipe.core.errors import PictureError
from dr2pipe.core.records import RunRecords, read_jsonl
from dr2pipe.web.visits import Photo, write_preview

NO_FACE_FOUND = "No face was found: add a larger or sharper scan that shows the whole face."

_SPREAD_BRIGHTNESS = 4  # as in the spread maps of a run
_ALIKE = (
    "The variants are the same: stage 1 was left out, and it alone is random. Choose a preset with "
    "stage 1, and mild, medium or severe damage, for variants that differ."
)


@dataclass
class Done:
    """A photo after a run.

    Attributes:
        name: of the photo.
        seed: of the run.
        before: a picture that browsers show.
        after: likewise.
        restored: the result's file, as ``dr2pipe restore`` writes it.
        faces: the files of the restored faces.
        lines: what became of it, in sentences.
        command: what makes the same file.
    """

    name: str
    seed: int
    before: Path
    after: Path
    restored: Path
    faces: list[Path]
    lines: list[str]
    command: str


@dataclass
class Outcome:
    """What a click on "restore" gave.

    Attributes:
        done: for each variant, its photos.
        spread: pictures of where the variants of the largest face differ, by photo.
        zip: all results with the manifest.
        failures: sentences about photos that could not be restored.
    """

    done: list[list[Done]]
    spread: dict[str, Path] = field(default_factory=dict)
    zip: Path | None = None
    failures: list[str] = field(default_factory=list)


def record_of(output: Path, photo: Photo) -> dict[str, Any]:
    """What the manifest says of a photo.

    Raises:
        PictureError: the photo failed; the message says why.
    """
    for record in RunRecords(output).finished().values():
        if record["path"] == photo.name:
            return record
    failures = read_jsonl(output / "failures.jsonl").records
    reasons = [str(record["message"]) for record in failures if record["path"] == photo.name]
    raise PictureError(reasons[-1] if reasons else "it could not be restored")


def sentences(record: dict[str, Any], numbers: Sequence[int], count: int) -> list[str]:
    """What became of a photo, for people.

    Args:
        record: of the manifest.
        numbers: of the chosen faces in the order of the record, as the page shows them, from 1.
        count: of all faces of the photo.
    """
    if not record.get("faces", []):
        return [f"{NO_FACE_FOUND} The photo is as it was."]
    faces = list(zip(numbers, record["faces"], strict=True))
    restored = [number for number, face in faces if "skipped" not in face]
    lines = [f"Faces restored: {len(restored)} of {count}."]
    lines += [
        f"Face {number} was left as it is: {face['skipped']}."
        for number, face in faces
        if "skipped" in face
    ]
    likeness = [
        f"face {number} {face['identity']:.2f}"
        for number, face in faces
        if "identity" in face and "skipped" not in face
    ]
    lines += [f"Likeness to the photo (0 to 1): {', '.join(likeness)}."] if likeness else []

    def as_shown(place: re.Match[str]) -> str:
        return f"face {numbers[int(place[1])]}"

    notes = [re.sub(r"^face (\d+)", as_shown, text) for text in record.get("warnings", [])]
    return lines + [f"Note: {note}." for note in notes]


def add_spreads(outcome: Outcome, folder: Path) -> None:
    """Add pictures of where the variants of the largest restored face differ, by photo."""
    for photos in zip(*outcome.done, strict=False):
        if not all(one.faces for one in photos):
            continue
        faces = [images.decode_image(images.read_file(one.faces[0])).pixels for one in photos]
        deviation = np.stack(faces).astype(np.float64).std(axis=0).mean(axis=2)
        if not deviation.any():
            for one in photos:
                one.lines.append(_ALIKE)
            continue
        grey = images.round_to_uint8(deviation * _SPREAD_BRIGHTNESS)
        pixels = np.repeat(grey[..., None], 3, axis=2)
        name = photos[0].name
        outcome.spread[name] = write_preview(pixels, folder / "spread" / f"{name}.png")


def zip_results(folder: Path, outcome: Outcome, shown: Sequence[Photo]) -> Path:
    """All results of a run with the manifest, the marks and the commands; no path of the server."""
    path = folder / "dr2pipe.zip"
    several = len(outcome.done) > 1
    commands = dict.fromkeys(one.command for done in outcome.done for one in done)
    with zipfile.ZipFile(path, "w") as archive:  # pictures are compressed already
        for done in outcome.done:
            output = done[0].restored.parents[1]
            top = f"seed_{done[0].seed}/" if several else ""
            for part in ("restored", "faces"):
                for file in sorted((output / part).rglob("*")):
                    if file.is_file():
                        archive.write(file, f"{top}{file.relative_to(output).as_posix()}")
            archive.write(output / "manifest.jsonl", f"{top}manifest.jsonl")
        archive.writestr("commands.txt", "\n".join(commands) + "\n")
        if (folder / "faces.json").exists():
            archive.write(folder / "faces.json", "faces.json")
        for photo in shown:
            if photo.marks is not None:
                archive.write(photo.marks, f"marks/{photo.name}.png")
    return path
