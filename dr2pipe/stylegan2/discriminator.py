"""StyleGAN2's discriminator."""

from __future__ import annotations

import torch
from torch import nn

from dr2pipe.core.diffusers_types import ConfigMixin, ModelMixin, register_to_config
from dr2pipe.stylegan2.layers import (
    EqualConv2d,
    EqualLinear,
    ResidualBlock,
    channels_at,
    check_size,
)

_LARGEST_GROUP = 4


class StyleGAN2Discriminator(ModelMixin, ConfigMixin):
    """Residual discriminator with minibatch standard deviation (Karras et al. 2020, figure 7).

    Args:
        size: side in pixels, a power of two from 8 on.
        channel_multiplier: widths, as the generator's.
        narrow: factor of all widths.

    Raises:
        ConfigError: a size that is not a power of two from 8 on.
    """

    @register_to_config
    def __init__(self, size: int = 512, channel_multiplier: int = 2, narrow: float = 1.0):
        super().__init__()
        check_size(size)
        width = channels_at(size, channel_multiplier, narrow)
        self.from_rgb = EqualConv2d(3, width, 1, activate=True)
        self.blocks = nn.ModuleList()
        resolution = size
        while resolution > 4:
            resolution //= 2
            width_out = channels_at(resolution, channel_multiplier, narrow)
            self.blocks.append(ResidualBlock(width, width_out, change="down", resample="fir"))
            width = width_out
        self.last = EqualConv2d(width + 1, width, 3, activate=True)
        self.hidden = EqualLinear(width * 4 * 4, width, activate=True)
        self.score = EqualLinear(width, 1)

    def forward(
        self, x: torch.Tensor, *, return_features: bool = False
    ) -> torch.Tensor | tuple[torch.Tensor, list[torch.Tensor]]:
        """(B,3,size,size) RGB in [-1,1] to scores (B,1), higher for real.

        With ``return_features``, the maps after each block are returned too, from large to small.
        """
        features: list[torch.Tensor] = [self.from_rgb(x)]  # (B,C,size,size)
        for block in self.blocks:
            features.append(block(features[-1]))  # (B,C,r,r), r = size/2 ... 4
        x = torch.cat([features[-1], minibatch_deviation(features[-1])], dim=1)  # (B,C+1,4,4)
        x = self.last(x)  # (B,C,4,4)
        score: torch.Tensor = self.score(self.hidden(x.flatten(1)))
        return (score, features[1:]) if return_features else score


class FacePartDiscriminator(ModelMixin, ConfigMixin):
    """GFP-GAN's discriminator of an eye or a mouth: scores patches (Wang et al. 2021, §3.4)."""

    @register_to_config
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [
                EqualConv2d(3, 64, 3, activate=True),
                EqualConv2d(64, 128, 3, change="down", activate=True),
                EqualConv2d(128, 128, 3, activate=True),
                EqualConv2d(128, 256, 3, change="down", activate=True),
                EqualConv2d(256, 256, 3, activate=True),
            ]
        )
        self.score = EqualConv2d(256, 1, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """(B,3,H,W) RGB in [-1,1] to scores (B,1,H/4,W/4) and maps at 1/2 and 1/4 of the size."""
        features: list[torch.Tensor] = []
        for conv in self.convs:
            x = conv(x)
            features.append(x)
        return self.score(x), [features[2], features[4]]


def minibatch_deviation(x: torch.Tensor) -> torch.Tensor:
    """(B,C,H,W) to (B,1,H,W): how much the pictures of a group differ (Karras et al. 2018, §3).

    A group has four pictures, or three or two where that divides the batch, or else the whole
    batch. Picture i belongs to group i modulo the number of groups.
    """
    batch, _, height, width = x.shape
    group = max((n for n in range(2, _LARGEST_GROUP + 1) if batch % n == 0), default=batch)
    grouped = x.float().reshape(group, batch // group, *x.shape[1:])
    deviation = (grouped.var(dim=0, unbiased=False) + 1e-8).sqrt().mean(dim=(1, 2, 3))
    return deviation.repeat(group)[:, None, None, None].expand(-1, 1, height, width).to(x.dtype)
