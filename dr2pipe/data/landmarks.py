"""Where eyes and mouth are: from a csv of five points, or GFP-GAN's file for FFHQ."""

from __future__ import annotations

import _codecs
import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from dr2pipe.core.errors import Dr2pipeError
from dr2pipe.core.foreign import read_csv
from dr2pipe.core.weights import read_tensors

Parts = npt.NDArray[np.float64]

# Columns of the csv. Half a side of a part is a share of a distance: of an eye, that between the
# eyes; of the mouth, that between its corners.
_POINTS = ("eyeL", "eyeR", "mouthL", "mouthR")
_EYE_SHARE, _MOUTH_SHARE = 0.22, 0.5
_SMALLEST_HALF_SIDE = 16 / 512
_OFFICIAL_SIZE = 512
# Where the middle between the eyes of aligned faces lies, over all faces of a file, and how far
# apart the eyes are: shares of the side.
_EYES_WITHIN, _LEAST_APART = ((0.35, 0.28), (0.65, 0.68)), 0.12


def read_parts(path: str | Path, size: int = 512) -> dict[str, Parts]:
    """Places of left eye, right eye and mouth, by the picture's path in the file, less its ending.

    Args:
        path: csv with ``file`` and ``eyeL_x``, ``eyeL_y``, ``eyeR_...``, ``mouthL_...``,
            ``mouthR_...`` in pixels (the first pixel's centre at 0.5), or a ``.pth`` like
            FFHQ_eye_mouth_landmarks_512.pth, which is for faces of 512 pixels.
        size: side in pixels of the faces in which the csv's points lie.

    Returns:
        (3,3) for each face. Rows are left eye (left in the picture), right eye and mouth;
        columns are x, y and half a side of the part, as shares of the face's side.

    Raises:
        Dr2pipeError: no such file, one without these columns, landmarks outside the face or of
            faces of another size, swapped eyes, or the same name twice.
    """
    path = Path(path)
    if not os.path.lexists(path):
        raise Dr2pipeError(f"no landmarks at {path}")
    parts = _read_official(path) if path.suffix == ".pth" else _read_csv(path, size)
    for name, found in parts.items():
        if not ((found[:, :2] > 0) & (found[:, :2] < 1)).all():
            raise Dr2pipeError(f"{path}: the landmarks of {name} lie outside {_of_size(size)}")
        left, right, mouth = found
        if left[0] >= right[0]:
            raise Dr2pipeError(
                f"{path}: the left eye of {name} is right of its right eye; eyeL is the eye that "
                "lies left in the picture"
            )
        if mouth[1] <= min(left[1], right[1]):
            raise Dr2pipeError(f"{path}: the mouth of {name} lies above its eyes")
    if parts:
        middle = np.median([found[:2, :2].mean(axis=0) for found in parts.values()], axis=0)
        apart = np.median([found[1, 0] - found[0, 0] for found in parts.values()])
        if (
            not ((middle > _EYES_WITHIN[0]) & (middle < _EYES_WITHIN[1])).all()
            or apart < _LEAST_APART
        ):
            raise Dr2pipeError(
                f"{path}: the eyes are {apart:.2f} of the side apart, about "
                f"({middle[0]:.2f}, {middle[1]:.2f}); they are not those of {_of_size(size)}"
            )
    return parts


def match_parts(parts: Mapping[str, Parts], faces: Sequence[str]) -> dict[str, Parts]:
    """The places of each face, by the longest common ending of its path and that in the file.

    Args:
        parts: see :func:`read_parts`.
        faces: paths of pictures.

    Raises:
        Dr2pipeError: a face without landmarks, or with those of two, or two faces with the same.
    """
    known: dict[tuple[str, ...], list[str]] = {}  # by each ending of a path
    for name in parts:
        for ending in _endings(PurePath(name)):
            known.setdefault(ending, []).append(name)
    missing = [face for face in faces if (PurePath(face).stem,) not in known]
    if missing:
        raise Dr2pipeError(f"{len(missing)} faces have no landmarks, the first is {missing[0]}")
    found: dict[str, Parts] = {}
    users: dict[str, str] = {}
    for face in faces:
        path = PurePath(face)
        names = next(known[e] for e in _endings(path.with_name(path.stem)) if e in known)
        if len(names) > 1:
            raise Dr2pipeError(f"{face} may have the landmarks of {names[0]} or of {names[1]}")
        if names[0] in users:
            raise Dr2pipeError(
                f"{users[names[0]]} and {face} have the same landmarks, of {names[0]}"
            )
        found[face], users[names[0]] = parts[names[0]], face
    return found


def _endings(path: PurePath) -> Iterator[tuple[str, ...]]:
    """The endings of a path, the longest first."""
    for start in range(len(path.parts)):
        yield path.parts[start:]


def _of_size(size: int) -> str:
    return (
        f"aligned faces of {size} pixels; set landmarks_size to the size of the faces in which "
        "they were found"
    )


def _read_csv(path: Path, size: int) -> dict[str, Parts]:
    wanted = [f"{point}_{axis}" for point in _POINTS for axis in "xy"]
    parts: dict[str, Parts] = {}
    for row in read_csv(path, ["file", *wanted]):
        try:
            numbers = [float(row[c]) for c in wanted]
        except ValueError:
            raise Dr2pipeError(f"{path}: no numbers for {row['file']}") from None
        if not np.isfinite(numbers).all():
            raise Dr2pipeError(f"{path}: no numbers for {row['file']}")
        eye_l, eye_r, mouth_l, mouth_r = np.array(numbers).reshape(4, 2) / size
        eye = _EYE_SHARE * float(np.linalg.norm(eye_r - eye_l))
        mouth = _MOUTH_SHARE * float(np.linalg.norm(mouth_r - mouth_l))
        file = PurePath(row["file"])
        name = file.with_name(file.stem).as_posix() if file.name else ""
        if not name:
            raise Dr2pipeError(f"{path} has a line without a file")
        if name in parts:
            raise Dr2pipeError(f"{path} has two faces with the name {name}")
        parts[name] = np.array(
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
        stored = read_tensors(path, allowed=allowed)
    except pickle.UnpicklingError as error:
        raise Dr2pipeError(f"{path} was not loaded: {str(error).splitlines()[0]}") from None
    try:
        for name, found in stored.items():
            rows = [found[part] for part in ("left_eye", "right_eye", "mouth")]
            values = np.array([[float(v) for v in row] for row in rows])
            values[:, :2] += 0.5  # there the first pixel's centre is at 0
            if values.shape != (3, 3) or not np.isfinite(values).all():
                raise ValueError(f"{name} has no three places")
            parts[str(name)] = values / _OFFICIAL_SIZE
    # A file of another kind is wrong in any way.
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise Dr2pipeError(f"{path} holds no landmarks like GFP-GAN's: {error}") from None
    return parts
