"""Preview pictures of a training run."""

from __future__ import annotations

import torch

# Pictures of a batch that a preview shows.
PREVIEW_PICTURES = 8


def tile_rows(*rows: torch.Tensor) -> torch.Tensor:
    """Put rows of equally large pictures under one another.

    Args:
        rows: (B,3,H,W) each, RGB; values outside [-1,1] are clamped.

    Returns:
        (3, rows·H, B·W) in [-1,1].
    """
    tiled = [torch.cat(list(row.float().clamp(-1, 1)), dim=-1) for row in rows]
    return torch.cat(tiled, dim=-2)
