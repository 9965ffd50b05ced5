"""Marked places of whole photos, such as scratches: filled in the faces before stage 1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from dr2pipe.core import images
from dr2pipe.core.config import stable_seed
from dr2pipe.faces import Alignment, cut
from dr2pipe.restoration.inpainter import Inpainter
from dr2pipe.restoration.placing import PlacedFace, PreparedPhoto

# A pixel of the aligned face is a hole from this share of marked pixels on.
_LEAST_SHARE = 0.1


def fill_marks(
    photos: Sequence[PreparedPhoto],
    masks: Sequence[torch.Tensor],
    seeds: Sequence[int],
    inpainter: Inpainter,
) -> list[str | None]:
    """Fill the marked places of faces, in the style of each face itself.

    A face with a mark is restored even if it is good. Marks outside of faces change nothing.

    Args:
        photos: their faces change.
        masks: (1,1,H,W) for each photo, 1 where it is marked.
        seeds: one for each photo.
        inpainter: fills the holes.

    Returns:
        A warning for each photo whose marks lie outside of its faces; None for the others.
    """
    warnings: list[str | None] = []
    for photo, mask, seed in zip(photos, masks, seeds, strict=True):
        marked = np.repeat((mask[0, 0].numpy() * 255).astype(np.uint8)[..., None], 3, axis=2)
        touched = [
            _fill(face, marked, stable_seed(seed, face.place), inpainter) for face in photo.faces
        ]
        outside = "the marks lie outside of the faces, where nothing is repaired"
        warnings.append(None if any(touched) else outside)
    return warnings


def _fill(face: PlacedFace, marked: images.Pixels, seed: int, inpainter: Inpainter) -> bool:
    size = face.degraded.shape[-1]
    hole = _holes(marked, face.alignment, size)
    if not hole.any():
        return False
    styles = inpainter.styles(face.degraded)
    face.degraded = inpainter(face.degraded, hole, styles, [seed]).clamp(-1, 1).cpu()
    # The look decides the colours of the result: the scratch must not come back with them.
    look = images.to_tensor(face.look)
    hole = _holes(marked, face.alignment, look.shape[-1])
    filled = images.resize_tensor(face.degraded, look.shape[-1]).clamp(-1, 1)
    face.look = images.to_uint8(torch.where(hole > 0, filled, look))[0]
    face.skipped = None
    return True


def _holes(marked: images.Pixels, alignment: Alignment, size: int) -> torch.Tensor:
    """(1,1,size,size) of 0 and 1."""
    share = cut(marked, alignment, size)[..., 0] / 255
    return torch.from_numpy(share >= _LEAST_SHARE).float()[None, None]
