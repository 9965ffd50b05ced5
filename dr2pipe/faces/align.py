"""Faces cut from photos, turned and scaled so that eyes, nose and mouth lie where FFHQ has them.

Coordinates are continuous: the first pixel reaches from 0 to 1, and its centre is at 0.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from dr2pipe.core.errors import PictureError
from dr2pipe.core.images import Pixels, resize_pixels

Points = npt.NDArray[np.float64]  # (N,2): x and y in pixels
Matrix = npt.NDArray[np.float64]  # (2,3): maps (x, y, 1)

# Eyes (left in the picture first), nose and corners of the mouth in aligned faces of FFHQ, as
# shares of the side.
TEMPLATE: Points = (
    np.array(
        [
            [192.98138, 239.94708],
            [318.90277, 240.1936],
            [256.63416, 314.01935],
            [201.26117, 371.41043],
            [313.08905, 371.15118],
        ]
    )
    / 512
)
_LEAST_SIDE_PX = 4.0
# Turning without antialiasing first loses less than reducing twice, up to this ratio of sizes.
_TURNED_WHOLE = 1.2
_TAPS_PX = 4  # what interpolation looks at beside a pixel


@dataclass(frozen=True, eq=False)
class Alignment:
    """Where a face lies in a photo.

    Attributes:
        to_crop: (2,3), maps pixels of the photo to shares of the side of the aligned crop.
        landmarks: (5,2), the landmarks in shares of the side of the crop.
    """

    to_crop: Matrix
    landmarks: Points

    @property
    def side_px(self) -> float:
        """Side of the crop in pixels of the photo."""
        return float(1 / np.hypot(self.to_crop[0, 0], self.to_crop[1, 0]))

    @property
    def to_photo(self) -> Matrix:
        """(2,3), maps shares of the side of the crop to pixels of the photo."""
        return np.asarray(cv2.invertAffineTransform(self.to_crop), np.float64)

    def corners(self) -> Points:
        """(4,2), the corners of the crop in pixels of the photo."""
        return apply(self.to_photo, np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float64))

    def scaled(self, scale: float) -> Alignment:
        """The alignment in the same photo, enlarged ``scale`` times."""
        matrix = self.to_crop.copy()
        matrix[:, :2] /= scale
        return Alignment(matrix, self.landmarks)


def apply(matrix: Matrix, points: Points) -> Points:
    """Map (N,2) points by a (2,3) matrix."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def align(landmarks: Points) -> Alignment:
    """The similarity transform that brings (5,2) landmarks of a photo to the template of FFHQ.

    It fits by the least median of squares, so that one wrong landmark does not count
    (Rousseeuw 1984).

    Raises:
        PictureError: landmarks that are not those of a face, such as five equal points.
    """
    points = np.asarray(landmarks, np.float64)
    if points.shape != TEMPLATE.shape or not np.isfinite(points).all():
        raise PictureError("a face needs five landmarks")
    # In units of their own spread, so that the fit does not depend on the photo's size.
    middle, spread = points.mean(axis=0), float(np.ptp(points, axis=0).max())
    if spread > 0:
        matrix, _ = cv2.estimateAffinePartial2D(
            (points - middle) / spread * 512, TEMPLATE * 512, method=cv2.LMEDS
        )
        if matrix is not None:
            to_crop = np.asarray(matrix, np.float64) / 512
            to_crop[:, :2] *= 512 / spread
            to_crop[:, 2] -= to_crop[:, :2] @ middle
            found = Alignment(to_crop, apply(to_crop, points))
            if np.isfinite(to_crop).all() and found.side_px >= _LEAST_SIDE_PX:
                return found
    raise PictureError("the landmarks are not those of a face")


def cut(pixels: Pixels, alignment: Alignment, size: int) -> Pixels:
    """The aligned face, (size,size,3) uint8, from a photo (H,W,3) uint8.

    A face that is larger than ``size`` is reduced with antialiasing first, then turned. Where
    the crop leaves the photo, the photo is continued as in a mirror.
    """
    shrink = shrink_before_turning(alignment.side_px, size)
    margin = _TAPS_PX / shrink
    low = np.floor(alignment.corners().min(axis=0) - margin).astype(int)
    high = np.ceil(alignment.corners().max(axis=0) + margin).astype(int)
    region = _mirrored(pixels, low, high)
    height, width = region.shape[:2]
    to_crop = alignment.to_crop.copy()
    to_crop[:, 2] += to_crop[:, :2] @ low
    if shrink < 1:
        small = (max(1, round(height * shrink)), max(1, round(width * shrink)))
        region = resize_pixels(region, small)
        to_crop[:, 0] *= width / small[1]
        to_crop[:, 1] *= height / small[0]
    return np.asarray(warp(region, to_crop * size, (size, size)), np.uint8)


def shrink_before_turning(side_px: float, size: float) -> float:
    """By how much a side is reduced before it is turned into ``size``; 1: turning is enough."""
    return size / side_px if side_px > _TURNED_WHOLE * size else 1.0


def warp(
    pixels: npt.NDArray[Any], matrix: Matrix, size: tuple[int, int], *, to_target: bool = True
) -> npt.NDArray[Any]:
    """(H,W[,C]) turned and scaled to ``size`` = (height, width), by Lanczos interpolation.

    Args:
        pixels: uint8, uint16 or float32; beyond its border it is continued as in a mirror.
        matrix: (2,3), between pixels of ``pixels`` and pixels of the result.
        size: of the result.
        to_target: the matrix maps ``pixels`` to the result; false: the other way round.
    """
    # OpenCV counts from the centre of the first pixel.
    shifted = matrix.copy()
    shifted[:, 2] += matrix[:, :2] @ [0.5, 0.5] - 0.5
    flags = cv2.INTER_LANCZOS4 | (0 if to_target else cv2.WARP_INVERSE_MAP)
    height, width = size
    return np.asarray(
        cv2.warpAffine(
            pixels, shifted, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT_101
        )
    )


def _mirrored(pixels: Pixels, low: npt.NDArray[Any], high: npt.NDArray[Any]) -> Pixels:
    """The part from ``low`` to ``high`` (x, y), continued where it leaves the photo."""
    rows = _mirror_index(int(low[1]), int(high[1]), pixels.shape[0])
    columns = _mirror_index(int(low[0]), int(high[0]), pixels.shape[1])
    if rows[-1] - rows[0] == len(rows) - 1 and columns[-1] - columns[0] == len(columns) - 1:
        return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return pixels[np.ix_(rows, columns)]


def _mirror_index(start: int, stop: int, length: int) -> npt.NDArray[np.int64]:
    """start..stop-1 folded into 0..length-1, the border pixel not repeated."""
    if length == 1:
        return np.zeros(stop - start, np.int64)
    period = 2 * (length - 1)
    index = np.abs(np.arange(start, stop) % period)
    return np.asarray(np.where(index < length, index, period - index), np.int64)
