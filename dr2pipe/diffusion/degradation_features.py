"""Numbers that tell how a face is degraded, by formula: nothing is learned here."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from dr2pipe.core.images import LUMA
from dr2pipe.diffusion.exposure import normalise_exposure

FEATURES = (
    "detail_1",  # log energy of bands of detail, each half as fine as the one before
    "detail_2",
    "detail_3",
    "detail_4",
    "noise",  # log of the noise level by the median of the finest diagonal detail
    "colour_noise",  # the same of colour differences
    "tails",  # log kurtosis of the finest band: edges and impulses have heavy tails
    "impulses",  # share of pixels far from the median around them
    "blockiness",  # log ratio of jumps across the 8-pixel grid of JPEG to other jumps
    "direction",  # how much more detail there is along one axis than along the other
    "normalised_brightness",
    "normalised_contrast",
    "saturation",
    "dark",  # share of clipped pixels
    "bright",
)
_TINY = 1e-4  # below the rounding of 8 bits
_FAR = 0.4  # of a range of 2
_CLIPPED = 0.98
_MEDIAN_TO_SIGMA = 0.6745  # of a normal distribution: Donoho and Johnstone 1994
_JPEG_BLOCK_PX = 8
_BANDS = 4


def degradation_features(pictures: torch.Tensor) -> torch.Tensor:
    """(B,3,S,S) RGB in [-1,1], S ≥ 32, to (B,F) float64 in the order of ``FEATURES``.

    Dark and pale pictures are brought to usual brightness and contrast first: there, haze looks
    like a loss of detail, and noise in the dark looks small.
    """
    x, _ = normalise_exposure(pictures.detach().cpu().double())
    luma = (x * torch.tensor(LUMA, dtype=torch.float64).view(1, 3, 1, 1)).sum(1, keepdim=True)
    bands = _bands(luma)
    finest = bands[0].square()
    colour = torch.cat([x[:, :1] - x[:, 1:2], x[:, 2:] - x[:, 1:2]], dim=1)
    around = F.pad(luma, (1, 1, 1, 1), mode="replicate").unfold(2, 3, 1).unfold(3, 3, 1)
    far = (luma - around.flatten(4).median(dim=4).values).abs() > _FAR
    across, down = luma.diff(dim=3).square(), luma.diff(dim=2).square()
    values = [
        *(_log(band.square().mean(dim=(1, 2, 3))) for band in bands),
        _log(_noise(luma)),
        _log(_noise(colour)),
        _log(finest.square().mean(dim=(1, 2, 3)) / (finest.mean(dim=(1, 2, 3)) ** 2 + _TINY**4)),
        far.double().mean(dim=(1, 2, 3)).sqrt(),
        _blockiness(luma),
        (_log(across.mean(dim=(1, 2, 3))) - _log(down.mean(dim=(1, 2, 3)))).abs(),
        luma.mean(dim=(1, 2, 3)),
        luma.std(dim=(1, 2, 3)),
        (x.amax(dim=1) - x.amin(dim=1)).mean(dim=(1, 2)),
        (luma < -_CLIPPED).double().mean(dim=(1, 2, 3)),
        (luma > _CLIPPED).double().mean(dim=(1, 2, 3)),
    ]
    return torch.stack(values, dim=1)


def _bands(luma: torch.Tensor) -> list[torch.Tensor]:
    """What each of several halvings of the resolution takes away."""
    bands = []
    for _ in range(_BANDS):
        half = F.avg_pool2d(luma, 2)
        bands.append(luma - F.interpolate(half, size=luma.shape[-2:], mode="bilinear"))
        luma = half
    return bands


def _noise(x: torch.Tensor) -> torch.Tensor:
    """σ by the finest diagonal Haar detail, (B,)."""
    side = x.shape[-1] // 2 * 2
    x = x[..., :side, :side]
    diagonal = x[..., ::2, ::2] - x[..., 1::2, ::2] - x[..., ::2, 1::2] + x[..., 1::2, 1::2]
    return (diagonal / 2).abs().flatten(1).median(dim=1).values / _MEDIAN_TO_SIGMA


def _blockiness(luma: torch.Tensor) -> torch.Tensor:
    ratios = []
    for dim in (2, 3):
        jumps = luma.diff(dim=dim).abs().mean(dim=(1, 5 - dim))  # (B,S-1)
        on_grid = torch.arange(1, jumps.shape[1] + 1) % _JPEG_BLOCK_PX == 0
        ratios.append(_log(jumps[:, on_grid].mean(dim=1)) - _log(jumps[:, ~on_grid].mean(dim=1)))
    return torch.stack(ratios).mean(dim=0)


def _log(x: torch.Tensor) -> torch.Tensor:
    return (x + _TINY).log()
