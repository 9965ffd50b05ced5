"""The faces of whole photos: found, aligned, judged, and cut for the networks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from dr2pipe.core import images
from dr2pipe.core.errors import PictureError
from dr2pipe.faces import (
    Alignment,
    DetectorConfig,
    Face,
    FaceDetector,
    FaceTint,
    Quality,
    align,
    cut,
    estimate_quality,
    find_tint_of_face,
    select_faces,
)
from dr2pipe.restoration.background import enlarged

_MOST_SIDES = 4  # of a photo that a face's crop may have
# A batch of photos ends when they have so many pixels, however few faces they have.
_BATCH_PIXELS = 48_000_000
_PHOTOS_PER_FACE = 4  # or when there are so many photos for each face of a full batch


@dataclass
class FacesConfig(DetectorConfig):
    """Which faces are restored, and how much."""

    mode: str = "photos"  # photos | aligned: the inputs are aligned faces
    skip_good: bool = True  # leave faces alone that are better than the network's results
    blend: float = 1.0  # 0..1: share of the restored face in the result


@dataclass
class PlacedFace:
    """A face of a photo on its way through the networks.

    Attributes:
        face: as it was found.
        alignment: where it lies.
        quality: what can be told of it before it is restored.
        degraded: (1,3,S,S) in [-1,1], the aligned face; S is the networks' input size.
        look: (R,R,3), the same at the size of the results.
        skipped: why it is left as it is; None where it is restored.
        tint: the colours of a monochrome face, whose luma alone the networks see; None for one in
            colour.
    """

    face: Face
    alignment: Alignment
    quality: Quality
    degraded: torch.Tensor
    look: images.Pixels
    skipped: str | None
    tint: FaceTint | None = None

    @property
    def place(self) -> str:
        """The point between the eyes in whole pixels; the face's seed depends on it."""
        x, y = np.round(self.face.landmarks[:2].mean(axis=0)).astype(int)
        return f"{x},{y}"


@dataclass
class PreparedPhoto:
    """A photo and its faces.

    Attributes:
        picture: with ``own``.
        faces: the largest first.
        scale: how much the photo will be enlarged.
    """

    picture: images.Picture
    faces: list[PlacedFace]
    scale: int = 1

    def share_of_batch(self, batch_size: int) -> float:
        """How much of a batch of ``batch_size`` faces it fills, from 0 to 1 or more."""
        height, width = self.picture.pixels.shape[:2]
        faces = sum(face.skipped is None for face in self.faces)
        by_count = max(faces, 1 / _PHOTOS_PER_FACE) / batch_size
        return float(max(by_count, height * width * self.scale**2 / _BATCH_PIXELS))


class FacePlacer:
    """Finds and aligns the faces of photos. It needs no network but the detector's.

    Args:
        detector: finds faces.
        faces: which of them are restored.
        input_size: side in pixels of the faces that the networks take.
        output_size: side in pixels of their results.
        scale: how much photos will be enlarged.
        keep_tint: monochrome faces stay so.
    """

    def __init__(
        self,
        detector: FaceDetector,
        faces: FacesConfig,
        *,
        input_size: int,
        output_size: int,
        scale: int = 1,
        keep_tint: bool = True,
    ):
        self.detector, self.faces, self.scale = detector, faces, scale
        self.keep_tint = keep_tint
        self.input_size, self.output_size = input_size, output_size

    def prepare(self, picture: images.Picture, path: str = "") -> PreparedPhoto:
        """Find and align the faces of a decoded photo, which must have ``own``.

        Args:
            picture: the photo.
            path: its relative path, by which a list of faces knows it.

        Raises:
            PictureError: the list says something impossible of this photo.
        """
        tint = images.find_tint(picture.pixels) if self.keep_tint else None
        seen = picture.pixels if tint is None else images.to_grey(picture.pixels)
        found = self.detector.detect(seen, path)
        if picture.stretch is not None:  # more noise can be seen now, and more of the faces too
            before = np.asarray(picture.stretch.undo(seen), np.uint8)
            found = max(found, self.detector.detect(before, path), key=len)
        size = picture.pixels.shape[:2]
        chosen = select_faces(found, self.faces, (size[0], size[1]))
        if picture.alpha is not None and self.scale > 1:
            picture.alpha = enlarged(picture.alpha, self.scale)
        placed = [self._place(picture, face, tint) for face in chosen]
        if all(face.tint for face in placed):  # else the page is monochrome, and not its portrait
            picture.pixels, picture.tint = seen, tint
        return PreparedPhoto(picture, placed, self.scale)

    def _place(self, picture: images.Picture, face: Face, tint: images.Tint | None) -> PlacedFace:
        alignment = align(face.landmarks)
        if alignment.side_px > _MOST_SIDES * max(picture.pixels.shape[:2]):
            raise PictureError(
                f"a face with a crop of {alignment.side_px:.0f} pixels is larger than the photo"
            )
        quality = estimate_quality(picture.pixels, alignment)
        skipped = None
        if self.faces.skip_good:
            skipped = good_as_it_is(quality, self.input_size, self.output_size, self.scale)
        degraded = cut(picture.pixels, alignment, self.input_size)
        look = cut(picture.pixels, alignment, self.output_size)
        own = find_tint_of_face(picture.pixels, alignment, tint) if self.keep_tint else None
        if own is not None:
            degraded, look = images.to_grey(degraded), images.to_grey(look)
        return PlacedFace(face, alignment, quality, images.to_tensor(degraded), look, skipped, own)


def good_as_it_is(
    quality: Quality, input_size: int, output_size: int, scale: int = 1
) -> str | None:
    """Why a face is left alone that is better than the networks' results; None where it is not.

    Args:
        quality: of the face.
        input_size: side in pixels of the faces that the networks take.
        output_size: side in pixels of their results.
        scale: how much the photo will be enlarged.
    """
    # The networks see no detail finer than their input has, and add what is plausible up to
    # the size of their output. Halfway between both, in octaves, more is lost than gained.
    holds = math.sqrt(input_size * output_size)
    if not quality.is_better_than(holds, scale):
        return None
    said = f"good as it is: it has the detail of {quality.effective_px:.0f} pixels a side"
    if quality.effective_px >= holds:
        return f"{said}; the networks, which give {holds:.0f}, would only reduce it"
    return f"{said}, all that its size allows ({quality.side_px:.0f})"
