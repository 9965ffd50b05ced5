"""Crops of eyes and mouth, and the style loss on their discriminators' features.

GFP-GAN (Wang et al. 2021, §3.4, "Facial Component Loss", eq. 5 and 6).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from dr2pipe.losses.perceptual import gram_matrix

PARTS = ("left_eye", "right_eye", "mouth")
# Factors by which boxes are larger than the landmarks' parts.
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

    He et al., "Mask R-CNN", ICCV 2017, §3. Every output pixel is the mean of bilinear samples on
    a regular grid, which has as many samples as the output pixel covers input pixels, rounded up.
    Coordinates are those of torchvision's ``aligned=False``.

    Args:
        pictures: (B,C,H,W).
        boxes: (B,4) left, top, right, bottom in pixels.
        size: side in pixels of the results.
    """
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)  # (B,2) width, height
    samples = (sides / size).ceil().long()
    crops_by_place: dict[int, torch.Tensor] = {}
    # Boxes of the same sampling density are cropped together.
    for density in torch.unique(samples, dim=0):
        chosen = (samples == density).all(dim=1).nonzero().flatten()
        columns, rows = (
            _positions(boxes[chosen, axis], sides[chosen, axis], size, int(density[axis]))
            for axis in (0, 1)
        )  # (b,size·n) each
        crops = _sample(pictures[chosen], columns, rows)  # (b,C,size·n,size·m)
        crops = F.avg_pool2d(crops, (int(density[1]), int(density[0])))
        for place, crop in zip(chosen.tolist(), crops, strict=True):
            crops_by_place[place] = crop
    return torch.stack([crops_by_place[place] for place in range(len(pictures))])


def component_style_loss(
    features: Sequence[torch.Tensor], target_features: Sequence[torch.Tensor]
) -> torch.Tensor:
    """½·L1 of the first Gram matrices + L1 of the second (GFP-GAN, eq. 6).

    Args:
        features: the two maps of
            :class:`dr2pipe.stylegan2.discriminator.FacePartDiscriminator`.
        target_features: as ``features``; they are constants.
    """
    first, second = (
        F.l1_loss(gram_matrix(maps), gram_matrix(target_maps.detach()))
        for maps, target_maps in zip(features, target_features, strict=True)
    )
    return 0.5 * first + second


def _positions(start: torch.Tensor, length: torch.Tensor, size: int, samples: int) -> torch.Tensor:
    count = size * samples
    steps = (torch.arange(count, device=start.device, dtype=start.dtype) + 0.5) / count
    return start[:, None] + length[:, None] * steps


def _sample(pictures: torch.Tensor, columns: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Bilinear samples (B,C,rows,columns); zero where more than a pixel outside."""
    height, width = pictures.shape[-2:]
    x = columns[:, None, :].expand(-1, rows.shape[1], -1)
    y = rows[:, :, None].expand(-1, -1, columns.shape[1])
    grid = torch.stack([2 * x / max(width - 1, 1) - 1, 2 * y / max(height - 1, 1) - 1], dim=-1)
    sampled = F.grid_sample(
        pictures, grid.to(pictures.dtype), padding_mode="border", align_corners=True
    )
    inside = (x >= -1) & (x <= width) & (y >= -1) & (y <= height)
    return sampled * inside[:, None].to(sampled.dtype)
