"""Where eyes and mouth are: from a csv of five points, or GFP-GAN's file for FFHQ."""

from __future__ import annotations

import _codecs
import csv
import pickle
from pathlib import Path

import numpy as np
import torch

# Columns of the csv, and the halves of the parts' sides they give: shares of the distance
# between the eyes and between the corners of the mouth.
_POINTS = ("eyeL", "eyeR", "mouthL", "mouthR")
_EYE_SHARE, _MOUTH_SHARE = 0.22, 0.5
_SMALLEST_HALF_SIDE = 16 / 512
_OFFICIAL_SIZE = 512


def read_parts(path: str | Path, size: int = 512) -> dict[str, np.ndarray]:
    """Left eye, right eye and mouth by the stem of the picture's file name.

    Args:
        path: csv with ``file`` and ``eyeL_x``, ``eyeL_y``, ``eyeR_...``, ``mouthL_...``,
            ``mouthR_...`` in pixels (the first pixel's centre at 0.5), or a ``.pth`` like
            FFHQ_eye_mouth_landmarks_512.pth, which is for faces of 512 pixels.
        size: side in pixels of the faces that the csv speaks of.

    Returns:
        (3,3) float64 each: x, y and half a side of the part, as shares of the face's side; left
        is left in the picture.

    Raises:
        ValueError: no such file, one without these columns, landmarks outside the face, or one
            name twice.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no landmarks at {path}")
    parts = _read_official(path) if path.suffix == ".pth" else _read_csv(path, size)
    for name, found in parts.items():
        if not ((found[:, :2] > 0) & (found[:, :2] < 1)).all():
            raise ValueError(
                f"{path}: the landmarks of {name} lie outside a face of {size} pixels; what size "
                f"does the file speak of (landmarks_size)?"
            )
    return parts


def _read_csv(path: Path, size: int) -> dict[str, np.ndarray]:
    wanted = [f"{point}_{axis}" for point in _POINTS for axis in "xy"]
    parts = {}
    with path.open(newline="") as table:
        reader = csv.DictReader(table)
        missing = [c for c in ("file", *wanted) if c not in (reader.fieldnames or [])]
        if missing:
            raise ValueError(f"{path} has no column {', '.join(missing)}")
        for row in reader:
            try:
                numbers = [float(row[c]) for c in wanted]
            except (TypeError, ValueError):
                raise ValueError(f"{path}: no numbers for {row['file']}") from None
            eye_l, eye_r, mouth_l, mouth_r = np.array(numbers).reshape(4, 2) / size
            eye = _EYE_SHARE * np.linalg.norm(eye_r - eye_l)
            mouth = _MOUTH_SHARE * np.linalg.norm(mouth_r - mouth_l)
            stem = Path(row["file"]).stem
            if stem in parts:
                raise ValueError(f"{path} has two faces of the name {stem}")
            parts[stem] = np.array(
                [_part(eye_l, eye), _part(eye_r, eye), _part((mouth_l + mouth_r) / 2, mouth)]
            )
    return parts


def _part(centre: np.ndarray, half: float) -> list[float]:
    return [*centre, max(half, _SMALLEST_HALF_SIDE)]


def _read_official(path: Path) -> dict[str, np.ndarray]:
    parts = {}
    multiarray = np._core.multiarray if hasattr(np, "_core") else np.core.multiarray
    number = multiarray.scalar  # the file holds NumPy's numbers, which are no code
    names = [(number, "numpy.core.multiarray.scalar"), (number, "numpy._core.multiarray.scalar")]
    kinds = [np.dtype, *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64))]
    try:
        with torch.serialization.safe_globals([*names, *kinds, _codecs.encode]):
            stored = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} was not loaded: {str(error).splitlines()[0]}") from None
    for name, found in stored.items():
        rows = [found[part] for part in ("left_eye", "right_eye", "mouth")]
        values = np.array([[float(v) for v in row] for row in rows])
        values[:, :2] += 0.5  # there the first pixel's centre is at 0
        parts[str(name)] = values / _OFFICIAL_SIZE
    return parts
