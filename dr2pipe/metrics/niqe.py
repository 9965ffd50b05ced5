"""NIQE: how far a picture's local statistics are from those of pristine pictures.

Mittal, Soundararajan and Bovik, "Making a Completely Blind Image Quality Analyzer", IEEE Signal
Processing Letters 2013. Lower is better; it needs no original. The pristine statistics are
fitted by :func:`fit_niqe` on a folder of clean pictures, or read from the authors' .mat file;
numbers are comparable only where these and the block size are the same. Grey levels are 0..255
by MATLAB's rgb2gray, rounded, as in the authors' code.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from dr2pipe.core import files
from dr2pipe.core.errors import CheckpointError, ConfigError, PictureError, UnreadableFileError
from dr2pipe.core.foreign import read_npz

_WINDOW_PX, _SIGMA_PX = 7, 7 / 6
_SCALES = 2
_FEATURES, _MAX_BYTES = 36, 1 << 24
_SHARP_SHARE = 0.75  # of the sharpest block: what counts as sharp when fitting
_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))
_LUMA = (0.2989, 0.5870, 0.1140)  # MATLAB's rgb2gray, as in the authors' code
# Ratios E[|x|]²/E[x²] of generalised Gaussians by their shape, to be looked up.
_SHAPES = torch.arange(0.2, 10.001, 0.001, dtype=torch.float64)
_RATIOS = torch.exp(
    2 * torch.lgamma(2 / _SHAPES) - torch.lgamma(1 / _SHAPES) - torch.lgamma(3 / _SHAPES)
)


@dataclass(frozen=True)
class Pristine:
    """Mean (36,) and covariance (36,36) of the features of blocks of ``block_px`` pixels."""

    mean: torch.Tensor
    covariance: torch.Tensor
    block_px: int


def niqe(pictures: torch.Tensor, pristine: Pristine) -> torch.Tensor:
    """NIQE (eq. 10), (B,), 0 and more; lower is better.

    Args:
        pictures: (B,3,H,W) RGB in [-1,1].
        pristine: statistics of clean pictures.

    Raises:
        PictureError: pictures that are smaller than a block.
    """
    values = []
    for picture in pictures:
        features, _ = block_features(picture, pristine.block_px)
        mean = features.mean(dim=0)
        count = len(features)
        covariance = torch.cov(features.T) if count > 1 else torch.zeros_like(pristine.covariance)
        difference = pristine.mean - mean
        inverse = torch.linalg.pinv((pristine.covariance + covariance) / 2, hermitian=True)
        values.append((difference @ inverse @ difference).clamp(min=0).sqrt())
    return torch.stack(values)


def fit_niqe(pictures: Iterable[torch.Tensor], block_px: int = 96) -> Pristine:
    """The statistics of sharp blocks of clean pictures.

    Args:
        pictures: (3,H,W) RGB in [-1,1].
        block_px: side of a block in pixels.

    Raises:
        ConfigError: blocks of an odd side, which the second scale cannot halve, or of none.
        PictureError: fewer sharp blocks than features, or pictures smaller than a block.
    """
    if block_px < 2 or block_px % 2:
        raise ConfigError(f"the side of NIQE's blocks must be even and above 0, not {block_px}")
    chosen = []
    for picture in pictures:
        features, sharpness = block_features(picture, block_px)
        chosen.append(features[sharpness > _SHARP_SHARE * sharpness.max()])
    features = torch.cat(chosen) if chosen else torch.zeros(0, 36)
    if len(features) <= features.shape[1]:
        raise PictureError(
            f"{len(features)} sharp blocks of {block_px} pixels are too few to fit NIQE; "
            f"it needs more than {features.shape[1]}: give more or larger pictures"
        )
    return Pristine(features.mean(dim=0), torch.cov(features.T), block_px)


def save_pristine(pristine: Pristine, path: str | Path) -> None:
    """Write an ``.npz`` that :func:`load_pristine` reads."""
    import io

    buffer = io.BytesIO()
    np.savez(
        buffer,
        mean=pristine.mean.numpy(),
        covariance=pristine.covariance.numpy(),
        block_px=pristine.block_px,
    )
    files.write_bytes(path, buffer.getvalue())


def load_pristine(path: str | Path) -> Pristine:
    """Our ``.npz``, or the authors' ``modelparameters.mat`` (blocks of 96 pixels).

    Raises:
        CheckpointError: no such file, another kind of file, or no scipy to read a ``.mat`` with.
    """
    path = Path(path)
    try:
        files.check_regular(path, max_bytes=_MAX_BYTES)
    except UnreadableFileError as error:
        raise CheckpointError(f"no NIQE parameters at {error}") from None
    if path.suffix == ".mat":
        try:
            from scipy.io import loadmat
        except ImportError:
            raise CheckpointError(f"reading {path} needs scipy: pip install scipy") from None
        try:
            stored = loadmat(path)
        except Exception as error:  # the reader fails in any way on other files
            raise CheckpointError(f"{path} is no readable .mat file: {error}") from None
        names = ("mu_prisparam", "cov_prisparam")
        block_px = 96
    else:
        stored = read_npz(path)
        names = ("mean", "covariance")
        block = stored.get("block_px", np.zeros(()))
        block_px = int(block) if block.shape == () and block.dtype.kind in "iu" else 0
    arrays = [np.asarray(stored[name]) for name in names if name in stored]
    shapes = [array.size for array in arrays]
    if (
        shapes != [_FEATURES, _FEATURES**2]
        or block_px < 1
        or any(a.dtype.kind not in "fiu" or not np.isfinite(a).all() for a in arrays)
    ):
        raise CheckpointError(f"{path} holds no NIQE parameters ({', '.join(names)})")
    mean, covariance = (torch.from_numpy(array.astype(np.float64)) for array in arrays)
    return Pristine(mean.flatten(), covariance.reshape(_FEATURES, _FEATURES), block_px)


def block_features(picture: torch.Tensor, block_px: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (blocks,36) and sharpness (blocks,) of a picture (3,H,W) RGB in [-1,1].

    Raises:
        PictureError: a picture that is smaller than a block.
    """
    weights = torch.tensor(_LUMA, dtype=torch.float64).view(3, 1, 1)
    levels = ((picture.detach().cpu().double() + 1) * 127.5).round().clamp(0, 255)  # as if saved
    luma = (levels * weights).sum(dim=0).round()  # (H,W), 0..255
    rows, columns = luma.shape[0] // block_px, luma.shape[1] // block_px
    if rows < 1 or columns < 1:
        raise PictureError(
            f"NIQE with blocks of {block_px} pixels needs larger pictures than "
            f"{luma.shape[1]}x{luma.shape[0]}"
        )
    luma = luma[: rows * block_px, : columns * block_px]
    features, deviations = [], []
    for scale in range(_SCALES):
        normalised, deviation = _normalise(luma)
        side = block_px >> scale
        blocks = _blocks(normalised, side)
        features.append(torch.stack([_features_of(block) for block in blocks]))
        deviations.append(_blocks(deviation, side).mean(dim=(1, 2)))
        luma = F.interpolate(luma[None, None], scale_factor=0.5, mode="bicubic", antialias=True)[
            0, 0
        ]
    return torch.cat(features, dim=1), deviations[0]


def _normalise(luma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(x - μ) / (σ + 1) with the local mean and deviation, and σ (eq. 1-3)."""
    steps = torch.arange(_WINDOW_PX, dtype=torch.float64) - _WINDOW_PX // 2
    taps = torch.exp(-(steps**2) / (2 * _SIGMA_PX**2))
    taps = taps / taps.sum()

    def smooth(x: torch.Tensor) -> torch.Tensor:
        x = F.pad(x[None, None], (_WINDOW_PX // 2,) * 4, mode="replicate")
        x = F.conv2d(F.conv2d(x, taps.view(1, 1, 1, -1)), taps.view(1, 1, -1, 1))
        return x[0, 0]

    mean = smooth(luma)
    deviation = (smooth(luma**2) - mean**2).abs().sqrt()
    return (luma - mean) / (deviation + 1), deviation


def _blocks(x: torch.Tensor, side: int) -> torch.Tensor:
    """(H,W) cut into (blocks,side,side)."""
    rows, columns = x.shape[0] // side, x.shape[1] // side
    cut = x[: rows * side, : columns * side].reshape(rows, side, columns, side)
    return cut.transpose(1, 2).reshape(-1, side, side)


def _features_of(block: torch.Tensor) -> torch.Tensor:
    """(18,): shape and width of the block's values, then of products of neighbours."""
    shape, left, right, _ = _fit_asymmetric(block)
    found = [shape, (left + right) / 2]
    for down, across in _NEIGHBOURS:
        products = block * torch.roll(block, (down, across), dims=(0, 1))
        shape, left, right, mean = _fit_asymmetric(products)
        found += [shape, mean, left, right]
    return torch.stack(found)


def _fit_asymmetric(values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Asymmetric generalised Gaussian by moments: shape, left and right width, mean (eq. 6-9)."""
    tiny = torch.finfo(torch.float64).tiny
    values = values.flatten()
    negative, positive = values[values < 0], values[values > 0]
    left, right = (
        part.square().mean().sqrt() if len(part) else torch.tensor(tiny, dtype=torch.float64)
        for part in (negative, positive)
    )
    balance = left / right.clamp(min=tiny)
    ratio = values.abs().mean() ** 2 / values.square().mean().clamp(min=tiny)
    ratio = ratio * (balance**3 + 1) * (balance + 1) / (balance**2 + 1) ** 2
    shape = _SHAPES[(_RATIOS - ratio).abs().argmin()]
    # β of either side, from its deviation.
    spread = torch.exp(0.5 * (torch.lgamma(1 / shape) - torch.lgamma(3 / shape)))
    left, right = left * spread, right * spread
    offset = torch.exp(torch.lgamma(2 / shape) - torch.lgamma(1 / shape))
    return shape, left, right, (right - left) * offset
