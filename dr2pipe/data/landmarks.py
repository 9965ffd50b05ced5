"""Where eyes and mouth are: from a csv of five points, or GFP-GAN's file for FFHQ."""

from __future__ import annotations

import _codecs
import csv
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dr2pipe.core.errors import Dr2pipeError

Parts = npt.NDArray[np.float64]

# Columns of the csv. Half a side of a part is a share of a distance: of an eye, that between the
# eyes; of the mouth, that between its corners.
_POINTS = ("eyeL", "eyeR", "mouthL", "mouthR")
_EYE_SHARE, _MOUTH_SHARE = 0.22, 0.5
_SMALLEST_HALF_SIDE = 16 / 512
_OFFICIAL_SIZE = 512


def read_parts(path: str | Path, size: int = 512) -> dict[str, Parts]:
    """Places of left eye, right eye and mouth, by the stem of the picture's file name.

    Args:
        path: csv with ``file`` and ``eyeL_x``, ``eyeL_y``, ``eyeR_...``, ``mouthL_...``,
            ``mouthR_...`` in pixels (the first pixel's centre at 0.5), or a ``.pth`` like
            FFHQ_eye_mouth_landmarks_512.pth, which is for faces of 512 pixels.
        size: side in pixels of the faces in which the csv's points lie.

    Returns:
        (3,3) for each face. Rows are left eye (left in the picture), right eye and mouth;
        columns are x, y and half a side of the part, as shares of the face's side.

    Raises:
        Dr2pipeError: no such file, one without these columns, landmarks outside the face, or the
            same name twice.
    """
    path = Path(path)
    if not path.is_file():
        raise Dr2pipeError(f"no landmarks at {path}")
    parts = _read_official(path) if path.suffix == ".pth" else _read_csv(path, size)
    for name, found in parts.items():
        if not ((found[:, :2] > 0) & (found[:, :2] < 1)).all():
            raise Dr2pipeError(
                f"{path}: the landmarks of {name} lie outside a face of {size} pixels; set "
                f"landmarks_size to the size of the faces in which they were found"
            )
    return parts


def _read_csv(path: Path, size: int) -> dict[str, Parts]:
    wanted = [f"{point}_{axis}" for point in _POINTS for axis in "xy"]
    parts = {}
    with path.open(newline="") as table:
        reader = csv.DictReader(table)
        missing = [c for c in ("file", *wanted) if c not in (reader.fieldnames or [])]
        if missing:
            raise Dr2pipeError(f"{path} has no column {', '.join(missing)}")
        for row in reader:
            try:
                numbers = [float(row[c]) for c in wanted]
            except (TypeError, ValueError):
                raise Dr2pipeError(f"{path}: no numbers for {row['file']}") from None
            eye_l, eye_r, mouth_l, mouth_r = np.array(numbers).reshape(4, 2) / size
            eye = _EYE_SHARE * float(np.linalg.norm(eye_r - eye_l))
            mouth = _MOUTH_SHARE * float(np.linalg.norm(mouth_r - mouth_l))
            stem = Path(row["file"]).stem
            if stem in parts:
                raise Dr2pipeError(f"{path} has two faces with the name {stem}")
            parts[stem] = np.array(
                [_part(eye_l, eye), _part(eye_r, eye), _part((mouth_l + mouth_r) / 2, mouth)]
            )
    return parts


def _part(centre: npt.NDArray[np.float64], half: float) -> list[float]:
    return [*centre, max(half, _SMALLEST_HALF_SIDE)]


def _read_official(path: Path) -> dict[str, Parts]:
    parts = {}
    # The file holds NumPy's numbers, which NumPy's own function rebuilds. The file may call that
    # function by the name it has in NumPy 1 or in NumPy 2.
    number: Any = np.float64(0).__reduce__()[0]
    allowed: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
        (number, "numpy.core.multiarray.scalar"),
        (number, "numpy._core.multiarray.scalar"),
        np.dtype,
        *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)),
        _codecs.encode,
    ]
    try:
        with torch.serialization.safe_globals(allowed):
            stored = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise Dr2pipeError(f"{path} was not loaded: {str(error).splitlines()[0]}") from None
    for name, found in stored.items():
        rows = [found[part] for part in ("left_eye", "right_eye", "mouth")]
        values = np.array([[float(v) for v in row] for row in rows])
        values[:, :2] += 0.5  # there the first pixel's centre is at 0
        parts[str(name)] = values / _OFFICIAL_SIZE
    return parts
