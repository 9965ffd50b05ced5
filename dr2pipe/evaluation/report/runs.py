"""The report of a folder run: one HTML page that can be sent to the owner of the photos."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dr2pipe.core import images
from dr2pipe.core.config import to_yaml
from dr2pipe.core.errors import ConfigError, Dr2pipeError
from dr2pipe.core.markers import read_marker
from dr2pipe.core.records import FAILURES, RunRecords, read_jsonl
from dr2pipe.evaluation.report import plots
from dr2pipe.evaluation.report.pages import encode_webp, uri_of, write_page, write_plots

_FACES_PER_SECTION = 6
_SHOWN_PX = 320  # side of a face on the page
_AROUND = 1.8  # side of what is shown, in sides of the face's box
_QUALITY = 85
_NAMES_LISTED = 5


@dataclass(frozen=True)
class RunFace:
    """A restored face of a run, or a picture of a run on aligned faces.

    Attributes:
        picture: relative path of its picture.
        record: the picture's line of the manifest.
        notes: what was measured of the face.
        box: (x, y, width, height) in pixels of the input; None for the whole picture.
    """

    picture: str
    record: dict[str, Any]
    notes: dict[str, Any]
    box: list[float] | None

    @property
    def likeness(self) -> float | None:
        """Similarity of input and result to a recognition network; None where not measured."""
        return _number(self.notes.get("identity"))

    @property
    def spread(self) -> float | None:
        """How much several samples of the face differ, in levels of 255; None for one sample."""
        return _number(self.notes.get("spread"))


def write_run_report(run: str | Path, *, source: str | Path | None = None) -> Path:
    """Write ``report.html`` into the output folder of ``dr2pipe restore``.

    Args:
        run: the output folder.
        source: folder of the original pictures, where they were moved since the run.

    Returns:
        The path of the page.

    Raises:
        ConfigError: the folder is not of such a run.
    """
    run = Path(run)
    if source is not None and not Path(source).is_dir():
        raise ConfigError(f"{source} is no folder of pictures")
    marker = read_marker(run)
    if marker is None or "settings" not in marker:
        raise ConfigError(f"{run} is no output folder of dr2pipe restore")
    records = RunRecords(run).finished()
    failed = [f for f in read_jsonl(run / FAILURES).records if f.get("path") not in records]
    inputs = [Path(source)] if source is not None else []
    if source is None and isinstance(marker.get("inputs"), list):
        inputs = [Path(name) for name in marker["inputs"] if isinstance(name, str)]
    faces = list(_faces(records.values()))
    skipped = [(r, f) for r in records.values() for f in _dicts(r.get("faces")) if "skipped" in f]
    sections, missing = _sections(run, inputs, faces)
    without = [r["path"] for r in records.values() if r.get("faces") == []]
    left = [("no face was found", path) for path in without]
    left += [(_kind_of(str(face["skipped"])), record["path"]) for record, face in skipped]
    seconds = [s for r in records.values() if (s := _number(r.get("seconds"))) is not None]
    drawings = {
        "likeness": plots.plot_histogram(
            [f.likeness for f in faces], "likeness of input and result", "faces"
        ),
        "detail": plots.plot_histogram(
            [_detail(f) for f in faces], "detail of the face before, in pixels a side", "faces"
        ),
        "seconds": plots.plot_histogram(seconds, "seconds of restoring", "pictures"),
    }
    settings = marker["settings"]
    hashes = Counter(r.get("settings") for r in records.values())
    content = {
        "title": f"Restored photos: {run.resolve().name}",
        "lead": f"{len(records)} pictures, restored by dr2pipe. Trained networks made parts of them.",
        "counts": _counts(records, faces, len(skipped), failed, seconds),
        "missing": missing,
        "sections": sections,
        "left": _listed(left),
        "failures": _listed((_kind_of(str(f.get("message", ""))), f.get("path")) for f in failed),
        "warnings": _listed(
            (_kind_of(str(w)), r["path"]) for r in records.values() for w in r.get("warnings", [])
        ),
        "plots": write_plots(None, drawings),
        "plot_titles": {
            "likeness": "histogram of the likeness of input and result",
            "detail": "histogram of the faces' detail before",
            "seconds": "histogram of the seconds of each picture",
        },
        "chosen": _listed(
            (_setting(auto), f.picture)
            for f in faces
            if isinstance(auto := f.notes.get("auto"), dict)
        ),
        "others": _others(hashes),
        "settings": to_yaml({"settings": settings, "versions": marker.get("versions", {})}),
    }
    return write_page(run, "run.html", content)


def _faces(records: Iterable[dict[str, Any]]) -> Iterator[RunFace]:
    for record in records:
        if "faces" not in record:  # of a run on aligned faces
            yield RunFace(record["path"], record, record.get("notes", {}), None)
            continue
        for face in _dicts(record["faces"]):
            box = face.get("box")
            if "skipped" not in face and isinstance(box, list) and len(box) == 4:
                yield RunFace(record["path"], record, face, [float(v) for v in box])


def _counts(
    records: dict[str, Any],
    faces: list[RunFace],
    skipped: int,
    failed: list[dict[str, Any]],
    seconds: list[float],
) -> dict[str, str]:
    counts = {"pictures": len(records), "faces restored": len(faces)}
    counts |= {"faces left as they are": skipped, "failures": len(failed)}
    times = {"restoring in all": _duration(sum(seconds))} if seconds else {}
    return {name: str(value) for name, value in counts.items()} | times


def _sections(
    run: Path, inputs: list[Path], faces: list[RunFace]
) -> tuple[list[dict[str, Any]], str | None]:
    """Faces with their pictures, in groups; and a sentence where originals are missing."""
    known = [face for face in faces if face.likeness is not None]
    known.sort(key=lambda face: -(face.likeness or 0))
    count = min(_FACES_PER_SECTION, max(1, len(known) // 3))  # no face stands there twice
    start = (len(known) - count) // 2
    groups = {
        "The most like before": known[:count],
        "In the middle": known[start : start + count] if len(known) > 2 else [],
        "The least like before: look at these": known[::-1][:count] if len(known) > 1 else [],
    }
    spread = sorted((f for f in faces if f.spread is not None), key=lambda f: -(f.spread or 0))
    groups["The most uncertain: samples differ"] = spread[:_FACES_PER_SECTION]
    if not known and not spread:
        groups = {"Some of them": faces[:_FACES_PER_SECTION]}
    sections, lost = [], 0
    for title, members in groups.items():
        cards = []
        for face in members:
            card = _card(run, inputs, face)
            lost += card is None
            cards += [card] if card is not None else []
        if cards:
            sections.append({"title": title, "cards": cards})
    if not lost:
        return sections, None
    places = ", ".join(map(str, inputs)) or "their folder"
    return (
        sections,
        f"{lost} faces are not shown: their pictures cannot be read in {places} or in {run}.",
    )


def _card(run: Path, inputs: list[Path], face: RunFace) -> dict[str, Any] | None:
    """A face before and after; None where one of the pictures cannot be read."""
    place = face.record.get("input", 0)
    folder = inputs[place] if isinstance(place, int) and place < len(inputs) else None
    folder = inputs[0] if len(inputs) == 1 else folder
    if folder is None:
        return None
    name, _, page = face.picture.partition("#")
    path = folder / name if folder.is_dir() else folder
    try:
        page_number = int(page) - 1 if page.isdecimal() else None
        before = images.decode_image(
            images.read_file(path), page=page_number, whole_photo=True
        ).pixels
        after = images.decode_result(images.read_file(run / str(face.record["output"]))).pixels
    except (Dr2pipeError, OSError, KeyError):
        return None
    scale = after.shape[1] / before.shape[1]
    shown = [
        _around(pixels, face.box, factor) for pixels, factor in ((before, 1.0), (after, scale))
    ]
    likeness, spread = face.likeness, face.spread
    values = [] if likeness is None else [f"likeness {likeness:.2f}"]
    values += [] if spread is None else [f"spread {spread:.1f} of 255"]
    return {
        "picture": face.picture,
        "value": ", ".join(values) or "restored",
        **{
            side: uri_of(encode_webp(pixels, quality=_QUALITY), "webp")
            for side, pixels in zip(("before", "after"), shown, strict=True)
        },
    }


def _around(
    pixels: npt.NDArray[np.uint8], box: list[float] | None, scale: float
) -> npt.NDArray[np.uint8]:
    """(S,S,3) uint8: a square around a face; the whole picture where there is no box."""
    height, width = pixels.shape[:2]
    x, y, w, h = (0.0, 0.0, float(width), float(height))
    side = max(w, h)
    if box is not None:
        x, y, w, h = (value * scale for value in box)
        side = _AROUND * max(w, h)
    # Moved into the photo where it fits; beyond the border its pixels are repeated.
    side = max(1, round(min(side, max(height, width))))
    left = min(max(round(x + w / 2 - side / 2), 0), max(0, width - side))
    top = min(max(round(y + h / 2 - side / 2), 0), max(0, height - side))
    rows = np.clip(np.arange(top, top + side), 0, height - 1)
    columns = np.clip(np.arange(left, left + side), 0, width - 1)
    square = pixels[rows[:, None], columns]
    return np.asarray(images.resize_pixels(square, (_SHOWN_PX, _SHOWN_PX)), np.uint8)


def _listed(found: Iterable[tuple[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a table: each kind with its number and some names, the most frequent first."""
    names: dict[str, list[str]] = {}
    for what, name in found:
        names.setdefault(what, []).append(str(name))
    ordered = sorted(names.items(), key=lambda item: -len(item[1]))
    return [
        {"what": what, "count": len(found), "examples": list(dict.fromkeys(found))[:_NAMES_LISTED]}
        for what, found in ordered
    ]


def _kind_of(message: str) -> str:
    """A message without its numbers, so that equal kinds are counted together."""
    return re.sub(r"\d+(\.\d+)?", "…", message) or "no reason was recorded"


def _setting(auto: dict[str, Any]) -> str:
    if not auto.get("enabled", True):
        return "without stage 1"
    return ", ".join(
        f"{symbol} = {auto[name]}"
        for symbol, name in (("N", "factor"), ("τ", "tau"), ("ω", "omega"))
        if name in auto
    )


def _others(hashes: Counter[Any]) -> str | None:
    if len(hashes) < 2:
        return None
    _, count = hashes.most_common(1)[0]
    others = sum(hashes.values()) - count
    return f"{others} pictures were made with other settings than the rest."


def _detail(face: RunFace) -> float | None:
    quality = face.notes.get("quality")
    return _number(quality.get("effective_px")) if isinstance(quality, dict) else None


def _dicts(found: Any) -> list[dict[str, Any]]:
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and np.isfinite(value) else None


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{minutes:.1f} min" if minutes >= 1 else f"{seconds:.1f} s"
