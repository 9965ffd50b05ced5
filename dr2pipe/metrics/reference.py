"""Full-reference metrics by formula: one value per picture, from it and its original.

Pictures are (B,3,H,W) float32 RGB in [-1,1]. They are rounded to 8 bit first, so that a value is
the same whether a picture was saved in between or not. A value depends on its picture alone, not
on the batch. A ``mask`` (B,1,H,W) restricts a value to the pixels where it is 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from dr2pipe.core.errors import PictureError
from dr2pipe.core.extras import needs_extra

_LEVELS = 255.0
MOST_DB = 100.0  # of equal pictures
# Of SSIM: side and σ of the window, and the two constants for values in [0,1].
_WINDOW_PX, _SIGMA_PX = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2
LEAST_SIDE_OF_MS_SSIM_PX = 112
_LUMA = (65.481, 128.553, 24.966)  # ITU-R BT.601, studio range: 16..235 from [0,1]


def psnr(
    restored: torch.Tensor, original: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB over all channels, (B,), at most 100; higher is better.

    Equal pictures have 100 dB, so that one of them does not take the mean from all others.
    """
    _check_pair(restored, original)
    error = (_rounded(restored) - _rounded(original)).square().mean(dim=1, keepdim=True)
    return _decibels(_mean(error, mask))


def psnr_luma(
    restored: torch.Tensor, original: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """PSNR in dB of the luma channel (Y of YCbCr, BT.601), (B,), at most 100; higher is better."""
    _check_pair(restored, original)
    weights = torch.tensor(_LUMA, dtype=torch.float64, device=restored.device) / _LEVELS
    difference = (_rounded(restored) - _rounded(original)) * weights.view(1, 3, 1, 1)
    error = difference.sum(dim=1, keepdim=True).square()
    return _decibels(_mean(error, mask))


def _decibels(error: torch.Tensor) -> torch.Tensor:
    return (10 * torch.log10(_LEVELS**2 / error)).clamp(max=MOST_DB)


def ssim(
    restored: torch.Tensor, original: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Structural similarity, (B,), at most 1; higher is better.

    Wang et al. 2004, eq. 13: Gaussian window of 11 pixels, σ 1.5. The value is the mean over
    channels and over the windows that lie wholly inside the picture, as in most published
    tables; with a mask, over the windows whose centre it keeps.
    """
    _check_pair(restored, original)
    a, b = _unit(restored), _unit(original)
    mean_a, mean_b = _window_means(a), _window_means(b)  # (B,3,H-10,W-10)
    variance_a = _window_means(a * a) - mean_a.square()
    variance_b = _window_means(b * b) - mean_b.square()
    covariance = _window_means(a * b) - mean_a * mean_b
    similarity = (
        (2 * mean_a * mean_b + _C1)
        * (2 * covariance + _C2)
        / ((mean_a.square() + mean_b.square() + _C1) * (variance_a + variance_b + _C2))
    )
    if mask is not None:
        inside = slice(_WINDOW_PX // 2, -(_WINDOW_PX // 2))
        mask = mask[..., inside, inside]
        if not mask.flatten(1).any(dim=1).all():
            raise PictureError(
                f"the mask keeps no pixel whose window of {_WINDOW_PX} pixels lies in the picture"
            )
    return _mean(similarity.mean(dim=1, keepdim=True), mask)


def ms_ssim(restored: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """SSIM over five scales, (B,), at most 1; higher is better.

    Wang et al. 2003, as torchmetrics computes it. The contrast terms of the first four scales
    are means over the windows that lie wholly inside; the similarity of the last scale is the
    mean over every pixel, with mirrored borders. Each scale is averaged over channels first, and
    a negative average counts as 0. Pictures need sides of at least 112 pixels, so that the
    smallest copy holds half a window.
    """
    _check_pair(restored, original)
    with needs_extra("evaluate"):
        from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    # σ decides the window; kernel_size decides only the smallest picture that is accepted.
    values = [
        multiscale_structural_similarity_index_measure(
            a[None], b[None], data_range=1.0, kernel_size=7
        )
        for a, b in zip(_unit(restored), _unit(original), strict=True)
    ]
    return torch.stack(values)


def check_mask(mask: torch.Tensor, pictures: torch.Tensor) -> None:
    """Check that a mask fits ``pictures`` (B,3,H,W).

    Raises:
        PictureError: it is not (B,1,H,W), or it keeps no pixel.
    """
    wanted = (len(pictures), 1, *pictures.shape[-2:])
    if tuple(mask.shape) != wanted:
        raise PictureError(f"the mask is {tuple(mask.shape)}, the pictures need {wanted}")
    empty = [i for i, one in enumerate(mask) if not one.any()]
    if empty:
        raise PictureError(f"the mask keeps no pixel of picture {empty[0]}")


def _check_pair(restored: torch.Tensor, original: torch.Tensor) -> None:
    """Raise PictureError for tensors that are not (B,3,H,W) floats of one shape."""
    shapes = tuple(restored.shape), tuple(original.shape)
    are_floats = restored.is_floating_point() and original.is_floating_point()
    if shapes[0] != shapes[1] or len(shapes[0]) != 4 or shapes[0][1] != 3 or not are_floats:
        raise PictureError(
            f"expected two batches (B,3,H,W) of floats in [-1,1], not {shapes[0]} {restored.dtype} "
            f"and {shapes[1]} {original.dtype}"
        )


def _window_means(x: torch.Tensor) -> torch.Tensor:
    """Gaussian means over the windows inside: (B,3,H,W) to (B,3,H-10,W-10)."""
    offsets = torch.arange(_WINDOW_PX, device=x.device, dtype=x.dtype) - _WINDOW_PX // 2
    taps = torch.exp(-offsets.square() / (2 * _SIGMA_PX**2))
    taps = (taps / taps.sum()).expand(x.shape[1], 1, 1, -1)
    x = F.conv2d(x, taps, groups=x.shape[1])
    return F.conv2d(x, taps.transpose(2, 3), groups=x.shape[1])


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
