"""Whole photos: faces are found, aligned, restored in batches, and pasted back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from dr2pipe.core import images
from dr2pipe.core.config import stable_seed
from dr2pipe.core.errors import ConfigError, PictureError
from dr2pipe.diffusion.low_pass import build_low_pass
from dr2pipe.faces import (
    Alignment,
    DetectorConfig,
    Face,
    FaceDetector,
    Quality,
    align,
    cut,
    estimate_quality,
    face_mask,
    face_patches,
    select_faces,
)
from dr2pipe.restoration.background import Background, enlarged
from dr2pipe.restoration.face_batches import FaceRestorer, RestoredFace

NO_FACE = "no face was found"
_MOST_SIDES = 4  # of a photo that a face's crop may have
# A batch of photos ends when they have so many pixels, however few faces they have.
_BATCH_PIXELS = 48_000_000
_PHOTOS_PER_FACE = 4  # or when there are so many photos for each face of a full batch
# Colours are matched where they change slowly: by so many cells a side of the crop.
_COLOUR_CELLS, _COLOUR_PASSES = 8, 3


@dataclass
class FacesConfig(DetectorConfig):
    """Which faces are restored, and how much."""

    mode: str = "photos"  # photos | aligned: the inputs are aligned faces
    skip_good: bool = True  # leave faces alone that are better than the network's results
    blend: float = 1.0  # 0..1: share of the restored face in the result


@dataclass
class PasteConfig:
    """How restored faces are put back."""

    match_colours: bool = True  # keep the colours of the photo where they change slowly


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
    """

    face: Face
    alignment: Alignment
    quality: Quality
    degraded: torch.Tensor
    look: images.Pixels
    skipped: str | None

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


@dataclass
class FaceReport:
    """What became of a face.

    Attributes:
        record: for the manifest.
        pieces: (S,S,3) or (S,S) uint8: ``input``, ``coarse``, ``restored`` and ``mask``; empty
            for a face that was skipped.
        warnings: sentences.
    """

    record: dict[str, Any]
    pieces: dict[str, images.Pixels] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


@dataclass
class RestoredPhoto:
    """A photo with its faces restored.

    Attributes:
        levels: (H,W) or (H,W,3) in the file's own colour space; None where nothing changed.
        faces: one report for each face.
        warnings: sentences.
    """

    levels: images.Levels | None
    faces: list[FaceReport]
    warnings: list[str]


class FacePlacer:
    """Finds and aligns the faces of photos. It needs no network but the detector's.

    Args:
        detector: finds faces.
        faces: which of them are restored.
        input_size: side in pixels of the faces that the networks take.
        output_size: side in pixels of their results.
        scale: how much photos will be enlarged.
    """

    def __init__(
        self,
        detector: FaceDetector,
        faces: FacesConfig,
        *,
        input_size: int,
        output_size: int,
        scale: int = 1,
    ):
        self.detector, self.faces, self.scale = detector, faces, scale
        self.input_size, self.output_size = input_size, output_size

    def prepare(self, picture: images.Picture, path: str = "") -> PreparedPhoto:
        """Find and align the faces of a decoded photo, which must have ``own``.

        Args:
            picture: the photo.
            path: its relative path, by which a list of faces knows it.

        Raises:
            PictureError: the list says something impossible of this photo.
        """
        found = self.detector.detect(picture.pixels, path)
        if picture.stretch is not None:  # more noise can be seen now, and more of the faces too
            before = np.asarray(picture.stretch.undo(picture.pixels), np.uint8)
            found = max(found, self.detector.detect(before, path), key=len)
        size = picture.pixels.shape[:2]
        chosen = select_faces(found, self.faces, (size[0], size[1]))
        if picture.alpha is not None and self.scale > 1:
            picture.alpha = enlarged(picture.alpha, self.scale)
        placed = [self._place(picture, face) for face in chosen]
        return PreparedPhoto(picture, placed, self.scale)

    def _place(self, picture: images.Picture, face: Face) -> PlacedFace:
        alignment = align(face.landmarks)
        if alignment.side_px > _MOST_SIDES * max(picture.pixels.shape[:2]):
            raise PictureError(
                f"a face with a crop of {alignment.side_px:.0f} pixels is larger than the photo"
            )
        quality = estimate_quality(picture.pixels, alignment)
        skipped = None
        if self.faces.skip_good:
            skipped = good_as_it_is(quality, self.input_size, self.output_size, self.scale)
        degraded = images.to_tensor(cut(picture.pixels, alignment, self.input_size))
        look = cut(picture.pixels, alignment, self.output_size)
        return PlacedFace(face, alignment, quality, degraded, look, skipped)


class PhotoEngine:
    """Finds the faces of photos, restores them, and pastes them back.

    Args:
        restorer: restores aligned faces in batches.
        detector: finds faces.
        faces: which of them are restored.
        paste: how they are put back.
        background: enlarges the photo around them.
    """

    def __init__(
        self,
        restorer: FaceRestorer,
        detector: FaceDetector,
        *,
        faces: FacesConfig,
        paste: PasteConfig,
        background: Background,
    ):
        if not 0 <= faces.blend <= 1:
            raise ConfigError(f"faces.blend={faces.blend} must lie in 0..1")
        self.restorer, self.background = restorer, background
        self.faces, self.paste_config = faces, paste
        self.placer = FacePlacer(
            detector,
            faces,
            input_size=restorer.input_size,
            output_size=restorer.output_size,
            scale=background.scale,
        )

    @property
    def detector(self) -> FaceDetector:
        """What finds the faces."""
        return self.placer.detector

    def prepare(self, picture: images.Picture, path: str = "") -> PreparedPhoto:
        """See :meth:`FacePlacer.prepare`."""
        return self.placer.prepare(picture, path)

    def restore(self, photos: Sequence[PreparedPhoto], seeds: Sequence[int]) -> list[RestoredPhoto]:
        """Restore the faces of several photos, which share batches, and paste them.

        Args:
            photos: as :meth:`prepare` returns them.
            seeds: one for each photo. A face's result depends on it and the face's place, not on
                the batch.
        """
        wanted = [(photo, face) for photo in photos for face in photo.faces if not face.skipped]
        by_photo = {id(photo): seed for photo, seed in zip(photos, seeds, strict=True)}
        face_seeds = [stable_seed(by_photo[id(photo)], face.place) for photo, face in wanted]
        restored = self.restorer(
            [face.degraded for _, face in wanted], face_seeds, [face.look for _, face in wanted]
        )
        by_face = {
            id(face): (result, seed)
            for (_, face), result, seed in zip(wanted, restored, face_seeds, strict=True)
        }
        return [self._compose(photo, by_face) for photo in photos]

    # -- one photo ---------------------------------------------------------------------------

    def _compose(
        self, photo: PreparedPhoto, results: Mapping[int, tuple[RestoredFace, int]]
    ) -> RestoredPhoto:
        picture, scale = photo.picture, self.background.scale
        assert picture.own is not None
        warnings = [] if photo.faces else [NO_FACE]
        reports = []
        changed = [face for face in photo.faces if id(face) in results]
        changed = [face for face in changed if results[id(face)][0].skipped is None]
        levels = self.background(picture)
        original = levels
        if changed and levels is picture.own.levels:
            levels = levels.copy()
        for face in photo.faces:
            record = describe_face(face)
            if id(face) not in results:
                reports.append(FaceReport(record))
                continue
            result, seed = results[id(face)]
            record |= {"seed": seed} | result.notes
            if result.skipped is not None:
                reports.append(FaceReport(record | {"skipped": result.skipped}))
                continue
            restored = self._matched(face, result.restored)
            # Those that stay as they are, are not pasted over either.
            others = [other.alignment for other in photo.faces if other is not face]
            self._paste(picture, original, levels, restored, face.alignment, others)
            pieces = _pieces(face, result, restored)
            reports.append(FaceReport(record, pieces, result.warnings))
        for number, report in enumerate(reports):
            warnings += [f"face {number}: {warning}" for warning in report.warnings]
        is_changed = scale > 1 or picture.stretch or (changed and self.faces.blend > 0)
        return RestoredPhoto(levels if is_changed else None, reports, warnings)

    def _matched(self, face: PlacedFace, restored: torch.Tensor) -> torch.Tensor:
        """(1,3,S,S) with the photo's own colours where they change slowly."""
        if not self.paste_config.match_colours:
            return restored
        return with_colours_of(images.to_tensor(face.look), restored)

    def _paste(
        self,
        picture: images.Picture,
        original: images.Levels,
        levels: images.Levels,
        restored: torch.Tensor,
        alignment: Alignment,
        neighbours: Sequence[Alignment],
    ) -> None:
        """Change ``levels`` in the place of a face; ``original`` are those before any face."""
        assert picture.own is not None
        scale = self.background.scale
        height, width = levels.shape[:2]
        top = np.iinfo(levels.dtype).max
        pixels = (restored[0].permute(1, 2, 0).double() + 1).mul(127.5).float().numpy()
        for patch in face_patches(
            pixels,
            alignment.scaled(scale),
            (height, width),
            [other.scaled(scale) for other in neighbours],
        ):
            wide = np.clip(np.round(patch.pixels * 257.0), 0, 65535).astype(np.uint16)
            if picture.tint is not None:
                wide = picture.tint.apply(wide, images.Place(patch.top, patch.left, height, width))
            new = picture.own.from_srgb(wide).astype(np.float32)
            rows, columns = patch.place
            part = levels[rows, columns]
            weights = patch.weights * self.faces.blend
            share = weights if part.ndim == 2 else weights[..., None]
            # Shares of overlapping faces add up, each against the photo as it was.
            mixed = part + share * (new - original[rows, columns])
            np.copyto(part, np.clip(np.round(mixed), 0, top).astype(part.dtype), where=share > 0)


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


def with_colours_of(degraded: torch.Tensor, restored: torch.Tensor) -> torch.Tensor:
    """(B,3,S,S) ``restored`` with the colours of ``degraded`` where they change slowly."""
    for _ in range(_COLOUR_PASSES):  # each takes most of what the one before left
        restored = restored + slow_part(degraded - restored)
    return restored


def slow_part(x: torch.Tensor) -> torch.Tensor:
    """(B,C,S,S) without all that changes within an eighth of a side."""
    return build_low_pass("gaussian", sigma_px=x.shape[-1] / _COLOUR_CELLS / 2)(x)


def describe_face(face: PlacedFace) -> dict[str, Any]:
    """What the manifest says of a face before it is restored."""
    quality = face.quality
    return {
        "box": [round(value, 1) for value in face.face.box],
        "landmarks": face.face.landmarks.round(1).tolist(),
        "score": round(float(face.face.score), 3),
        "side_px": round(face.alignment.side_px, 1),
        "quality": {
            "effective_px": round(quality.effective_px),
            "noise": round(quality.noise, 1),
            "blockiness": round(quality.blockiness, 2),
        },
        **({"skipped": face.skipped} if face.skipped else {}),
    }


def _pieces(
    face: PlacedFace, result: RestoredFace, restored: torch.Tensor
) -> dict[str, images.Pixels]:
    mask = face_mask(face.alignment, restored.shape[-1])
    return {
        "input": images.to_uint8(face.degraded)[0],
        "coarse": images.to_uint8(result.coarse)[0],
        "restored": images.to_uint8(restored)[0],
        "mask": images.round_to_uint8(mask * 255),
    }
