"""Panini-Net: a StyleGAN2 prior whose features are interpolated with those of the picture.

Wang et al., "Panini-Net: GAN Prior Based Degradation-Aware Feature Interpolation for Face
Restoration", AAAI 2022 (§3). From the degradation it sees, Panini-Net decides per image and
channel how much to take from its prior and how much from the picture.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from dr2pipe.core.diffusers_types import register_to_config
from dr2pipe.core.errors import ConfigError
from dr2pipe.enhancers.base import Enhancer, check_side
from dr2pipe.enhancers.degradation_encoder import DegradationEncoder
from dr2pipe.stylegan2 import StyleGAN2Generator
from dr2pipe.stylegan2.generator import Noise
from dr2pipe.stylegan2.layers import channels_at

_SLOPE = 0.2  # of leaky ReLUs
_RESIDUAL = 0.2  # factor of branches in the RRDB (Wang et al. 2018, ESRGAN §3.1)
_FIRST_REDUCED = 32  # channels before the picture is reduced to the fused size


class PaniniNet(Enhancer):
    """Both official networks: 16x super-resolution, and restoration of 512 px faces.

    Args:
        input_size, size: sides in pixels of input and output, powers of two.
        fused_size: the largest side at which prior and picture are interpolated, at most
            ``input_size`` and half of ``size``.
        rrdb_channels, rrdb_blocks: of the extractor at ``input_size``.
        gate_reduction: how much narrower the channel attention's hidden layer is.
        degradation: ``encoder`` (an encoder describes the degradation of every picture) or
            ``learned`` (one vector for all pictures, for a single known degradation as in
            super-resolution).
        degradation_width: of the encoder; the vector is four times as wide.
        interpolate: degradation-aware feature interpolation (the paper's DAFI); False
            concatenates the features and convolves them, for comparison.
        style_channels, mapping_layers, channel_multiplier, narrow: of the prior, see
            ``StyleGAN2Generator``; the encoder has its widths.

    The defaults are the official network for 512 px.
    """

    @register_to_config
    def __init__(
        self,
        input_size: int = 512,
        size: int = 1024,
        fused_size: int = 64,
        rrdb_channels: int = 8,
        rrdb_blocks: int = 2,
        gate_reduction: int = 2,
        degradation: str = "encoder",
        degradation_width: int = 64,
        interpolate: bool = True,
        style_channels: int = 512,
        mapping_layers: int = 8,
        channel_multiplier: int = 2,
        narrow: float = 1.0,
    ):
        super().__init__()
        _check_sizes(input_size, size, fused_size)
        if degradation not in ("encoder", "learned"):
            raise ConfigError(f"degradation '{degradation}': choose encoder, learned")
        self.prior = StyleGAN2Generator(
            size=size,
            style_channels=style_channels,
            mapping_layers=mapping_layers,
            channel_multiplier=channel_multiplier,
            narrow=narrow,
        )
        widths = self._widths
        self.extract = RRDBExtractor(rrdb_channels, rrdb_blocks)
        self.attend = ConvolvedAttention(rrdb_channels, gate_reduction)
        halvings = int(math.log2(input_size // fused_size))
        reduced = [_FIRST_REDUCED << i for i in range(halvings)] + [widths[-1]]
        self.reduce = nn.ModuleList()
        for i, width in enumerate(reduced):
            width_in = reduced[i - 1] if i else rrdb_channels
            self.reduce.append(nn.Conv2d(width_in, width, 3, stride=2 if i else 1, padding=1))
        self.down = nn.ModuleList(
            nn.Conv2d(width, smaller, 3, stride=2, padding=1)
            for smaller, width in reversed(list(itertools.pairwise(widths)))
        )
        self.last = nn.Conv2d(widths[0], widths[0] // 2, 3, padding=1)
        rows = self.prior.num_latents
        self.to_latent = nn.Linear(widths[0] // 2 * 4 * 4, rows * style_channels)
        if degradation == "encoder":
            self.degradation_encoder = DegradationEncoder(degradation_width)
        else:
            self.degradation_vector = nn.Parameter(torch.randn(1, 4 * degradation_width))
        if interpolate:
            vector = 4 * degradation_width
            self.select = nn.ModuleList(
                [nn.Linear(vector, vector), nn.Linear(vector, 2 * sum(widths))]
            )
        taken = 1 if interpolate else 2  # parts that each convolution sees
        self.fusion = nn.ModuleList(nn.Conv2d(taken * w, w, 3, padding=1) for w in widths)

    @property
    def input_size(self) -> int:
        """Side in pixels of the pictures that it takes."""
        return int(self.config.input_size)

    @property
    def output_size(self) -> int:
        """Side in pixels of its results."""
        return int(self.config.size)

    @property
    def fused_sides(self) -> list[int]:
        """Sides in pixels at which prior and picture are interpolated: 4, 8, ... ``fused_size``."""
        return [1 << power for power in range(2, int(math.log2(self.config.fused_size)) + 1)]

    @property
    def _widths(self) -> list[int]:
        """Channels of prior and picture at ``fused_sides``."""
        multiplier, narrow = self.config.channel_multiplier, self.config.narrow
        return [channels_at(side, multiplier, narrow) for side in self.fused_sides]

    def forward(self, x: torch.Tensor, *, noise: Noise = None) -> torch.Tensor:
        """(B,3,input_size,input_size) RGB in [-1,1] to (B,3,size,size), not clamped.

        Args:
            x: the degraded faces.
            noise: of the prior; None is the stored one, so that results repeat.

        Raises:
            ValueError: a picture of another size.
        """
        check_side(x, self.input_size)
        latents, features = self.encode(x)
        places = {side: i for i, side in enumerate(self.fused_sides)}
        shares = self._shares(x) if self.config.interpolate else None

        def fuse(prior: torch.Tensor, side: int, stage: str) -> torch.Tensor:
            if stage != "enter" or side not in places:
                return prior  # (B,C,side,side)
            place = places[side]
            fused: torch.Tensor
            if shares is None:
                fused = self.fusion[place](torch.cat([prior, features[place]], dim=1))
            else:
                picture = self.fusion[place](features[place])  # (B,C,side,side)
                of_prior, of_picture = shares[place][..., None, None].unbind(dim=1)  # (B,C,1,1)
                fused = of_prior * prior + of_picture * picture
            return fused

        restored: torch.Tensor = self.prior(latents, noise=noise, fuse=fuse)
        return restored

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """W+ latents (B,rows,C), and features (B,C,R,R) for the sides ``fused_sides``."""
        x = self.attend(self.extract(x))  # (B,C,input_size,input_size)
        for conv in self.reduce:
            x = F.leaky_relu(conv(x), _SLOPE)
        features = [x]  # (B,C,fused_size,fused_size)
        for conv in self.down:
            features.append(F.leaky_relu(conv(features[-1]), _SLOPE))
        x = F.leaky_relu(self.last(features[-1]), _SLOPE)  # (B,C,4,4)
        latents = self.to_latent(x.flatten(1)).unflatten(1, (-1, self.config.style_channels))
        return latents, features[::-1]

    @torch.no_grad()
    def prior_shares(self, x: torch.Tensor) -> torch.Tensor:
        """How much is taken from the prior, (B,levels) float32 in [0,1].

        The mean over channels at each of ``fused_sides``. This part of a face is invented: the
        paper expects more of it for heavier degradations.

        Raises:
            ValueError: a picture of another size, or a network without interpolation.
        """
        check_side(x, self.input_size)
        if not self.config.interpolate:
            raise ValueError("a network without interpolation has no shares")
        shares = [shares[:, 0].mean(dim=1) for shares in self._shares(x)]
        return torch.stack(shares, dim=1).float()

    def notes(self, x: torch.Tensor) -> list[dict[str, Any]]:
        """``prior_share`` of each picture by side (see :meth:`prior_shares`)."""
        if not self.config.interpolate:
            return super().notes(x)
        sides = [f"{side} px" for side in self.fused_sides]
        return [
            {"prior_share": {s: round(v, 4) for s, v in zip(sides, values, strict=True)}}
            for values in self.prior_shares(x).tolist()
        ]

    def _shares(self, x: torch.Tensor) -> list[torch.Tensor]:
        """By level, (B,2,C): the shares of the prior and of the picture, which sum to 1."""
        if self.config.degradation == "encoder":
            vector = self.degradation_encoder(x)
        else:
            vector = self.degradation_vector.expand(len(x), -1)
        hidden, out = self.select
        scores = out(F.leaky_relu(hidden(vector), 0.1))  # (B,2·(sum of all widths))
        parts = torch.split(scores, [2 * width for width in self._widths], dim=1)
        return [part.reshape(len(x), 2, -1).softmax(dim=1) for part in parts]


class RRDBExtractor(nn.Module):
    """Residual-in-residual dense blocks (Wang et al. 2018, ESRGAN §3.1), (B,3,H,W) to (B,C,H,W)."""

    def __init__(self, width: int, blocks: int, growth: int = 32):
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(*(DenseBlock(width, growth) for _ in range(3))) for _ in range(blocks)
        )
        self.last = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B,3,H,W) to (B,C,H,W)."""
        first = self.first(x)
        x = first
        for block in self.blocks:
            x = x + _RESIDUAL * block(x)
        out: torch.Tensor = first + self.last(x)
        return out


class DenseBlock(nn.Module):
    """Five convolutions, each of which sees all before it, and a scaled residual sum."""

    def __init__(self, width: int, growth: int):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(width + i * growth, growth if i < 4 else width, 3, padding=1)
            for i in range(5)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B,width,H,W) to the same shape."""
        *growing, last = self.convs
        seen = [x]
        for conv in growing:
            seen.append(F.leaky_relu(conv(torch.cat(seen, dim=1)), _SLOPE))
        out: torch.Tensor = x + _RESIDUAL * last(torch.cat(seen, dim=1))
        return out


class ConvolvedAttention(nn.Module):
    """Channel and spatial attention (Woo et al. 2018, CBAM) as the official network has it.

    Unlike CBAM, it convolves its input before each gate, with one shared convolution, and has
    no path around it.
    """

    def __init__(self, width: int, reduction: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.squeeze = nn.Linear(width, width // reduction)
        self.excite = nn.Linear(width // reduction, width)
        self.spatial = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(1, momentum=0.01)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B,width,H,W) to the same shape."""
        x = self.conv(x)
        mean, largest = x.mean(dim=(2, 3)), x.amax(dim=(2, 3))  # (B,width)
        gate = self.excite(F.relu(self.squeeze(mean))) + self.excite(F.relu(self.squeeze(largest)))
        x = self.conv(x * gate.sigmoid()[:, :, None, None])
        pooled = [x.amax(dim=1, keepdim=True), x.mean(dim=1, keepdim=True)]  # (B,1,H,W)
        out: torch.Tensor = x * self.norm(self.spatial(torch.cat(pooled, dim=1))).sigmoid()
        return out


def _check_sizes(input_size: int, size: int, fused_size: int) -> None:
    for name, value in (("input_size", input_size), ("size", size), ("fused_size", fused_size)):
        if value < 4 or value & (value - 1):
            raise ConfigError(f"{name}={value} must be a power of two, 4 or more")
    if fused_size > min(input_size, size // 2):
        raise ConfigError(
            f"fused_size={fused_size} must be at most the input's {input_size} pixels and half "
            f"of the output's {size}"
        )
