"""EXE-GAN's losses: gradients weighted by place, and styles compared with the exemplar's.

Lu et al., "Do inpainting yourself: generative facial inpainting guided by exemplars",
Neurocomputing 2025 (spatial variant gradient layer, attribute loss).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from dr2pipe.core.errors import ConfigError


def weigh_gradient(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return ``x`` unchanged, and multiply its gradient by ``weights`` in the backward pass.

    Args:
        x: of any shape.
        weights: broadcast to ``x``; they get no gradient themselves.
    """
    weighted = x * weights.detach()
    return x.detach() + (weighted - weighted.detach())  # x + 0, with the gradient of `weighted`


def flat_kernel(size_px: int, window: float) -> torch.Tensor:
    """(size_px,), sum 1: the published kernel along one axis.

    The paper calls it a Gaussian. It is the square root of a unit normal, sampled only between
    about -``window`` and ``window``: with the published 1/40 it differs from a box by less than
    0.05 %.

    Raises:
        ConfigError: an even size.
    """
    _check_odd(size_px)
    step = (2 * window + 1) / size_px
    edges = torch.linspace(-window - step / 2, window + step / 2, size_px + 1, dtype=torch.float64)
    centres = (edges[1:] + edges[:-1]) / 2
    kernel = torch.exp(-centres.square() / 4)
    return (kernel / kernel.sum()).float()


def gaussian_kernel(size_px: int, sigma_px: float) -> torch.Tensor:
    """(size_px,), sum 1: a true Gaussian along one axis.

    Raises:
        ConfigError: an even size.
    """
    _check_odd(size_px)
    places = torch.arange(size_px, dtype=torch.float64) - size_px // 2
    kernel = torch.exp(-places.square() / (2 * sigma_px**2))
    return (kernel / kernel.sum()).float()


def border_weights(mask: torch.Tensor, kernel: torch.Tensor, passes: int = 7) -> torch.Tensor:
    """How near a pixel of a hole is to the known part: less from the border inwards, 0 outside.

    Args:
        mask: (B,1,H,W), 1 in the holes; each side longer than half the kernel.
        kernel: (K,), applied along both axes; K odd.
        passes: number of smoothings; each reaches further into the holes.

    Returns:
        (B,1,H,W) in [0,1].
    """
    half = len(kernel) // 2
    kernel = kernel.to(mask)
    known, confidence = 1 - mask, torch.zeros_like(mask)
    for _ in range(passes):
        padded = F.pad(confidence + known, (half, half, half, half), mode="reflect")
        smooth = F.conv2d(padded, kernel.view(1, 1, -1, 1))
        confidence = F.conv2d(smooth, kernel.view(1, 1, 1, -1)) * mask
    return confidence


def inner_weights(mask: torch.Tensor, border: torch.Tensor) -> torch.Tensor:
    """The opposite of :func:`border_weights`: more from the border inwards, 0 outside.

    Args:
        mask: (B,1,H,W), 1 in the holes.
        border: what :func:`border_weights` returns.

    Returns:
        (B,1,H,W), scaled to 0..1 over the whole batch, as published; zeros where all weights are
        equal.
    """
    weights = (1 - border) * mask
    low, high = weights.amin(), weights.amax()
    return (weights - low) / (high - low).clamp(min=torch.finfo(weights.dtype).tiny)


def attribute_loss(styles: torch.Tensor, exemplar_styles: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of styles (B,rows,C); the exemplar's are constants."""
    return F.mse_loss(styles, exemplar_styles.detach())


def _check_odd(size_px: int) -> None:
    if size_px < 1 or size_px % 2 == 0:
        raise ConfigError(f"a kernel of {size_px} pixels has no middle; choose an odd number")
