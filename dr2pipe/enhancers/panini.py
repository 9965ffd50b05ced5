"""Panini-Net: a face drawn by a StyleGAN2 prior, mixed with features of the degraded picture.

Wang et al., "Panini-Net: GAN Prior Based Degradation-Aware Feature Interpolation for Face
Restoration", AAAI 2022 (§3). How much of each channel comes from the prior and how much from
the picture is decided by how the picture is degraded.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import nn

from dr2pipe.core.diffusers_types import ConfigMixin, ModelMixin, register_to_config
from dr2pipe.enhancers.degradation_encoder import DegradationEncoder
from dr2pipe.stylegan2 import StyleGAN2Generator
from dr2pipe.stylegan2.generator import Noise
from dr2pipe.stylegan2.layers import channels_at

_SLOPE = 0.2  # of leaky ReLUs
_RESIDUAL = 0.2  # factor of branches in the RRDB (Wang et al. 2018, ESRGAN §3.1)
_FIRST_REDUCED = 32  # channels before the picture is reduced to the fused size


class PaniniNet(ModelMixin, ConfigMixin):
    """Both official networks: 16x super-resolution, and restoration of 512 px faces.

    Args:
        input_size, size: sides in pixels of input and output, powers of two.
        fused_size: the largest side at which prior and picture are mixed, at most
            ``input_size`` and half of ``size``.
        rrdb_channels, rrdb_blocks: of the extractor at ``input_size``.
        gate_reduction: how much narrower the channel attention's hidden layer is.
        degradation: ``encoder`` (an encoder looks at every picture) or ``learned`` (one vector
            for all: the degradation is known, as in super-resolution).
        degradation_width: of the encoder; the vector is four times as wide.
        interpolate: with degradation-aware feature interpolation; False concatenates the
            features and convolves them, for comparison.
        style_channels, mapping_layers, channel_multiplier, narrow: of the prior, see
            ``StyleGAN2Generator``; the encoder has its widths.

    The defaults are the official network for 512 px.
    """

    conditions = ()

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
            raise ValueError(f"degradation '{degradation}': choose encoder, learned")
        self.prior = StyleGAN2Generator(
            size=size,
            style_channels=style_channels,
            mapping_layers=mapping_layers,
            channel_multiplier=channel_multiplier,
            narrow=narrow,
        )
        sides = self.fused_sides
        widths = [channels_at(side, channel_multiplier, narrow) for side in sides]
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
        return self.config.input_size

    @property
    def output_size(self) -> int:
        return self.config.size

    @property
    def fused_sides(self) -> list[int]:
        """4, 8, ... ``fused_size``."""
        return [1 << power for power in range(2, int(math.log2(self.config.fused_size)) + 1)]

    def forward(self, x: torch.Tensor, *, noise: Noise = None) -> torch.Tensor:
        """(B,3,input_size,input_size) RGB in [-1,1] to (B,3,size,size), not clamped.

        ``noise``: of the prior; None is the stored one, so that results repeat.

        Raises:
            ValueError: a picture of another size.
        """
        self._check(x)
        latents, features = self.encode(x)
        places = {side: i for i, side in enumerate(self.fused_sides)}
        shares = self._shares(x) if self.config.interpolate else None

        def fuse(drawn: torch.Tensor, side: int, stage: str) -> torch.Tensor:
            if stage != "enter" or side not in places:
                return drawn
            place = places[side]
            if shares is None:
                return self.fusion[place](torch.cat([drawn, features[place]], dim=1))
            seen = self.fusion[place](features[place])
            of_prior, of_picture = (s[:, :, None, None] for s in shares[place].unbind(dim=1))
            return of_prior * drawn + of_picture * seen

        return self.prior(latents, noise=noise, fuse=fuse)

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """W+ latents (B,rows,C), and features (B,C,R,R) for the sides ``fused_sides``."""
        x = self.attend(self.extract(x))
        for conv in self.reduce:
            x = F.leaky_relu(conv(x), _SLOPE)
        features = [x]
        for conv in self.down:
            features.append(F.leaky_relu(conv(features[-1]), _SLOPE))
        x = F.leaky_relu(self.last(features[-1]), _SLOPE)
        latents = self.to_latent(x.flatten(1)).unflatten(1, (-1, self.config.style_channels))
        return latents, features[::-1]

    @torch.no_grad()
    def prior_shares(self, x: torch.Tensor) -> torch.Tensor:
        """(B,levels), 0 to 1: the mean share of the prior at the sides ``fused_sides``.

        How much of a face is invented: the paper expects more for heavier degradations.

        Raises:
            ValueError: a picture of another size, or a network without interpolation.
        """
        self._check(x)
        if not self.config.interpolate:
            raise ValueError("a network without interpolation has no shares")
        return torch.stack([shares[:, 0].mean(dim=1) for shares in self._shares(x)], dim=1)

    def _shares(self, x: torch.Tensor) -> list[torch.Tensor]:
        """By level, (B,2,C): what is taken of the prior and of the picture; they sum to 1."""
        if self.config.degradation == "encoder":
            vector = self.degradation_encoder(x)
        else:
            vector = self.degradation_vector.expand(len(x), -1)
        hidden, out = self.select
        scores = out(F.leaky_relu(hidden(vector), 0.1))
        widths = [2 * conv.out_channels for conv in self.fusion]
        return [s.unflatten(1, (2, -1)).softmax(dim=1) for s in scores.split(widths, dim=1)]

    def _check(self, x: torch.Tensor) -> None:
        size = self.config.input_size
        if x.shape[-2:] != (size, size):
            raise ValueError(f"pictures of {tuple(x.shape[-2:])} instead of {(size, size)} pixels")


class RRDBExtractor(nn.Module):
    """Residual-in-residual dense blocks (Wang et al. 2018, ESRGAN §3.1), (B,3,H,W) to (B,C,H,W)."""

    def __init__(self, width: int, blocks: int, growth: int = 32):
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.ModuleList(DenseBlock(width, growth) for _ in range(3)) for _ in range(blocks)
        )
        self.last = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.first(x)
        x = first
        for block in self.blocks:
            inner = x
            for dense in block:
                inner = dense(inner)
            x = x + _RESIDUAL * inner
        return first + self.last(x)


class DenseBlock(nn.Module):
    def __init__(self, width: int, growth: int):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(width + i * growth, growth if i < 4 else width, 3, padding=1)
            for i in range(5)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = [x]
        for conv in self.convs[:-1]:
            seen.append(F.leaky_relu(conv(torch.cat(seen, dim=1)), _SLOPE))
        return x + _RESIDUAL * self.convs[-1](torch.cat(seen, dim=1))


class ConvolvedAttention(nn.Module):
    """Channel and spatial attention (Woo et al. 2018, CBAM) as the official network has it.

    One shared convolution stands before both gates, and each gate multiplies what came out of
    it, so nothing passes unconvolved.
    """

    def __init__(self, width: int, reduction: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.squeeze = nn.Linear(width, width // reduction)
        self.excite = nn.Linear(width // reduction, width)
        self.spatial = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(1, momentum=0.01)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        pooled = x.mean(dim=(2, 3)), x.amax(dim=(2, 3))
        gate = sum(self.excite(F.relu(self.squeeze(p))) for p in pooled)
        x = self.conv(x * gate.sigmoid()[:, :, None, None])
        pooled = torch.cat([x.amax(dim=1, keepdim=True), x.mean(dim=1, keepdim=True)], dim=1)
        return x * self.norm(self.spatial(pooled)).sigmoid()


def _check_sizes(input_size: int, size: int, fused_size: int) -> None:
    for name, value in (("input_size", input_size), ("size", size), ("fused_size", fused_size)):
        if value < 4 or value & (value - 1):
            raise ValueError(f"{name}={value} is no power of two from 4 on")
    if fused_size > min(input_size, size // 2):
        raise ValueError(
            f"fused_size={fused_size} must be at most the input's {input_size} pixels and half "
            f"of the output's {size}"
        )
