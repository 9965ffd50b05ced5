"""Whole photos: faces are found, aligned, restored in batches, and pasted back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from dr2pipe.core import images
from dr2pipe.core.config import stable_seed
from dr2pipe.core.errors import ConfigError
from dr2pipe.diffusion.low_pass import build_low_pass
from dr2pipe.faces import (
    Alignment,
    FaceDetector,
    face_mask,
    face_patches,
)
from dr2pipe.restoration.background import Background
from dr2pipe.restoration.face_batches import FaceRestorer, RestoredFace
from dr2pipe.restoration.placing import FacePlacer, FacesConfig, PlacedFace, PreparedPhoto

NO_FACE = "no face was found"
# Colours are matched where they change slowly: by so many cells a side of the crop.
_COLOUR_CELLS, _COLOUR_PASSES = 8, 3


@dataclass
class PasteConfig:
    """How restored faces are put back."""

    match_colours: bool = True  # keep the colours of the photo where they change slowly


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


class PhotoEngine:
    """Finds the faces of photos, restores them, and pastes them back.

    Args:
        restorer: restores aligned faces in batches.
        detector: finds faces.
        faces: which of them are restored.
        paste: how they are put back.
        background: enlarges the photo around them.
        keep_tint: monochrome faces stay so.
    """

    def __init__(
        self,
        restorer: FaceRestorer,
        detector: FaceDetector,
        *,
        faces: FacesConfig,
        paste: PasteConfig,
        background: Background,
        keep_tint: bool = True,
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
            keep_tint=keep_tint,
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
            self._paste(picture, original, levels, restored, face, others)
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
        face: PlacedFace,
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
            face.alignment.scaled(scale),
            (height, width),
            [other.scaled(scale) for other in neighbours],
        ):
            wide = np.clip(np.round(patch.pixels * 257.0), 0, 65535).astype(np.uint16)
            if face.tint is not None:
                wide = face.tint.apply(wide, patch.top, patch.left, scale)
            new = picture.own.from_srgb(wide).astype(np.float32)
            rows, columns = patch.place
            part = levels[rows, columns]
            weights = patch.weights * self.faces.blend
            share = weights if part.ndim == 2 else weights[..., None]
            # Shares of overlapping faces add up, each against the photo as it was.
            mixed = part + share * (new - original[rows, columns])
            np.copyto(part, np.clip(np.round(mixed), 0, top).astype(part.dtype), where=share > 0)


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
