"""Layers of StyleGAN2 in plain torch: equalised, modulated, resampling.

Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020 (§2.2,
appendix B); equalised learning rates: Karras et al., "Progressive Growing of GANs", ICLR 2018
(§4.1): weights are stored with unit variance and scaled when they are used.

Every leaky ReLU has slope 0.2 and is multiplied by sqrt(2), which keeps the variance. Networks
without that factor are the same functions with other weights; conversion folds it in.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from dr2pipe.core.errors import ConfigError

LEAKY_RELU_GAIN = math.sqrt(2)
RESAMPLINGS = ("fir", "bilinear")
_FIR_TAPS = (0.125, 0.375, 0.375, 0.125)  # [1,3,3,1] / 8


def check_resample(resample: str) -> None:
    """Check the name of a resampling.

    Raises:
        ConfigError: it is not in ``RESAMPLINGS``.
    """
    if resample not in RESAMPLINGS:
        raise ConfigError(f"unknown resample '{resample}'; choose {' or '.join(RESAMPLINGS)}")


def check_size(size: int) -> None:
    """Check the side in pixels of a network's pictures.

    Raises:
        ConfigError: it is not a power of two from 8 on.
    """
    if not isinstance(size, int) or size < 8 or size & (size - 1):
        raise ConfigError(f"size={size} is not a power of two from 8 on")


def channels_at(resolution: int, channel_multiplier: int, narrow: float = 1.0) -> int:
    """Width of the feature maps at a side of ``resolution`` pixels.

    512 up to 32 pixels; above, 16384·``channel_multiplier`` / resolution. ``narrow`` is a factor
    of both.
    """
    width = 512 if resolution <= 32 else 16384 * channel_multiplier // resolution
    return int(width * narrow)


def leaky_relu(x: torch.Tensor) -> torch.Tensor:
    """Leaky ReLU of slope 0.2, times sqrt(2)."""
    return F.leaky_relu(x, 0.2) * LEAKY_RELU_GAIN


# -- resampling ------------------------------------------------------------------------------


def smooth(x: torch.Tensor, padding: tuple[int, int], gain: float = 1.0) -> torch.Tensor:
    """The filter [1,3,3,1] along both axes.

    Args:
        x: (B,C,H,W).
        padding: zeros (before, after) on each axis.
        gain: factor of the result.
    """
    before, after = padding
    x = F.pad(x, (before, after, before, after))
    kernel = _fir_kernel(x, gain)
    return F.conv2d(x, kernel, groups=x.shape[1])


def upsample(x: torch.Tensor, resample: str) -> torch.Tensor:
    """(B,C,H,W) to (B,C,2H,2W) by one of ``RESAMPLINGS``."""
    if resample == "bilinear":
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    # Zeros between the pixels, then the filter: a transposed convolution does both.
    return F.conv_transpose2d(x, _fir_kernel(x, gain=4.0), stride=2, padding=1, groups=x.shape[1])


def halve_bilinear(x: torch.Tensor) -> torch.Tensor:
    """(B,C,H,W) to (B,C,H/2,W/2)."""
    return F.interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=False)


def _fir_kernel(x: torch.Tensor, gain: float) -> torch.Tensor:
    """(C,1,4,4), one filter for each channel of ``x``."""
    taps = x.new_tensor(_FIR_TAPS)
    return (gain * taps[:, None] * taps[None, :]).expand(x.shape[1], 1, 4, 4)


# -- equalised layers ------------------------------------------------------------------------


class EqualLinear(nn.Module):
    """Linear layer, weights scaled by lr_multiplier / sqrt(width_in)."""

    def __init__(
        self,
        width_in: int,
        width_out: int,
        *,
        initial_bias: float = 0.0,
        lr_multiplier: float = 1.0,
        activate: bool = False,
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width_out, width_in) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((width_out,), initial_bias / lr_multiplier))
        self.weight_scale = lr_multiplier / math.sqrt(width_in)
        self.bias_scale = lr_multiplier
        self.activate = activate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B,width_in) to (B,width_out)."""
        x = F.linear(x, self.weight * self.weight_scale, self.bias * self.bias_scale)
        return leaky_relu(x) if self.activate else x


class EqualConv2d(nn.Module):
    """Convolution that keeps the size, or changes it by a factor of two ("down", "up").

    Down with ``fir``: smooth, then convolve with stride 2. Down with ``bilinear``: halve, then
    convolve. Up: enlarge bilinearly, then convolve (only GFP-GAN's U-Net needs it).
    """

    bias_scale = 1.0

    def __init__(
        self,
        width_in: int,
        width_out: int,
        kernel: int,
        *,
        change: str | None = None,
        resample: str = "fir",
        bias: bool = True,
        initial_bias: float = 0.0,
        activate: bool = False,
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width_out, width_in, kernel, kernel))
        self.bias = nn.Parameter(torch.full((width_out,), initial_bias)) if bias else None
        self.weight_scale = 1 / math.sqrt(width_in * kernel**2)
        self.change, self.resample, self.activate = change, resample, activate
        self.padding = kernel // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B,width_in,H,W) to (B,width_out,H,W), or half or twice the size."""
        stride, padding = 1, self.padding
        if self.change == "up":
            x = upsample(x, "bilinear")
        elif self.change == "down" and self.resample == "bilinear":
            x = halve_bilinear(x)
        elif self.change == "down":
            x = smooth(x, (padding + 1, padding + 1))
            stride, padding = 2, 0
        x = F.conv2d(x, self.weight * self.weight_scale, self.bias, stride, padding)
        return leaky_relu(x) if self.activate else x


class ResidualBlock(nn.Module):
    """Two activated convolutions, the second changes the size; (branch + shortcut) / sqrt(2)."""

    def __init__(self, width_in: int, width_out: int, *, change: str, resample: str):
        super().__init__()
        self.conv1 = EqualConv2d(width_in, width_in, 3, activate=True)
        self.conv2 = EqualConv2d(
            width_in, width_out, 3, activate=True, change=change, resample=resample
        )
        self.shortcut = EqualConv2d(
            width_in, width_out, 1, bias=False, change=change, resample=resample
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B,width_in,H,W) to (B,width_out,H/2,W/2), or twice the size with "up"."""
        total: torch.Tensor = self.conv2(self.conv1(x)) + self.shortcut(x)
        return total / math.sqrt(2)


# -- modulated layers ------------------------------------------------------------------------


class ModulatedConv2d(nn.Module):
    """Convolution whose input channels a style scales (eq. 1), outputs normalised (eq. 3).

    Scaling the pictures instead of the weights gives the same result with one set of weights
    for the whole batch.
    """

    def __init__(
        self,
        width_in: int,
        width_out: int,
        kernel: int,
        style_width: int,
        *,
        demodulate: bool = True,
        upsampling: str | None = None,
    ):
        super().__init__()
        self.modulation = EqualLinear(style_width, width_in, initial_bias=1.0)
        self.weight = nn.Parameter(torch.randn(width_out, width_in, kernel, kernel))
        self.weight_scale = 1 / math.sqrt(width_in * kernel**2)
        self.demodulate, self.upsampling = demodulate, upsampling
        self.padding = kernel // 2

    def forward(self, x: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        """``x`` (B,C,H,W), ``style`` (B,style_width)."""
        scales = self.modulation(style)  # (B,C)
        weight = self.weight * self.weight_scale
        x = x * scales[:, :, None, None].to(x.dtype)
        if self.upsampling == "fir":
            x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)  # (B,out,2H+1,2W+1)
            x = smooth(x, (1, 1), gain=4.0)  # (B,out,2H,2W)
        else:
            if self.upsampling == "bilinear":
                x = upsample(x, "bilinear")
            x = F.conv2d(x, weight, padding=self.padding)
        if self.demodulate:
            # Sums of thousands of squares are taken in float32, whatever the precision of x.
            power = weight.float().square().sum(dim=(2, 3))  # (out,in)
            energy = (scales.float().square()[:, None] * power).sum(dim=2)  # (B,out)
            x = x * (energy + 1e-8).rsqrt()[:, :, None, None].to(x.dtype)
        return x


class StyledConv(nn.Module):
    """Modulated convolution, noise, bias and leaky ReLU."""

    def __init__(self, width_in: int, width_out: int, style_width: int, upsampling: str | None):
        super().__init__()
        self.conv = ModulatedConv2d(width_in, width_out, 3, style_width, upsampling=upsampling)
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(width_out))

    def forward(self, x: torch.Tensor, style: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """``x`` (B,width_in,h,w), ``style`` (B,style_width), ``noise`` (B or 1,1,H,W).

        The result is (B,width_out,H,W); H, W are h, w, or twice that with upsampling.
        """
        x = self.conv(x, style)
        x = x + (self.noise_strength * noise).to(x.dtype)
        return leaky_relu(x + self.bias[:, None, None].to(x.dtype))


class ToRGB(nn.Module):
    """Adds this resolution's picture to the enlarged picture of the resolution before."""

    def __init__(self, width_in: int, style_width: int, resample: str):
        super().__init__()
        self.conv = ModulatedConv2d(width_in, 3, 1, style_width, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(3))
        self.resample = resample

    def forward(
        self, x: torch.Tensor, style: torch.Tensor, smaller: torch.Tensor | None
    ) -> torch.Tensor:
        """``x`` (B,C,H,W), ``style`` (B,style_width), ``smaller`` (B,3,H/2,W/2) to (B,3,H,W)."""
        picture: torch.Tensor = self.conv(x, style) + self.bias[:, None, None].to(x.dtype)
        return picture if smaller is None else picture + upsample(smaller, self.resample)
