"""Losses between a picture and its target, both (B,3,H,W)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def pixel_loss(restored: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of (B,3,H,W) and its target."""
    return F.l1_loss(restored, target)


def pyramid_loss(pyramid: Sequence[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
    """Sum over the pyramid of the mean absolute errors to ``target``, resized bilinearly.

    GFP-GAN (Wang et al. 2021, §3.2): intermediate supervision of the U-Net at every size.

    Args:
        pyramid: one or more pictures (B,3,h,w).
        target: (B,3,H,W).
    """
    losses = [
        F.l1_loss(
            picture,
            F.interpolate(target, picture.shape[-2:], mode="bilinear", align_corners=False),
        )
        for picture in pyramid
    ]
    return torch.stack(losses).sum()


def log_error(restored: torch.Tensor, target: torch.Tensor, floor: float = 1e-4) -> torch.Tensor:
    """Mean over pictures of the natural logarithm of each one's mean squared error.

    That is the mean PSNR but for a factor and its sign. A picture's gradient is divided by its own
    error, so pictures that are nearly right count as much as those that are far off.

    Args:
        restored: (B,3,H,W).
        target: the same.
        floor: added to every error. 1e-4 is 46 dB in [-1,1]; below it, nothing more is gained.
    """
    errors = (restored - target).square().mean(dim=(1, 2, 3))
    return (errors + floor).log().mean()
