"""Measures of a restored face against the original, one value per picture.

Pictures are (B,3,H,W) float32 RGB in [-1,1]. They are rounded to 8 bit first, so that a
number does not depend on whether a picture was saved in between; every value is that of its
picture alone, whatever the batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)

_LEVELS = 255.0
_WINDOW_PX = 11
_LEAST_SIDES_PX = {"ssim": _WINDOW_PX, "ms_ssim": 112}
_LUMA = (65.481, 128.553, 24.966)  # ITU-R BT.601, studio range: 16..235 from [0,1]


def psnr(restored: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB over all channels, (B,); higher is better."""
    error = (_rounded(restored) - _rounded(original)).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(_LEVELS**2 / error)


def psnr_luma(restored: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """PSNR in dB of the luma channel (Y of YCbCr, BT.601), (B,); higher is better."""
    weights = torch.tensor(_LUMA, dtype=torch.float64).view(1, 3, 1, 1) / _LEVELS
    luma = [(_rounded(picture) * weights).sum(dim=1) for picture in (restored, original)]
    error = (luma[0] - luma[1]).square().mean(dim=(1, 2))
    return 10 * torch.log10(_LEVELS**2 / error)


def ssim(restored: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """Structural similarity, (B,), at most 1; higher is better.

    Wang et al. 2004: Gaussian window of 11 pixels, σ 1.5; mean over channels and over the
    windows that lie wholly inside the picture, as most published tables have it.
    """
    _, similarity = structural_similarity_index_measure(
        _unit(restored), _unit(original), data_range=1.0, reduction="none", return_full_image=True
    )
    border = _WINDOW_PX // 2  # torchmetrics fills it by reflection
    return similarity[..., border:-border, border:-border].mean(dim=(1, 2, 3))


def ms_ssim(restored: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """SSIM over five scales, (B,), at most 1; higher is better.

    Wang et al. 2003, as torchmetrics computes it: the border is filled by reflection.

    Raises:
        ValueError: a picture below 112 pixels, whose smallest copy is narrower than that filling.
    """
    check_metrics(["ms_ssim"], min(original.shape[-2:]))
    # kernel_size is not the window, which σ decides; it only sets what torchmetrics lets pass.
    values = [
        multiscale_structural_similarity_index_measure(
            a[None], b[None], data_range=1.0, kernel_size=7
        )
        for a, b in zip(_unit(restored), _unit(original), strict=True)
    ]
    return torch.stack(values)


METRICS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "psnr": psnr,
    "psnr_luma": psnr_luma,
    "ssim": ssim,
    "ms_ssim": ms_ssim,
}


def measure(
    restored: torch.Tensor, original: torch.Tensor, names: list[str]
) -> dict[str, list[float]]:
    """Values of the named metrics, one per picture.

    Raises:
        ValueError: a name that is not in ``METRICS``, or pictures of different shapes.
    """
    check_metrics(names)
    if restored.shape != original.shape:
        raise ValueError(
            f"cannot compare {tuple(restored.shape)} with {tuple(original.shape)}; resize first"
        )
    return {name: METRICS[name](restored, original).tolist() for name in names}


def check_metrics(names: list[str], size: int | None = None) -> None:
    """Raise ValueError for a name not in ``METRICS``, or one that ``size`` pixels are too few for."""
    for name in names:
        if name not in METRICS:
            raise ValueError(f"unknown metric '{name}'; choose from {', '.join(METRICS)}")
        least = _LEAST_SIDES_PX.get(name, 1)
        if size is not None and size < least:
            raise ValueError(f"{name} needs pictures of {least} pixels or more, not {size}")


def _rounded(image: torch.Tensor) -> torch.Tensor:
    """8-bit levels 0..255 as float64."""
    return image.detach().double().add(1).mul(127.5).round().clamp(0, _LEVELS)


def _unit(image: torch.Tensor) -> torch.Tensor:
    """8-bit levels scaled to [0,1], float32: convolutions in float64 take ten times as long."""
    return (_rounded(image) / _LEVELS).float()
