"""VQFR: a codebook of high-quality features, and a second decoder that keeps the input's likeness.

Gu et al., "VQFR: Blind Face Restoration with Vector-Quantized Dictionary and Parallel Decoder",
ECCV 2022. The texture decoder draws a face from codes of the codebook alone (§3.1). The main
decoder warps its features towards those of the input by deformable convolutions (§3.2) and makes
the result.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from dr2pipe.core.diffusers_types import register_to_config
from dr2pipe.core.errors import ConfigError
from dr2pipe.enhancers.base import Enhancer
from dr2pipe.enhancers.deformable import DeformableConv

_NORM_EPSILON = 1e-6


class Codes(NamedTuple):
    """What the codebook made of the encoder's features, at the smallest level.

    Attributes:
        features: (B,C,h,w) for the decoders.
        indices: (B,h,w) int64, the nearest codes.
        vectors: (B,h,w,K), the encoder's features as the codebook compares them.
        chosen: (B,h,w,K), the nearest codes.
    """

    features: torch.Tensor
    indices: torch.Tensor
    vectors: torch.Tensor
    chosen: torch.Tensor


class Parts(NamedTuple):
    """All that training looks at.

    Attributes:
        result: (B,3,H,W) of the main decoder; without it, the texture.
        texture: (B,3,H,W) of the texture decoder, which sees the codes alone.
        codes: what the codebook gave.
    """

    result: torch.Tensor
    texture: torch.Tensor
    codes: Codes


class VQFR(Enhancer):
    """Face enhancer with a codebook and parallel decoders.

    Args:
        size: side in pixels of input and output; other multiples of the smallest level's patch
            (32 pixels with six levels) work too.
        base_channels: width at full size.
        channel_multipliers: width of each level in ``base_channels``, the full size first; each
            further level has half the side.
        encoder_blocks: residual blocks of the encoder at each level.
        decoder_blocks: residual blocks of the texture decoder at each level.
        num_codes: of the codebook.
        code_channels: length of a code.
        condition_channels: features of the input that the warping sees.
        deformable_groups: channel groups that are warped apart.
        norm_groups: of the group norms; must divide every width.

    The defaults are VQFR v1 for 512 pixels.
    """

    @register_to_config
    def __init__(
        self,
        size: int = 512,
        base_channels: int = 128,
        channel_multipliers: Sequence[int] = (1, 1, 2, 2, 2, 4),
        encoder_blocks: int = 2,
        decoder_blocks: int = 3,
        num_codes: int = 1024,
        code_channels: int = 256,
        condition_channels: int = 32,
        deformable_groups: int = 4,
        norm_groups: int = 32,
    ):
        super().__init__()
        widths = [base_channels * multiplier for multiplier in channel_multipliers]
        if len(widths) < 2 or size % (1 << (len(widths) - 1)):
            raise ConfigError(f"size={size} cannot be halved {len(widths) - 1} times, once or more")
        for name, divisor in (
            ("norm_groups", norm_groups),
            ("deformable_groups", deformable_groups),
        ):
            if divisor < 1 or any(width % divisor for width in widths):
                raise ConfigError(f"{name}={divisor} does not divide the widths {widths}")
        self.input_features = nn.Conv2d(3, condition_channels, 3, padding=1)
        self.encoder = Encoder(widths, encoder_blocks, norm_groups)
        self.codebook = Codebook(widths[-1], num_codes, code_channels)
        self.texture_decoder = TextureDecoder(widths[::-1], decoder_blocks, norm_groups)
        self.main_decoder = MainDecoder(
            widths[::-1], condition_channels, deformable_groups, norm_groups
        )

    @property
    def input_size(self) -> int:
        """Side in pixels of the pictures that it takes."""
        return int(self.config.size)

    @property
    def output_size(self) -> int:
        """Side in pixels of its results."""
        return int(self.config.size)

    def forward(
        self,
        x: torch.Tensor,
        *,
        return_parts: bool = False,
        use_main: bool = True,
        quantise: bool = True,
    ) -> torch.Tensor | Parts:
        """(B,3,H,W) RGB in [-1,1] to (B,3,H,W), not clamped.

        Args:
            x: pictures whose sides are multiples of the smallest level's patch.
            return_parts: return all that training looks at.
            use_main: False leaves the main decoder out.
            quantise: False gives the decoders the encoder's features as they are, for the
                beginning of a codebook's training.
        """
        codes = self.encode(x, quantise=quantise)
        textures, texture = self.texture_decoder(codes.features)
        result = texture
        if use_main:
            result = self.main_decoder(textures, self.input_features(x), x)
        return Parts(result, texture, codes) if return_parts else result

    def encode(self, x: torch.Tensor, *, quantise: bool = True) -> Codes:
        """The codes of pictures (B,3,H,W) in [-1,1]."""
        codes: Codes = self.codebook(self.encoder(x), quantise=quantise)
        return codes

    def notes(self, x: torch.Tensor) -> list[dict[str, Any]]:
        """How far each picture's features lie from the codebook, in the mean squared difference.

        A face that the codebook does not know has a large distance: its result is drawn from
        codes that do not fit.
        """
        codes = self.encode(x)
        distances = (codes.vectors - codes.chosen).square().mean(dim=(1, 2, 3))
        return [{"codebook_distance": round(float(distance), 4)} for distance in distances]


class Norm(nn.GroupNorm):
    """Group norm followed by SiLU."""

    def __init__(self, width: int, groups: int):
        super().__init__(groups, width, _NORM_EPSILON)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B,C,H,W) to the same shape."""
        return F.silu(super().forward(x))


class ResidualBlock(nn.Module):
    """Two normed convolutions 3x3 beside the identity, or a convolution 1x1 where widths differ."""

    def __init__(self, width_in: int, width_out: int, groups: int):
        super().__init__()
        self.norm1 = Norm(width_in, groups)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.norm2 = Norm(width_out, groups)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1)
        self.shortcut = nn.Conv2d(width_in, width_out, 1) if width_in != width_out else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B,width_in,H,W) to (B,width_out,H,W)."""
        made: torch.Tensor = self.conv2(self.norm2(self.conv1(self.norm1(x))))
        return made + (x if self.shortcut is None else self.shortcut(x))


def _blocks(width: int, count: int, groups: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(width, width, groups) for _ in range(count)))


def _normed_conv(width_in: int, width_out: int, groups: int) -> nn.Sequential:
    return nn.Sequential(Norm(width_in, groups), nn.Conv2d(width_in, width_out, 3, padding=1))


def _resized(x: torch.Tensor, factor: float) -> torch.Tensor:
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


class Encoder(nn.Module):
    """A picture becomes features at the smallest level; ``widths`` from the full size down."""

    def __init__(self, widths: Sequence[int], blocks: int, groups: int):
        super().__init__()
        self.first = nn.Conv2d(3, widths[0], 3, padding=1)
        self.levels = nn.ModuleList(_blocks(width, blocks, groups) for width in widths)
        self.down = nn.ModuleList(
            nn.Conv2d(larger, smaller, 3, padding=1)
            for larger, smaller in itertools.pairwise(widths)
        )
        self.last = _normed_conv(widths[-1], widths[-1], groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B,3,H,W) in [-1,1] to (B,C,H/2^(levels-1),W/2^(levels-1))."""
        features = self.levels[0](self.first(x))
        for down, level in zip(self.down, self.levels[1:], strict=True):
            features = level(down(_resized(features, 0.5)))
        made: torch.Tensor = self.last(features)
        return made


class Codebook(nn.Module):
    """Vector quantisation: each feature vector becomes the nearest of the codes."""

    def __init__(self, width: int, num_codes: int, code_channels: int):
        super().__init__()
        self.to_code = nn.Conv2d(width, code_channels, 1)
        self.codes = nn.Parameter(torch.empty(num_codes, code_channels))
        nn.init.uniform_(self.codes, -1 / num_codes, 1 / num_codes)
        self.from_code = nn.Conv2d(code_channels, width, 1)

    def forward(self, features: torch.Tensor, *, quantise: bool = True) -> Codes:
        """(B,C,h,w) to codes; gradients pass the choice of a code as if it changed nothing."""
        vectors = self.to_code(features).movedim(1, -1)  # (B,h,w,K)
        indices = self.nearest(vectors)
        chosen = self.codes[indices]
        passed = vectors + (chosen - vectors).detach() if quantise else vectors
        return Codes(self.from_code(passed.movedim(-1, 1)), indices, vectors, chosen)

    def nearest(self, vectors: torch.Tensor) -> torch.Tensor:
        """Indices (...) int64 of the codes nearest to vectors (...,K), by a matrix product."""
        with torch.autocast(vectors.device.type, enabled=False):
            flat, codes = vectors.detach().float().flatten(0, -2), self.codes.detach().float()
            # |v - c|² without |v|², which is the same for all codes.
            scores = codes.square().sum(1) - 2 * flat @ codes.T
        return scores.argmin(1).reshape(vectors.shape[:-1])


class TextureDecoder(nn.Module):
    """Draws a face from codes alone; ``widths`` from the smallest level up."""

    def __init__(self, widths: Sequence[int], blocks: int, groups: int):
        super().__init__()
        self.levels = nn.ModuleList(_blocks(width, blocks, groups) for width in widths)
        self.up = nn.ModuleList(
            nn.Conv2d(smaller, larger, 3, padding=1)
            for smaller, larger in itertools.pairwise(widths)
        )
        self.last = _normed_conv(widths[-1], 3, groups)

    def forward(self, x: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """(B,C,h,w) to the features of each level, the smallest first, and a face (B,3,H,W)."""
        features = [self.levels[0](x)]
        for up, level in zip(self.up, self.levels[1:], strict=True):
            features.append(level(_resized(up(features[-1]), 2)))
        return features, self.last(features[-1])


class MainDecoder(nn.Module):
    """Builds the result from textures warped towards the input; ``widths`` as TextureDecoder."""

    def __init__(
        self, widths: Sequence[int], condition_channels: int, deformable_groups: int, groups: int
    ):
        super().__init__()
        self.warp = nn.ModuleList(
            TextureWarp(
                width,
                condition_channels,
                deformable_groups,
                groups,
                coarser_width=widths[level - 1] if level else 0,
                shrink=1 << (len(widths) - 1 - level),
            )
            for level, width in enumerate(widths)
        )
        self.up = nn.ModuleList(
            nn.Conv2d(smaller, larger, 3, padding=1)
            for smaller, larger in itertools.pairwise(widths)
        )
        self.fuse = nn.ModuleList(ResidualBlock(2 * width, width, groups) for width in widths[1:])
        self.last_norm = Norm(widths[-1], groups)
        self.last = nn.Conv2d(widths[-1] + 3, 3, 3, padding=1)

    def forward(
        self, textures: list[torch.Tensor], condition: torch.Tensor, x: torch.Tensor
    ) -> torch.Tensor:
        """The result (B,3,H,W).

        Args:
            textures: features of the texture decoder, the smallest first.
            condition: (B,K,H,W) features of the input.
            x: (B,3,H,W), the input itself, which the last convolution sees too.
        """
        features, motion = self.warp[0](textures[0], condition, None)
        for up, warp, fuse, texture in zip(
            self.up, self.warp[1:], self.fuse, textures[1:], strict=True
        ):
            warped, motion = warp(texture, condition, motion)
            features = fuse(torch.cat([_resized(up(features), 2), warped], 1))
        made: torch.Tensor = self.last(torch.cat([self.last_norm(features), x], 1))
        return made


class TextureWarp(nn.Module):
    """Warps textures to where the input has them, coarse to fine (§3.2).

    Args:
        width: channels of the textures.
        condition_channels: channels of the input's features.
        deformable_groups: channel groups that are warped apart.
        groups: of the group norms.
        coarser_width: channels of the next smaller level; 0 where there is none.
        shrink: how many times smaller this level is than the input.
    """

    def __init__(
        self,
        width: int,
        condition_channels: int,
        deformable_groups: int,
        groups: int,
        *,
        coarser_width: int,
        shrink: int,
    ):
        super().__init__()
        self.shrink = shrink
        self.condition = None
        if shrink > 1:
            self.condition = nn.Conv2d(condition_channels, condition_channels, 3, padding=1)
        self.compare = nn.Sequential(
            nn.Conv2d(condition_channels + width, width, 1),
            Norm(width, groups),
            nn.Conv2d(width, width, 7, padding=3, groups=width),
            Norm(width, groups),
            nn.Conv2d(width, width, 1),
        )
        self.motion = nn.Conv2d(width + coarser_width, width, 3, padding=1)
        self.motion_norm = Norm(width, groups)
        self.deform = DeformableConv(width, deformable_groups)

    def forward(
        self, texture: torch.Tensor, condition: torch.Tensor, coarser: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Warped textures (B,C,h,w), and the motion features (B,C,h,w) that the next level takes.

        Args:
            texture: (B,C,h,w).
            condition: (B,K,H,W), the input's features at full size.
            coarser: motion features of the next smaller level; None where there is none.
        """
        if self.condition is not None:
            condition = self.condition(_resized(condition, 1 / self.shrink))
        motion = self.compare(torch.cat([condition, texture], 1))
        if coarser is not None:  # at twice the side a motion is twice as many pixels
            motion = torch.cat([motion, 2 * _resized(coarser, 2)], 1)
        motion = self.motion_norm(self.motion(motion))
        return self.deform(texture, motion), motion
