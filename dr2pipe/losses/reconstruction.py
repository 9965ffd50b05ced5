"""Losses between a picture and its target, both (B,3,H,W)."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def pixel_loss(restored: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean absolute error."""
    return F.l1_loss(restored, target)
