"""``dr2pipe cut-faces``: the aligned faces of photos, as training takes them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dr2pipe.core import files, images
from dr2pipe.core.errors import ConfigError
from dr2pipe.core.records import versions
from dr2pipe.faces import (
    DetectorConfig,
    align,
    build_detector,
    cut,
    estimate_quality,
    select_faces,
)
from dr2pipe.restoration.photos import describe_face
from dr2pipe.restoration.placing import PlacedFace, PreparedPhoto
from dr2pipe.runs.batches import BatchResult, RunSummary
from dr2pipe.runs.folder_run import FolderRun
from dr2pipe.runs.options import RunOptions
from dr2pipe.runs.result_folders import FACES
from dr2pipe.runs.steps import Steps

TABLE = "faces.csv"
_POINTS = ("eyeL", "eyeR", "nose", "mouthL", "mouthR")
_COLUMNS = [
    *("file", "photo", "score", "side_px", "effective_px", "noise"),
    *(f"{point}_{axis}" for point in _POINTS for axis in "xy"),
]


@dataclass
class CutConfig:
    """Settings of ``dr2pipe cut-faces``."""

    input: str  # a photo or a folder of photos (recursive)
    output: str
    size: int = 256  # side of the faces in pixels
    min_px: int | None = None  # smaller faces are left out: side in the photo; None: size
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    options: RunOptions = field(default_factory=RunOptions)


@dataclass
class _CutPhoto(PreparedPhoto):
    """A photo whose faces are named after it."""

    stem: str = ""


def cut_faces(config: CutConfig) -> RunSummary:
    """Fill ``output/faces`` with a folder for each photo, and write ``output/faces.csv``.

    The table has a row for each face: where its landmarks lie in it, in pixels (the first
    pixel's centre at 0.5), and how good it is.

    Raises:
        Dr2pipeError: an invalid setting, or the detector's weights are missing.
    """
    min_px = config.size if config.min_px is None else config.min_px
    if config.size < 16 or min_px < 1:
        raise ConfigError(f"size={config.size} must be at least 16, and min_px={min_px} at least 1")
    detector = build_detector(config.detector)

    def prepare(picture: images.Picture, path: str) -> PreparedPhoto:
        height, width = picture.pixels.shape[:2]
        found = detector.detect(picture.pixels, path)
        chosen = select_faces(found, config.detector, (height, width))
        placed = []
        for face in chosen:
            alignment = align(face.landmarks)
            look = cut(picture.pixels, alignment, config.size)
            quality = estimate_quality(picture.pixels, alignment)
            is_small = alignment.side_px < min_px
            skipped = f"smaller than {min_px} pixels" if is_small else None
            tensor = images.to_tensor(look)
            placed.append(PlacedFace(face, alignment, quality, tensor, look, skipped))
        return _CutPhoto(picture, placed, stem=Path(path).stem)

    def process(photos: list[_CutPhoto], _: list[int], __: list[images.Picture]) -> BatchResult:
        pixels = [
            {FACES: {f"{photo.stem}_{n:03}": face.look for n, face in _kept(photo)}}
            for photo in photos
        ]
        records: list[dict[str, Any]] = [
            {"faces": [_describe(f, n, p, config.size) for n, f in enumerate(p.faces)]}
            for p in photos
        ]
        warnings = [[] if _kept(photo) else ["no face was cut out"] for photo in photos]
        return BatchResult(pixels, [{} for _ in photos], warnings, records=records)

    settings = _settings(config, min_px)
    run = FolderRun(
        config.input,
        config.output,
        Steps(
            process=process,
            size=None,
            output_size=None,
            settings=settings,
            outputs=[FACES],
            seed=0,
            batch_size=8,
            prepare=prepare,
            options=config.options,
            png_text={"settings": settings},
        ),
        run_description={
            "config": dataclasses.asdict(config),
            "settings": settings,
            "versions": versions(),
        },
    )
    return run.run_with_table(TABLE, _table)


def _settings(config: CutConfig, min_px: int) -> dict[str, Any]:
    listed = config.detector.file
    detector = dataclasses.asdict(config.detector)
    detector["file"] = None if listed is None else files.sha256(listed)
    return {"size": config.size, "min_px": min_px, "detector": detector}


def _kept(photo: PreparedPhoto) -> list[tuple[int, PlacedFace]]:
    return [(n, face) for n, face in enumerate(photo.faces) if face.skipped is None]


def _describe(face: PlacedFace, number: int, photo: _CutPhoto, size: int) -> dict[str, Any]:
    record = describe_face(face)
    if face.skipped is None:
        record["file"] = f"{photo.stem}_{number:03}.png"
        record["in_crop"] = (face.alignment.landmarks * size).round(2).tolist()
    return record


def _table(records: list[dict[str, Any]]) -> list[list[Any]]:
    lines: list[list[Any]] = [_COLUMNS]
    for record in records:
        folder = Path(record["output"]).with_suffix("").as_posix()
        for face in record.get("faces", []):
            if "file" not in face:
                continue
            points = [value for point in face["in_crop"] for value in point]
            quality = [face["quality"][name] for name in ("effective_px", "noise")]
            values = [f"{folder}/{face['file']}", record["path"], face["score"], face["side_px"]]
            lines.append([*values, *quality, *points])
    return lines
