"""Which faces of a photo are worked on: the detectors by name, and what is kept of their finds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dr2pipe.core.errors import ConfigError
from dr2pipe.core.images import Pixels
from dr2pipe.faces.face import Face, FaceDetector
from dr2pipe.faces.listed import load_list
from dr2pipe.faces.yunet import load_detector

__all__ = [
    "DETECTORS",
    "DetectorConfig",
    "Face",
    "FaceDetector",
    "build_detector",
    "select_faces",
]

CHOICES = ("all", "largest", "center")


@dataclass
class DetectorConfig:
    """Which faces of a photo are restored. ``file`` belongs to the detector ``file``."""

    name: str = "yunet"  # yunet | file | none
    file: str | None = None  # csv or JSON of faces, see faces/listed.py
    min_px: int = 16  # smaller side of a face's box, in pixels of the photo
    max_count: int = 1000  # most faces of a photo, the largest first
    min_score: float = 0.7  # 0..1, how sure the detector must be
    only: str = "all"  # all | largest | center: the face nearest to the photo's middle


class NoDetector:
    """Finds nothing."""

    def detect(self, image: Pixels, path: str = "") -> list[Face]:
        """An empty list."""
        return []


def _load_listed(config: DetectorConfig) -> FaceDetector:
    if not config.file:
        raise ConfigError(
            "the face detector 'file' needs its setting 'file': a csv or JSON of faces"
        )
    return load_list(config.file)


DETECTORS: dict[str, Callable[[DetectorConfig], FaceDetector]] = {
    "yunet": lambda config: load_detector(config.min_score, config.min_px),
    "file": _load_listed,
    "none": lambda config: NoDetector(),
}


def build_detector(config: DetectorConfig) -> FaceDetector:
    """The detector that a configuration names.

    Raises:
        ConfigError: an unknown name, or a setting that is out of range or belongs to another
            detector; a list of faces that cannot be read.
        MissingPackageError: the package that carries the detector's weights is not there.
    """
    check_detector(config)
    return DETECTORS[config.name](config)


def check_detector(config: DetectorConfig) -> None:
    """See that the settings are in range.

    Raises:
        ConfigError: one is not.
    """
    if config.name not in DETECTORS:
        raise ConfigError(
            f"unknown face detector '{config.name}'; choose from {', '.join(DETECTORS)}"
        )
    if config.file and config.name != "file":
        raise ConfigError(
            f"a list of faces ({config.file}) belongs to the face detector 'file', not to "
            f"'{config.name}'"
        )
    if config.only not in CHOICES:
        raise ConfigError(f"unknown only={config.only}; choose from {', '.join(CHOICES)}")
    for name in ("min_px", "max_count"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} must be 1 or more, not {getattr(config, name)}")
    if not 0 < config.min_score <= 1:
        raise ConfigError(f"min_score must be over 0 and at most 1, not {config.min_score}")


def select_faces(
    faces: Sequence[Face], config: DetectorConfig, image_size: tuple[int, int]
) -> list[Face]:
    """The faces that are worked on, the largest first.

    Args:
        faces: of a photo.
        config: thresholds and choice.
        image_size: height and width of the photo in pixels.
    """
    # Who lists a face wants it.
    kept = [
        face
        for face in faces
        if config.name == "file"
        or (face.side_px >= config.min_px and face.score >= config.min_score)
    ]
    kept.sort(key=lambda face: (-face.area_px, face.box))
    if config.only == "largest":
        return kept[:1]
    if config.only == "center":
        height, width = image_size
        kept.sort(key=lambda face: _distance(face, width / 2, height / 2))
        return kept[:1]
    return kept[: config.max_count]


def _distance(face: Face, x: float, y: float) -> float:
    left, top, width, height = face.box
    return math.hypot(left + width / 2 - x, top + height / 2 - y)
