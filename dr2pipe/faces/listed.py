"""Faces that a file lists: corrections by hand, or the finds of another detector."""

from __future__ import annotations

import logging
import math
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from dr2pipe.core.errors import ConfigError, PictureError, UnreadableFileError
from dr2pipe.core.foreign import read_numbered_csv, read_object
from dr2pipe.core.images import Pixels
from dr2pipe.faces.face import Face, Points

logger = logging.getLogger(__name__)

_POINTS = ("eyeL", "eyeR", "nose", "mouthL", "mouthR")
_POINT_COLUMNS = [f"{point}_{axis}" for point in _POINTS for axis in "xy"]
_BOX_COLUMNS = ("x", "y", "width", "height")
_JSON_KEYS = ("box", "landmarks", "score")
# Width and height of YuNet's boxes, and how far their middle lies below that of the eyes: in
# distances between the eyes.
_BOX_WIDTH, _BOX_HEIGHT, _BOX_DROP = 2.4, 3.2, 0.45
# Eyes and mouth of an upright frontal face are this many eye distances apart.
_EYES_TO_MOUTH = 1.04


class ListedDetector:
    """Looks faces up by the photo's path. A photo that is not listed has no faces.

    Args:
        path: the list, for messages.
        entries: by the photo's relative path, what the list says about each face and where; see
            :func:`load_list`.
    """

    def __init__(
        self, path: str | Path, entries: Mapping[str, Sequence[tuple[str, Mapping[str, Any]]]]
    ):
        self.path, self.entries = path, entries

    def check_names(self, paths: Iterable[str]) -> None:
        """Compare the list's names with the photos of a run.

        Raises:
            ConfigError: the list names none of them. Some that it names in vain are a warning.
        """
        known = {_normal(path) for path in paths}
        strange = [name for name in self.entries if name not in known]
        if not strange:
            return
        some = ", ".join(strange[:3]) + (", ..." if len(strange) > 3 else "")
        if len(strange) == len(self.entries):
            raise ConfigError(
                f"{self.path} names no photo of the input; it names {some}. Names are paths from "
                "the input folder"
            )
        logger.warning("%s names %d photos that are not there: %s", self.path, len(strange), some)

    def listed_name(self, path: str) -> str:
        """The longest ending of a path that the list names; else the path's last part."""
        parts = PurePath(path).parts
        endings = ["/".join(parts[start:]) for start in range(len(parts))]
        return next((end for end in endings if _normal(end) in self.entries), parts[-1])

    def detect(self, image: Pixels, path: str = "") -> list[Face]:
        """See :class:`dr2pipe.faces.face.FaceDetector`.

        Raises:
            PictureError: a face that cannot be in this photo; the message names file and line.
        """
        faces = []
        for place, entry in self.entries.get(_normal(path), ()):
            try:
                face = _read_face(entry)
                if face is not None:
                    _check_face(face, image.shape[0], image.shape[1])
                    faces.append(face)
            except ValueError as error:
                raise PictureError(f"{self.path}, {place}: {error}") from None
        return sorted(faces, key=lambda face: (-face.area_px, face.box))


def load_list(path: str | Path) -> ListedDetector:
    """Faces from a csv or a JSON file.

    Args:
        path: csv with the columns ``file`` (the photo's path from the input folder), ``eyeL_x``,
            ``eyeL_y``, ``eyeR_x`` ... ``nose_``, ``mouthL_``, ``mouthR_``, and optionally all of
            ``x``, ``y``, ``width``, ``height`` (the box) and ``score``. A line for each face;
            one without numbers says that the photo has none. Or, by the ending .json, an object
            ``{file: [{"landmarks": [[x, y], ...], "box": [x, y, width, height], "score": s}]}``,
            where box and score are optional. Coordinates are pixels of the upright photo, the
            first pixel's centre at 0.5.

    Raises:
        ConfigError: no such file, one of another kind, or a missing column.
    """
    try:
        if Path(path).suffix.lower() == ".json":
            return ListedDetector(path, _read_json(path))
        return ListedDetector(path, _read_csv(path))
    except UnreadableFileError as error:
        raise ConfigError(f"the list of faces {error}") from None


def _read_csv(path: str | Path) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    entries: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for number, line in read_numbered_csv(path, ["file", *_POINT_COLUMNS]):
        with_box = [column for column in _BOX_COLUMNS if column in line]
        if with_box and len(with_box) < len(_BOX_COLUMNS):
            missing = next(column for column in _BOX_COLUMNS if column not in line)
            raise UnreadableFileError(
                path, f"has no column '{missing}', but {', '.join(with_box)} of a box"
            )
        numbers = [line[column].strip() for column in _POINT_COLUMNS]
        entry: dict[str, Any] = {}
        if any(numbers):
            entry["landmarks"] = [numbers[i : i + 2] for i in range(0, len(numbers), 2)]
            box = [line[column].strip() for column in with_box]
            entry |= {"box": box} if any(box) else {}
            entry |= {"score": line["score"]} if line.get("score", "").strip() else {}
        entries.setdefault(_normal(line["file"]), []).append((f"line {number}", entry))
    return entries


def _read_json(path: str | Path) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    entries: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for name, faces in read_object(path).items():
        if not isinstance(faces, list) or not all(isinstance(face, dict) for face in faces):
            raise UnreadableFileError(
                path, f"'{name}' must be a list of objects, one for each face"
            )
        for i, face in enumerate(faces):
            unknown = [key for key in face if key not in _JSON_KEYS]
            if unknown or "landmarks" not in face:
                said = f"unknown '{unknown[0]}'" if unknown else "no 'landmarks'"
                raise UnreadableFileError(
                    path, f"'{name}', face {i + 1}: {said}; a face has {', '.join(_JSON_KEYS)}"
                )
            entries.setdefault(_normal(name), []).append((f"'{name}', face {i + 1}", face))
    return entries


def _normal(path: str) -> str:
    return posixpath.normpath(PurePath(path.strip()).as_posix())


def _read_face(entry: Mapping[str, Any]) -> Face | None:
    if not entry:
        return None
    landmarks = _numbers(entry["landmarks"], (5, 2), "landmarks")
    right, down, down_px, eyes_px = _directions(landmarks)
    if eyes_px == 0 or down_px == 0:
        raise ValueError("the eyes are in one place, or the mouth is between them")
    if right[0] * down[1] - right[1] * down[0] <= 0:
        raise ValueError("the eyes are swapped: eyeL is the eye that lies left in the upright face")
    score = float(_numbers(entry.get("score", 1.0), (), "score"))
    if not 0 <= score <= 1:
        raise ValueError(f"the score must be from 0 to 1, not {score:g}")
    if entry.get("box") is None:
        return Face(box_around(landmarks), landmarks, score)
    x, y, width, height = _numbers(entry["box"], (4,), "box").tolist()
    if width <= 0 or height <= 0:
        raise ValueError(f"the box has the size {width:g} x {height:g}")
    return Face((x, y, width, height), landmarks, score)


def _numbers(values: Any, shape: tuple[int, ...], name: str) -> Points:
    try:
        numbers = np.array(values, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):  # texts, lists of different lengths
        numbers = np.array(np.nan)
    if numbers.shape != shape or not np.isfinite(numbers).all():
        wanted = " x ".join(map(str, shape)) + " finite numbers" if shape else "a finite number"
        raise ValueError(f"{name} must be {wanted}")
    return numbers


def _directions(landmarks: Points) -> tuple[Points, Points, float, float]:
    """From eye to eye, from eyes to mouth (unit vectors), and these two distances in pixels."""
    right = landmarks[1] - landmarks[0]
    down = (landmarks[3] + landmarks[4] - landmarks[0] - landmarks[1]) / 2
    eyes_px, down_px = math.hypot(*right), math.hypot(*down)
    return right / max(eyes_px, 1e-12), down / max(down_px, 1e-12), down_px, eyes_px


def box_around(landmarks: Points) -> tuple[float, float, float, float]:
    """The box x, y, width, height of a face with these landmarks (5,2), as YuNet would draw it."""
    _, down, down_px, eyes_px = _directions(landmarks)
    unit = max(eyes_px, down_px / _EYES_TO_MOUTH)  # one of the two is short in turned heads
    x, y = landmarks[:2].mean(axis=0) + _BOX_DROP * unit * down
    # The box of the oval that the upright box holds.
    width = unit * math.hypot(_BOX_WIDTH * down[1], _BOX_HEIGHT * down[0])
    height = unit * math.hypot(_BOX_WIDTH * down[0], _BOX_HEIGHT * down[1])
    return float(x - width / 2), float(y - height / 2), width, height


def _check_face(face: Face, height: int, width: int) -> None:
    x, y, wide, tall = face.box
    size = f"the photo of {width} x {height} pixels"
    if x >= width or y >= height or x + wide <= 0 or y + tall <= 0:
        raise ValueError(f"the box lies outside {size}")
    sides = np.array([width, height])
    if not ((face.landmarks > 0) & (face.landmarks < sides)).all(axis=1).any():
        raise ValueError(f"the landmarks lie outside {size}")
    if not (np.abs(face.landmarks - sides / 2) <= 1.5 * sides.max()).all():
        raise ValueError(f"some landmarks lie far outside {size}")
