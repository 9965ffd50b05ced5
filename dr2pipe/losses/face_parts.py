"""Crops of eyes and mouth, and the style loss on their discriminators' features.

GFP-GAN (Wang et al. 2021, §3.4, "Facial Component Loss", eq. 5 and 6).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from dr2pipe.losses.perceptual import gram_matrix

PARTS = ("left_eye", "right_eye", "mouth")
# The eyes' boxes are that much larger than the landmarks say.
_ENLARGED = (1.4, 1.4, 1.0)
# Side in pixels of each crop of a 512-pixel face.
_SIDES = (80, 80, 120)


def crop_parts(pictures: torch.Tensor, parts: torch.Tensor) -> dict[str, torch.Tensor]:
    """Left eye, right eye and mouth of every picture.

    Args:
        pictures: (B,3,S,S).
        parts: (B,3,3), for each part x, y and half of its side in pixels; pixel (0,0) has its
            centre at 0, 0.

    Returns:
        (B,3,s,s) by the names ``PARTS``; s is 80, 80, 120 times S/512.
    """
    crops = {}
    scale = pictures.shape[-1] / 512
    for i, (name, enlarged, side) in enumerate(zip(PARTS, _ENLARGED, _SIDES, strict=True)):
        centres, halves = parts[:, i, :2], parts[:, i, 2:] * enlarged
        boxes = torch.cat([centres - halves + 1, centres + halves], dim=1)
        crops[name] = roi_align(pictures, boxes, max(round(side * scale), 1))
    return crops


def roi_align(pictures: torch.Tensor, boxes: torch.Tensor, size: int) -> torch.Tensor:
    """One box of each picture as (B,C,size,size).

    He et al., "Mask R-CNN", ICCV 2017, §3: means of bilinear samples on a regular grid, as
    many in each output pixel as input pixels fit into it, rounded up. Coordinates as
    torchvision's ``aligned=False``.

    Args:
        pictures: (B,C,H,W).
        boxes: (B,4) left, top, right, bottom in pixels.
    """
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)  # (B,2) width, height
    samples = (sides / size).ceil().long()
    made: list[torch.Tensor | None] = [None] * len(pictures)
    # Boxes of one sampling density go together.
    for density in torch.unique(samples, dim=0):
        chosen = (samples == density).all(dim=1).nonzero().flatten()
        columns, rows = (
            _positions(boxes[chosen, axis], sides[chosen, axis], size, int(density[axis]))
            for axis in (0, 1)
        )  # (b,size·n) each
        crops = _sample(pictures[chosen], columns, rows)
        crops = F.avg_pool2d(crops, (int(density[1]), int(density[0])))
        for place, crop in zip(chosen.tolist(), crops, strict=True):
            made[place] = crop
    return torch.stack(made)


def component_style_loss(
    features: Sequence[torch.Tensor], target_features: Sequence[torch.Tensor]
) -> torch.Tensor:
    """½·L1 of the first Gram matrices + L1 of the second; targets are constants.

    ``features``: the two maps of :class:`dr2pipe.stylegan2.discriminator.FacePartDiscriminator`.
    """
    first, second = (
        F.l1_loss(gram_matrix(made), gram_matrix(wanted.detach()))
        for made, wanted in zip(features, target_features, strict=True)
    )
    return 0.5 * first + second


def _positions(start: torch.Tensor, length: torch.Tensor, size: int, samples: int) -> torch.Tensor:
    count = size * samples
    steps = (torch.arange(count, device=start.device, dtype=start.dtype) + 0.5) / count
    return start[:, None] + length[:, None] * steps


def _sample(pictures: torch.Tensor, columns: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Bilinear samples (B,C,rows,columns); more than a pixel outside they are zero."""
    height, width = pictures.shape[-2:]
    x = columns[:, None, :].expand(-1, rows.shape[1], -1)
    y = rows[:, :, None].expand(-1, -1, columns.shape[1])
    grid = torch.stack([2 * x / max(width - 1, 1) - 1, 2 * y / max(height - 1, 1) - 1], dim=-1)
    sampled = F.grid_sample(
        pictures, grid.to(pictures.dtype), padding_mode="border", align_corners=True
    )
    inside = (x >= -1) & (x <= width) & (y >= -1) & (y <= height)
    return sampled * inside[:, None].to(sampled.dtype)
