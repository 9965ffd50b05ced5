"""Restored faces put back into their photos, inside soft ovals; the rest of a photo is unchanged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from dr2pipe.faces.align import Alignment, apply, shrink_before_turning, warp

Weights = npt.NDArray[np.float32]  # 0..1

# Half axes of a face's oval, in the larger of two distances: between the eyes, and from the eyes
# to the mouth. Its centre is halfway between eyes and mouth.
_HALF_WIDTH, _HALF_HEIGHT = 1.3, 1.45
# The oval fades over this share of its half axes, and the crop over this share of its side.
_FEATHER, _BORDER = 0.3, 0.06
_ROWS_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class Patch:
    """What is pasted into a photo for one face.

    Attributes:
        top: first row of the patch in the photo.
        left: first column.
        pixels: (h,w,3) float32 sRGB, levels of 0..255.
        weights: (h,w) share of the patch in the result; 0 outside the face.
    """

    top: int
    left: int
    pixels: npt.NDArray[np.float32]
    weights: Weights

    @property
    def place(self) -> tuple[slice, slice]:
        """Its rows and columns in the photo."""
        height, width = self.weights.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


def face_patches(
    restored: npt.NDArray[np.float32],
    alignment: Alignment,
    photo_size: tuple[int, int],
    neighbours: Sequence[Alignment] = (),
) -> Iterator[Patch]:
    """Turn a restored face back into its place, some rows at a time: large faces are large as floats.

    Args:
        restored: (S,S,3) float32 sRGB, levels of 0..255, in the alignment's crop.
        alignment: of the face in the photo.
        photo_size: height and width of the photo.
        neighbours: alignments of the other faces. Where two ovals overlap, a pixel belongs to the
            face whose middle is nearer, measured in ovals.

    Yields:
        The parts of the photo that change, from the top; none for a face outside the photo.
    """
    height, width = photo_size
    low = np.maximum(np.floor(alignment.corners().min(axis=0)).astype(int), 0)
    high = np.minimum(np.ceil(alignment.corners().max(axis=0)).astype(int), [width, height])
    side = len(restored)
    shrink = shrink_before_turning(side, alignment.side_px)
    if shrink < 1:
        side = max(1, round(side * shrink))
        small = cv2.resize(restored, (side, side), interpolation=cv2.INTER_AREA)
        restored = np.asarray(small, np.float32)
    for first in range(low[1], high[1], _ROWS_AT_ONCE):
        last = min(first + _ROWS_AT_ONCE, int(high[1]))
        if high[0] > low[0]:
            weights = _weights(alignment, (low[0], first), (high[0], last), neighbours)  # (h,w)
            (columns,) = np.nonzero((weights > 0).any(axis=0))
            if len(columns):
                left = int(low[0] + columns[0])
                weights = weights[:, columns[0] : columns[-1] + 1]
                to_crop = alignment.to_crop * side
                to_crop[:, 2] += to_crop[:, :2] @ [left, first]
                shape = (int(weights.shape[0]), int(weights.shape[1]))
                pixels = warp(restored, to_crop, shape, to_target=False)
                yield Patch(first, left, np.asarray(pixels, np.float32), weights)


def photo_weights(
    alignment: Alignment, photo_size: tuple[int, int], neighbours: Sequence[Alignment] = ()
) -> Weights:
    """(H,W) share of a face's result in every pixel of the photo; see :func:`face_patches`."""
    weights = np.zeros(photo_size, np.float32)
    nothing = np.zeros((1, 1, 3), np.float32)
    for patch in face_patches(nothing, alignment, photo_size, neighbours):
        weights[patch.place] = patch.weights
    return weights


def face_mask(alignment: Alignment, size: int) -> Weights:
    """(size,size) weights of the alignment's crop: 1 in the face, 0 at the crop's border."""
    places = (np.mgrid[:size, :size][::-1].reshape(2, -1).T + 0.5) / size
    return _fade(places, alignment).reshape(size, size)


def _weights(
    alignment: Alignment,
    low: tuple[int, int],
    high: tuple[int, int],
    neighbours: Sequence[Alignment],
) -> Weights:
    """Weights of the photo's pixels from ``low`` to ``high`` (x, y)."""
    width, height = high[0] - low[0], high[1] - low[1]
    pixels = np.mgrid[low[1] : high[1], low[0] : high[0]][::-1].reshape(2, -1).T + 0.5
    places = apply(alignment.to_crop, pixels)
    weights = _fade(places, alignment)
    inside = np.flatnonzero(weights)
    own = _oval_distance(places[inside], alignment)
    for other in neighbours:
        theirs = _oval_distance(apply(other.to_crop, pixels[inside]), other)
        # Both shares add up to 1 along the line between the two faces.
        share = _smooth(0.5 + (theirs - own) / _FEATHER)
        weights[inside] *= np.where(theirs < 1, share, 1)
    return weights.reshape(height, width)


def _fade(places: npt.NDArray[np.float64], alignment: Alignment) -> Weights:
    """Weights at (N,2) places of the crop, in shares of its side."""
    oval = _smooth((1 - _oval_distance(places, alignment)) / _FEATHER)
    border = _smooth(np.minimum(places, 1 - places).min(axis=1) / _BORDER)
    return oval * border


def _oval_distance(places: npt.NDArray[np.float64], alignment: Alignment) -> Weights:
    """Distance of (N,2) places of the crop from the middle of the face: 1 on its oval."""
    eyes, mouth = alignment.landmarks[:2], alignment.landmarks[3:]
    middle = (eyes.mean(axis=0) + mouth.mean(axis=0)) / 2
    # In profile the eyes lie close together, so the larger distance tells the face's size.
    apart = np.linalg.norm(eyes[0] - eyes[1])
    size = float(max(apart, np.linalg.norm(eyes.mean(axis=0) - mouth.mean(axis=0))))
    away_x = (places[:, 0] - middle[0]) / (size * _HALF_WIDTH)
    away_y = (places[:, 1] - middle[1]) / (size * _HALF_HEIGHT)
    return np.asarray(np.hypot(away_x, away_y), np.float32)


def _smooth(x: npt.NDArray[np.float32] | npt.NDArray[np.float64]) -> Weights:
    """0 below 0, 1 above 1, and without an edge between."""
    limited = np.asarray(np.clip(x, 0, 1), np.float32)
    return np.asarray(limited * limited * (3 - 2 * limited), np.float32)
