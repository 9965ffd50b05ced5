"""Full-reference metrics by formula: one value per picture, from it and its original.

Pictures are (B,3,H,W) float32 RGB in [-1,1]. They are rounded to 8 bit first, so that a number
does not depend on whether a picture was saved in between; every value is that of its picture
alone, whatever the batch. A ``mask`` (B,1,H,W) restricts a value to the pixels where it is 1.
"""

from __future__ import annotations

import torch

from dr2pipe.core.extras import needs_extra

with needs_extra("evaluate"):
    from torchmetrics.functional.image import (
        multiscale_structural_similarity_index_measure,
        structural_similarity_index_measure,
    )

_LEVELS = 255.0
_WINDOW_PX = 11
LEAST_SIDE_OF_MS_SSIM_PX = 112
_LUMA = (65.481, 128.553, 24.966)  # ITU-R BT.601, studio range: 16..235 from [0,1]


def psnr(
    restored: torch.Tensor, original: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB over all channels, (B,); higher is better."""
    error = (_rounded(restored) - _rounded(original)).square().mean(dim=1, keepdim=True)
    return 10 * torch.log10(_LEVELS**2 / _mean(error, mask))


def psnr_luma(
    restored: torch.Tensor, original: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """PSNR in dB of the luma channel (Y of YCbCr, BT.601), (B,); higher is better."""
    weights = torch.tensor(_LUMA, dtype=torch.float64).view(1, 3, 1, 1) / _LEVELS
    difference = (_rounded(restored) - _rounded(original)) * weights
    error = difference.sum(dim=1, keepdim=True).square()
    return 10 * torch.log10(_LEVELS**2 / _mean(error, mask))


def ssim(
    restored: torch.Tensor, original: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Structural similarity, (B,), at most 1; higher is better.

    Wang et al. 2004: Gaussian window of 11 pixels, σ 1.5; mean over channels and over the
    windows that lie wholly inside the picture, as most published tables have it. With a mask,
    the windows whose centre it keeps.
    """
    _, similarity = structural_similarity_index_measure(
        _unit(restored), _unit(original), data_range=1.0, reduction="none", return_full_image=True
    )
    inside = slice(_WINDOW_PX // 2, -(_WINDOW_PX // 2))  # torchmetrics fills the border
    if mask is not None:
        mask = mask[..., inside, inside]
    return _mean(similarity[..., inside, inside].mean(dim=1, keepdim=True), mask)


def ms_ssim(restored: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """SSIM over five scales, (B,), at most 1; higher is better.

    Wang et al. 2003, as torchmetrics computes it. The contrast terms of the first four scales
    are means over the windows that lie wholly inside; the similarity of the last scale is the
    mean over every pixel, borders mirrored. Each scale is averaged over channels first, and a
    negative average counts as 0. Pictures of at least 112 pixels: the smallest copy must hold
    a window's half.
    """
    # kernel_size is not the window, which σ decides; it only sets what torchmetrics lets pass.
    values = [
        multiscale_structural_similarity_index_measure(
            a[None], b[None], data_range=1.0, kernel_size=7
        )
        for a, b in zip(_unit(restored), _unit(original), strict=True)
    ]
    return torch.stack(values)


def check_mask(mask: torch.Tensor, pictures: torch.Tensor) -> None:
    """ValueError for a mask of another shape than (B,1,H,W), or one that keeps no pixel."""
    wanted = (len(pictures), 1, *pictures.shape[-2:])
    if tuple(mask.shape) != wanted:
        raise ValueError(f"the mask is {tuple(mask.shape)}, the pictures want {wanted}")
    empty = [i for i, one in enumerate(mask) if not one.any()]
    if empty:
        raise ValueError(f"the mask keeps no pixel of picture {empty[0]}")


def _mean(x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean over pixels of (B,1,H,W), (B,)."""
    if mask is None:
        return x.mean(dim=(1, 2, 3))
    mask = mask.to(x)
    return (x * mask).sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3))


def _rounded(image: torch.Tensor) -> torch.Tensor:
    """8-bit levels 0..255 as float64."""
    return image.detach().double().add(1).mul(127.5).round().clamp(0, _LEVELS)


def _unit(image: torch.Tensor) -> torch.Tensor:
    """8-bit levels scaled to [0,1], float32: convolutions in float64 take ten times as long."""
    return (_rounded(image) / _LEVELS).float()
