"""A face in a photo, and what finds faces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dr2pipe.core.images import Pixels

Points = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Face:
    """A face in a photo. Coordinates are pixels of the photo, the first pixel's centre at 0.5.

    Attributes:
        box: x, y, width, height. It may leave the photo a little.
        landmarks: (5,2) x, y of the eyes, the nose and the corners of the mouth; of two, the one
            that is left where the face is upright comes first. They may leave the photo a little.
        score: 0..1, how sure the detector is; 1 for listed faces without a score.
    """

    box: tuple[float, float, float, float]
    landmarks: Points
    score: float

    @property
    def side_px(self) -> float:
        """The box's smaller side in pixels."""
        return min(self.box[2:])

    @property
    def area_px(self) -> float:
        """The box's area in square pixels."""
        return self.box[2] * self.box[3]


class FaceDetector(Protocol):
    """Finds faces. Several threads may call it at once."""

    def detect(self, image: Pixels, path: str = "") -> list[Face]:
        """The faces of a photo, the largest first.

        Args:
            image: (H,W,3) uint8 sRGB.
            path: the photo's relative path, by which a detector may look it up.

        Raises:
            PictureError: what is known about this photo cannot be true.
        """
        ...
