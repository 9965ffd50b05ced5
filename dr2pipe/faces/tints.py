"""The tint of a monochrome face: a page may be of other colours than its portraits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dr2pipe.core import images
from dr2pipe.faces.align import Alignment

# The part of an aligned crop by which a face's colours are judged, and its least side in the photo.
_MIDDLE, _LEAST_MIDDLE_PX = 0.6, 4


@dataclass
class FaceTint:
    """The tint of a monochrome face, found in a part of the photo.

    Attributes:
        tint: of this part.
        top, left, height, width: where it lies in the photo, in pixels.
    """

    tint: images.Tint
    top: int
    left: int
    height: int
    width: int

    def apply(self, pixels: images.Levels, top: int, left: int, scale: int) -> images.Levels:
        """(H,W,3) in its colours, of a patch at a place of the photo enlarged ``scale`` times."""
        place = images.Place(
            top - self.top * scale,
            left - self.left * scale,
            self.height * scale,
            self.width * scale,
        )
        return self.tint.apply(pixels, place)


def find_tint_of_face(
    pixels: images.Pixels, alignment: Alignment, of_photo: images.Tint | None
) -> FaceTint | None:
    """The tint of a face by its middle; beside it there may be a mount, or a page.

    Args:
        pixels: (H,W,3) uint8 RGB, the photo or the frame of a video.
        alignment: of the face.
        of_photo: what :func:`dr2pipe.core.images.find_tint` finds in it.

    Returns:
        None for a face in colour.
    """
    corners = alignment.corners()
    middle = corners.mean(axis=0)
    inner = middle + (corners - middle) * _MIDDLE
    height, width = pixels.shape[:2]
    left, top = np.clip(np.floor(inner.min(axis=0)), 0, [width, height]).astype(int)
    right, bottom = np.clip(np.ceil(inner.max(axis=0)), 0, [width, height]).astype(int)
    part = pixels[top:bottom, left:right]
    if min(part.shape[:2]) < _LEAST_MIDDLE_PX:  # a face at the edge
        return None if of_photo is None else FaceTint(of_photo, 0, 0, height, width)
    found = images.find_face_tint(part, on_monochrome=of_photo is not None)
    if found is None:
        return None
    return FaceTint(found, int(top), int(left), part.shape[0], part.shape[1])
