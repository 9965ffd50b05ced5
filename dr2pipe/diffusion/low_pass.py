"""Low-pass filters φ for DR2's guidance (paper, eq. 6): from (B,C,H,W) to the same shape.

The default is the paper's φ_N: shrink by N, then grow by N, with an antialiased cubic. Both steps
are linear and separable, so φ_N x = M_h x M_wᵀ with one small matrix per axis.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral
from typing import Any

import torch

from dr2pipe.core.errors import ConfigError

LowPass = Callable[[torch.Tensor], torch.Tensor]
BuildMatrix = Callable[[int, float], torch.Tensor]  # from length and strength, float64


@dataclass(frozen=True)
class BicubicLowPass:
    """Bicubic down by ``factor``, then up by ``factor`` (DR2 §3.2; ILVR's φ_N).

    Keys cubic with a = -0.5, stretched by ``factor`` when shrinking, borders extended
    symmetrically (d c b a | a b c d | d c b a), rows normalised to one. Equals MATLAB's
    ``imresize`` twice. H and W must be multiples of ``factor``; factor 1 is the identity.
    """

    factor: int

    def __post_init__(self) -> None:
        if not isinstance(self.factor, Integral) or self.factor < 1:
            raise ConfigError(
                f"low-pass factor N must be a whole number of at least 1, not {self.factor}"
            )

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Filter (B,C,H,W)."""
        height, width = x.shape[-2:]
        if height % self.factor or width % self.factor:
            divisors = [n for n in (1, 2, 4, 8, 16, 32) if height % n == 0 and width % n == 0]
            raise ConfigError(
                f"low-pass factor N={self.factor} does not divide {height}x{width}; "
                f"of the usual factors {divisors} do"
            )
        if self.factor == 1:
            return x
        return _apply_separable(x, _down_up_matrix, self.factor)


@dataclass(frozen=True)
class GaussianLowPass:
    """Gaussian blur of standard deviation ``sigma_px`` pixels, borders extended symmetrically."""

    sigma_px: float

    def __post_init__(self) -> None:
        if not self.sigma_px > 0:
            raise ConfigError(f"sigma_px must be positive, not {self.sigma_px}")

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Filter (B,C,H,W)."""
        return _apply_separable(x, _gaussian_matrix, float(self.sigma_px))


@dataclass(frozen=True)
class FFTLowPass:
    """Keep frequencies up to ``cutoff`` times the Nyquist frequency (ideal disk, periodic border).

    ``cutoff`` lies in (0, 1]; 1/N keeps about what ``BicubicLowPass(N)`` keeps.
    """

    cutoff: float

    def __post_init__(self) -> None:
        if not 0 < self.cutoff <= 1:
            raise ConfigError(f"cutoff must lie in (0, 1], not {self.cutoff}")

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Filter (B,C,H,W)."""
        vertical = torch.fft.fftfreq(x.shape[-2], device=x.device)[:, None]  # cycles per pixel
        horizontal = torch.fft.rfftfreq(x.shape[-1], device=x.device)[None]
        keep = torch.hypot(vertical, horizontal) <= self.cutoff / 2
        filtered: torch.Tensor = torch.fft.irfft2(torch.fft.rfft2(x) * keep, s=x.shape[-2:])
        return filtered


@dataclass(frozen=True)
class NoLowPass:
    """The identity: every frequency of the guidance is kept (DR2 with N = 1)."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Filter (B,C,H,W)."""
        return x


LOW_PASS: dict[str, Callable[..., LowPass]] = {
    "bicubic": BicubicLowPass,
    "gaussian": GaussianLowPass,
    "fft": FFTLowPass,
    "none": NoLowPass,
}


def build_low_pass(name: str, **options: Any) -> LowPass:
    """Return a filter: bicubic(factor), gaussian(sigma_px), fft(cutoff) or none.

    Raises:
        ConfigError: unknown name, missing, unknown or out-of-range option.
    """
    if name not in LOW_PASS:
        raise ConfigError(f"unknown low-pass filter '{name}'; choose one of {', '.join(LOW_PASS)}")
    expected = set(inspect.signature(LOW_PASS[name]).parameters)
    if set(options) != expected:
        takes = ", ".join(sorted(expected)) or "no options"
        given = ", ".join(sorted(options)) or "none"
        raise ConfigError(f"low-pass filter '{name}' takes {takes}; given: {given}")
    return LOW_PASS[name](**options)


def _apply_separable(x: torch.Tensor, build: BuildMatrix, parameter: float) -> torch.Tensor:
    rows = _on_device(build, x.shape[-2], parameter, x.device, x.dtype)
    columns = _on_device(build, x.shape[-1], parameter, x.device, x.dtype)
    return rows @ x @ columns.T  # (H,H) @ (B,C,H,W) @ (W,W)


@lru_cache(maxsize=32)
def _on_device(
    build: BuildMatrix, length: int, parameter: float, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    # Tensors made in inference mode could not be used where gradients are wanted later.
    with torch.inference_mode(False):
        return build(length, parameter).to(dtype).to(device)  # not every device has float64


def _down_up_matrix(length: int, factor: float) -> torch.Tensor:
    """(length, length) float64: shrink by a whole ``factor``, then grow by it."""
    factor = int(factor)
    down = _cubic_matrix(length, length // factor, kernel_stretch=factor)
    up = _cubic_matrix(length // factor, length, kernel_stretch=1)
    return up @ down


def _cubic_matrix(length_in: int, length_out: int, *, kernel_stretch: int) -> torch.Tensor:
    centres = (torch.arange(length_out, dtype=torch.float64) + 0.5) * length_in / length_out - 0.5
    reach = 2 * kernel_stretch
    first = torch.floor(centres - reach).long()
    taps = first[:, None] + torch.arange(2 * reach + 2)  # generous: outer taps weigh zero
    weights = _keys_cubic((centres[:, None] - taps) / kernel_stretch)
    return _fold(weights, taps, length_in)


def _gaussian_matrix(length: int, sigma_px: float) -> torch.Tensor:
    reach = math.ceil(4 * sigma_px)
    centres = torch.arange(length)
    taps = centres[:, None] + torch.arange(-reach, reach + 1)
    weights = torch.exp(-0.5 * ((centres[:, None] - taps).double() / sigma_px) ** 2)
    return _fold(weights, taps, length)


def _fold(weights: torch.Tensor, taps: torch.Tensor, length: int) -> torch.Tensor:
    """Dense matrix from weights (out, K) at positions ``taps``, reflected into 0..length-1."""
    weights = weights / weights.sum(dim=1, keepdim=True)
    position = taps.remainder(2 * length)
    position = torch.where(position < length, position, 2 * length - 1 - position)
    matrix = torch.zeros(len(weights), length, dtype=torch.float64)
    return matrix.scatter_add_(1, position, weights)


def _keys_cubic(x: torch.Tensor) -> torch.Tensor:
    """Keys' cubic convolution kernel with a = -0.5 (Keys 1981, eq. 15)."""
    x = x.abs()
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
