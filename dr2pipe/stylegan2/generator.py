"""StyleGAN2's generator: mapping network, and synthesis into which others can fuse features."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from dr2pipe.core.diffusers_types import ConfigMixin, ModelMixin, register_to_config
from dr2pipe.stylegan2.layers import (
    EqualLinear,
    StyledConv,
    ToRGB,
    channels_at,
    check_resample,
    check_size,
)

# (features (B,C,R,R), resolution R, "enter" or "upsampled") -> features of the same shape
Fuse = Callable[[torch.Tensor, int, str], torch.Tensor]
# None: the stored noise; a generator: drawn anew; a sequence: one (B or 1,1,R,R) for each layer
Noise = None | torch.Generator | Sequence[torch.Tensor]


class StyleGAN2Generator(ModelMixin, ConfigMixin):
    """Styles to pictures (Karras et al. 2020, "skip" generator of figure 7).

    Args:
        size: side in pixels, a power of two from 8 on.
        style_channels: width of z and w.
        style_width: width of what modulates each layer, where it is wider than w (EXE-GAN
            appends a global code); None: ``style_channels``.
        mapping_layers: number of fully connected layers between z and w.
        mapping_lr: their learning rate as a share of the others'.
        channel_multiplier: widths of feature maps are 512 up to 32 pixels, 256 times this at 64
            pixels, and half as much at every further resolution.
        narrow: factor of all widths.
        resample: ``fir`` ([1,3,3,1], as published) or ``bilinear`` (GFP-GAN's "clean" one).
        learned_start: the 4x4 feature is a parameter; False where ``start`` is always given.

    Raises:
        ConfigError: a size that is not a power of two, or an unknown ``resample``.
    """

    @register_to_config
    def __init__(
        self,
        size: int = 512,
        style_channels: int = 512,
        style_width: int | None = None,
        mapping_layers: int = 8,
        mapping_lr: float = 0.01,
        channel_multiplier: int = 2,
        narrow: float = 1.0,
        resample: str = "fir",
        learned_start: bool = True,
    ):
        super().__init__()
        check_size(size)
        check_resample(resample)
        self.mapping = Mapping(style_channels, mapping_layers, mapping_lr)
        style_width = style_width or style_channels
        width = channels_at(4, channel_multiplier, narrow)
        self.start_channels = width
        self.start = nn.Parameter(torch.randn(1, width, 4, 4)) if learned_start else None
        self.convs = nn.ModuleList([StyledConv(width, width, style_width, None)])
        self.to_rgbs = nn.ModuleList([ToRGB(width, style_width, resample)])
        for resolution in self.resolutions[1:]:
            width_out = channels_at(resolution, channel_multiplier, narrow)
            self.convs.append(StyledConv(width, width_out, style_width, resample))
            self.convs.append(StyledConv(width_out, width_out, style_width, None))
            self.to_rgbs.append(ToRGB(width_out, style_width, resample))
            width = width_out
        for i, resolution in enumerate(self.noise_sizes):
            self.register_buffer(f"noise_{i}", torch.randn(1, 1, resolution, resolution))

    @property
    def resolutions(self) -> list[int]:
        """4, 8, ... ``size``."""
        return [1 << power for power in range(2, int(math.log2(self.config.size)) + 1)]

    @property
    def num_latents(self) -> int:
        """Rows of a W+ latent: 2·log2(size) - 2."""
        return 2 * len(self.resolutions)

    @property
    def noise_sizes(self) -> list[int]:
        """Side of each layer's noise: 4, 8, 8, 16, 16, ..."""
        return [4, *(r for r in self.resolutions[1:] for _ in range(2))]

    def forward(
        self,
        latents: torch.Tensor,
        *,
        noise: Noise = None,
        start: torch.Tensor | None = None,
        fuse: Fuse | None = None,
    ) -> torch.Tensor:
        """Synthesis.

        Args:
            latents: (B,C) W, or (B,num_latents,C) W+. Each resolution uses three rows, for its
                two convolutions and its picture; the last of them is the next one's first.
            noise: see ``Noise``. The stored noise makes results repeatable.
            start: (B,C,4,4) in place of the learned feature.
            fuse: replaces features by what it returns. It is called with the features that enter
                each resolution ("enter", before they are enlarged, with their own side) and with
                the enlarged ones ("upsampled", after the first convolution).

        Returns:
            (B,3,size,size), around [-1,1], not clamped.

        Raises:
            ValueError: latents, noise or a start of the wrong shape, or no start at all.
        """
        if latents.ndim == 2:
            latents = latents[:, None].expand(-1, self.num_latents, -1)
        self._check(latents, noise)
        noises = self._noises(noise, latents)
        styles = latents.unbind(dim=1)
        x = self._start(start, len(latents)).to(latents.dtype)
        x = x.expand(len(latents), -1, -1, -1)  # (B,C,4,4)
        x = self.convs[0](x, styles[0], noises[0])
        picture: torch.Tensor = self.to_rgbs[0](x, styles[1], None)  # (B,3,4,4)
        for level, resolution in enumerate(self.resolutions[1:], 1):
            row = 2 * level - 1
            if fuse is not None:
                x = fuse(x, resolution // 2, "enter")
            x = self.convs[row](x, styles[row], noises[row])  # (B,C,resolution,resolution)
            if fuse is not None:
                x = fuse(x, resolution, "upsampled")
            x = self.convs[row + 1](x, styles[row + 1], noises[row + 1])
            picture = self.to_rgbs[level](
                x, styles[row + 2], picture
            )  # (B,3,resolution,resolution)
        return picture

    def mix(self, w: torch.Tensor, other: torch.Tensor, crossover: int) -> torch.Tensor:
        """Mix two styles (Karras et al. 2019, §3.1).

        Args:
            w: (B,C), of the first ``crossover`` rows.
            other: (B,C), of the other rows.
            crossover: 0..num_latents.

        Returns:
            W+ (B,num_latents,C).

        Raises:
            ValueError: a crossover that is out of range.
        """
        if not 0 <= crossover <= self.num_latents:
            raise ValueError(f"crossover={crossover} must lie in 0..{self.num_latents}")
        first = w[:, None].expand(-1, crossover, -1)
        rest = other[:, None].expand(-1, self.num_latents - crossover, -1)
        return torch.cat([first, rest], dim=1)

    @torch.no_grad()
    def mean_w(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """(1,C): the mean of w over ``count`` random z."""
        z = torch.randn(
            count, self.config.style_channels, generator=generator, device=generator.device
        )
        w: torch.Tensor = self.mapping(z.to(self.device, self.dtype))
        return w.mean(dim=0, keepdim=True)

    def _check(self, latents: torch.Tensor, noise: Noise) -> None:
        width = self.config.style_width or self.config.style_channels
        expected = (len(latents), self.num_latents, width)
        if latents.shape != expected:
            raise ValueError(f"latents {tuple(latents.shape)} instead of {expected}")
        if isinstance(noise, Sequence) and [t.shape[-1] for t in noise] != self.noise_sizes:
            raise ValueError(f"noise needs one tensor for each of the sizes {self.noise_sizes}")

    def _start(self, start: torch.Tensor | None, batch: int) -> torch.Tensor:
        """The feature (B or 1,C,4,4) that synthesis starts from."""
        if start is None:
            if self.start is None:
                raise ValueError("this generator has no learned start; give one")
            return self.start
        shape = (batch, self.start_channels, 4, 4)
        if start.shape != shape:
            raise ValueError(f"a start of {tuple(start.shape)} instead of {shape}")
        return start

    def _noises(self, noise: Noise, latents: torch.Tensor) -> Sequence[torch.Tensor]:
        if isinstance(noise, torch.Generator):
            return [
                torch.randn(len(latents), 1, r, r, generator=noise, device=noise.device).to(latents)
                for r in self.noise_sizes
            ]
        if noise is None:
            return [self.get_buffer(f"noise_{i}") for i in range(len(self.noise_sizes))]
        return noise


class Mapping(nn.Module):
    """z to w: z divided by its root mean square, then fully connected layers."""

    def __init__(self, width: int, layers: int, lr_multiplier: float):
        super().__init__()
        self.layers = nn.ModuleList(
            EqualLinear(width, width, lr_multiplier=lr_multiplier, activate=True)
            for _ in range(layers)
        )

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """(B,C) to (B,C)."""
        w = z * (z.float().square().mean(dim=1, keepdim=True) + 1e-8).rsqrt().to(z.dtype)
        for layer in self.layers:
            w = layer(w)
        return w


def truncate(w: torch.Tensor, centre: torch.Tensor, psi: float) -> torch.Tensor:
    """Truncation (Karras et al. 2019, appendix B).

    Args:
        w: (B,C) or (B,rows,C).
        centre: the mean of w, broadcast to it.
        psi: 1 returns ``w``, 0 the centre.
    """
    return centre + psi * (w - centre)
