"""Restored faces put back into their photos, inside soft ovals; the rest of a photo is unchanged."""

from __future__ import annotations

from collections.abc import Sequence
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


def face_patch(
    restored: npt.NDArray[np.float32],
    alignment: Alignment,
    photo_size: tuple[int, int],
    neighbours: Sequence[Alignment] = (),
) -> Patch | None:
    """Turn a restored face back into its place.

    Args:
        restored: (S,S,3) float32 sRGB, levels of 0..255, in the alignment's crop.
        alignment: of the face in the photo.
        photo_size: height and width of the photo.
        neighbours: alignments of other faces that are pasted. Where two ovals overlap, a pixel
            belongs to the face whose middle is nearer, measured in ovals.

    Returns:
        The part of the photo that changes; None for a face outside the photo.
    """
    height, width = photo_size
    low = np.maximum(np.floor(alignment.corners().min(axis=0)).astype(int), 0)
    high = np.minimum(np.ceil(alignment.corners().max(axis=0)).astype(int), [width, height])
    if (high <= low).any():
        return None
    weights = _weights(alignment, low, high, neighbours)  # (h,w)
    (rows,), (columns,) = (np.nonzero((weights > 0).any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return None
    part = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    weights = weights[part]
    left, top = int(low[0] + columns[0]), int(low[1] + rows[0])
    side = len(restored)
    shrink = shrink_before_turning(side, alignment.side_px)
    if shrink < 1:
        side = max(1, round(side * shrink))
        small = cv2.resize(restored, (side, side), interpolation=cv2.INTER_AREA)
        restored = np.asarray(small, np.float32)
    to_crop = alignment.to_crop * side
    to_crop[:, 2] += to_crop[:, :2] @ [left, top]
    shape = (int(weights.shape[0]), int(weights.shape[1]))
    pixels = warp(restored, to_crop, shape, to_target=False)
    return Patch(top, left, np.asarray(pixels, np.float32), weights)


def face_mask(alignment: Alignment, size: int) -> Weights:
    """(size,size) weights of the alignment's crop: 1 in the face, 0 at the crop's border."""
    places = (np.mgrid[:size, :size][::-1].reshape(2, -1).T + 0.5) / size
    return _fade(places, alignment).reshape(size, size)


def _weights(
    alignment: Alignment,
    low: npt.NDArray[np.int64],
    high: npt.NDArray[np.int64],
    neighbours: Sequence[Alignment],
) -> Weights:
    """Weights of the photo's pixels from ``low`` to ``high`` (x, y)."""
    width, height = high - low
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
