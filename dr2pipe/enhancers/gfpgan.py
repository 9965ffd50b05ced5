"""GFP-GAN: a U-Net removes the degradation, a StyleGAN2 prior draws the face from its features.

Wang et al., "Towards Real-World Blind Face Restoration with Generative Facial Prior", CVPR 2021.
The U-Net (§3.2) gives a W+ latent (§3.3) and, at every resolution, a scale and a shift for the
prior's features: the channel-split spatial feature transform (§3.4).
"""

from __future__ import annotations

import torch
from torch import nn

from dr2pipe.core.diffusers_types import register_to_config
from dr2pipe.enhancers.base import Enhancer, check_side
from dr2pipe.stylegan2 import StyleGAN2Generator
from dr2pipe.stylegan2.generator import Noise
from dr2pipe.stylegan2.layers import EqualConv2d, EqualLinear, ResidualBlock, channels_at


class GFPGAN(Enhancer):
    """GFP-GAN, the published network and its later "clean" versions.

    Args:
        size: side in pixels of input and output, a power of two from 8 on.
        channel_multiplier: widths of the prior, see ``StyleGAN2Generator``; the U-Net is half
            as wide.
        narrow: factor of all widths.
        resample: ``bilinear`` (versions 1.2 to 1.4) or ``fir`` (version 1, as in the paper).
        style_channels, mapping_layers, mapping_lr: of the prior.
        latent_per_layer: the U-Net gives a latent for each layer (W+), or one for all.
        latent_is_w: that latent is W+ itself; False: it goes through the mapping network first.
        split_channels: the transform changes the second half of the prior's channels alone.

    The defaults are GFPGANv1.4.
    """

    @register_to_config
    def __init__(
        self,
        size: int = 512,
        channel_multiplier: int = 2,
        narrow: float = 1.0,
        resample: str = "bilinear",
        style_channels: int = 512,
        mapping_layers: int = 8,
        mapping_lr: float = 0.01,
        latent_per_layer: bool = True,
        latent_is_w: bool = True,
        split_channels: bool = True,
    ):
        super().__init__()
        self.prior = StyleGAN2Generator(
            size=size,
            style_channels=style_channels,
            mapping_layers=mapping_layers,
            mapping_lr=mapping_lr,
            channel_multiplier=channel_multiplier,
            narrow=narrow,
            resample=resample,
        )
        growing = self.prior.resolutions  # 4, 8, ... size
        widths = {r: channels_at(r, channel_multiplier, narrow * 0.5) for r in growing}
        self.first = EqualConv2d(3, widths[size], 1, activate=True)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.to_rgbs = nn.ModuleList()  # the pyramid, from 8 pixels to size
        self.to_scale, self.to_shift = nn.ModuleList(), nn.ModuleList()
        for resolution in reversed(growing[1:]):
            change = {"change": "down", "resample": resample}
            block = ResidualBlock(widths[resolution], widths[resolution // 2], **change)
            self.down.append(block)
        self.last = EqualConv2d(widths[4], widths[4], 3, activate=True)
        rows = self.prior.num_latents if latent_per_layer else 1
        self.to_latent = EqualLinear(widths[4] * 4 * 4, rows * style_channels)
        for resolution in growing[1:]:
            width = widths[resolution]
            change = {"change": "up", "resample": "bilinear"}
            self.up.append(ResidualBlock(widths[resolution // 2], width, **change))
            self.to_rgbs.append(EqualConv2d(width, 3, 1))
            transformed = width if split_channels else 2 * width  # the prior is twice as wide
            self.to_scale.append(_two_convs(width, transformed, initial_bias=1.0))
            self.to_shift.append(_two_convs(width, transformed, initial_bias=0.0))

    @property
    def input_size(self) -> int:
        """Side in pixels of the pictures that it takes."""
        return int(self.config.size)

    @property
    def output_size(self) -> int:
        """Side in pixels of its results."""
        return int(self.config.size)

    def forward(
        self, x: torch.Tensor, *, noise: Noise = None, return_pyramid: bool = False
    ) -> torch.Tensor | tuple[torch.Tensor, list[torch.Tensor]]:
        """(B,3,size,size) RGB in [-1,1] to the same, not clamped.

        Args:
            x: the degraded faces.
            noise: of the prior; None is the stored one, so that results repeat.
            return_pyramid: also return the U-Net's own pictures, of 8, 16, ... ``size`` pixels,
                which training compares (§3.5, the reconstruction loss).

        Raises:
            ValueError: a picture of another size.
        """
        check_side(x, self.input_size)
        skips: list[torch.Tensor] = []
        features = self.first(x)  # (B,C,size,size)
        for block in self.down:
            features = block(features)
            skips.append(features)  # (B,C,size/2,size/2) to (B,C,4,4)
        features = self.last(features)  # (B,C,4,4)
        latents = self.to_latent(features.flatten(1))
        latents = latents.unflatten(1, (-1, self.config.style_channels))  # (B,rows,C)
        pyramid: list[torch.Tensor] = []
        transforms: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for i, block in enumerate(self.up):
            features = block(features + skips.pop())  # (B,C,8,8) to (B,C,size,size)
            transforms[features.shape[-1]] = self.to_scale[i](features), self.to_shift[i](features)
            if return_pyramid:
                pyramid.append(self.to_rgbs[i](features))
        restored = self._draw(latents, transforms, noise)
        return (restored, pyramid) if return_pyramid else restored

    def _draw(
        self,
        latents: torch.Tensor,
        transforms: dict[int, tuple[torch.Tensor, torch.Tensor]],
        noise: Noise,
    ) -> torch.Tensor:
        """The prior's picture (B,3,size,size); ``transforms``: scale and shift by resolution."""
        if not self.config.latent_is_w:
            rows = latents.shape[1]
            latents = self.prior.mapping(latents.flatten(0, 1)).unflatten(0, (-1, rows))
        latents = latents.expand(-1, self.prior.num_latents, -1)

        def transform(x: torch.Tensor, resolution: int, stage: str) -> torch.Tensor:
            if stage != "upsampled":
                return x
            scale, shift = transforms[resolution]
            if not self.config.split_channels:
                return x * scale + shift
            kept, changed = x.chunk(2, dim=1)
            return torch.cat([kept, changed * scale + shift], dim=1)

        restored: torch.Tensor = self.prior(latents, noise=noise, fuse=transform)
        return restored


def _two_convs(width: int, width_out: int, *, initial_bias: float) -> nn.Sequential:
    return nn.Sequential(
        EqualConv2d(width, width, 3, activate=True),
        EqualConv2d(width, width_out, 3, initial_bias=initial_bias),
    )
