"""EXE-GAN: holes of a face are drawn by a StyleGAN2 in the style of another photograph.

Lu et al., "Do inpainting yourself: generative facial inpainting guided by exemplars",
Neurocomputing 2025. An encoder of the masked face gives the first feature of the synthesis,
features that are added at every resolution, and a global code that is appended to every style.
Most of the styles themselves are those of the exemplar.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from dr2pipe.core.diffusers_types import register_to_config
from dr2pipe.core.errors import CheckpointError, ConfigError
from dr2pipe.enhancers.base import Enhancer, check_side
from dr2pipe.features.psp import StyleEncoder
from dr2pipe.stylegan2 import StyleGAN2Generator
from dr2pipe.stylegan2.generator import Noise, truncate
from dr2pipe.stylegan2.layers import EqualConv2d, EqualLinear, channels_at

_GREY_OF_MASK = 0.5  # the mask is shown to the encoder as -0.5 (known) and 0.5 (hole)


@dataclass
class Encoded:
    """What the encoder of the masked face hands to the synthesis.

    Attributes:
        start: (B,C,4,4), in place of StyleGAN2's learned feature.
        code: (B,global_channels), appended to every style.
        features: (B,C,R,R) by resolution R = 8 .. size, added after each enlargement.
    """

    start: torch.Tensor
    code: torch.Tensor
    features: dict[int, torch.Tensor]


class ExeGAN(Enhancer):
    """Generator of EXE-GAN; the exemplar's styles come from a :class:`StyleEncoder`.

    Args:
        size: side in pixels of input and output, a power of two from 8 on.
        style_channels, mapping_layers, mapping_lr, channel_multiplier, narrow: of the synthesis,
            see ``StyleGAN2Generator``; the encoder's layers are as wide.
        global_channels: width of the global code; None: twice ``style_channels``, as published.
        first_exemplar_row: rows of the W+ latent from this one on are the exemplar's.
        dropout: of the global code while training.

    The defaults are the official network for 256 px.
    """

    conditions = ("mask", "latents")

    @register_to_config
    def __init__(
        self,
        size: int = 256,
        style_channels: int = 512,
        global_channels: int | None = None,
        mapping_layers: int = 8,
        mapping_lr: float = 0.01,
        channel_multiplier: int = 2,
        narrow: float = 1.0,
        first_exemplar_row: int = 4,
        dropout: float = 0.5,
    ):
        super().__init__()
        code = global_channels or 2 * style_channels
        self.synthesis = StyleGAN2Generator(
            size=size,
            style_channels=style_channels,
            style_width=style_channels + code,
            mapping_layers=mapping_layers,
            mapping_lr=mapping_lr,
            channel_multiplier=channel_multiplier,
            narrow=narrow,
            learned_start=False,
        )
        if not 0 <= first_exemplar_row < self.synthesis.num_latents:
            raise ConfigError(
                f"first_exemplar_row={first_exemplar_row} must lie in "
                f"0..{self.synthesis.num_latents - 1}"
            )
        widths = {r: channels_at(r, channel_multiplier, narrow) for r in self.synthesis.resolutions}
        self.first = EqualConv2d(4, widths[size], 1, activate=True)
        self.look, self.down = nn.ModuleList(), nn.ModuleList()
        for resolution in reversed(self.synthesis.resolutions[1:]):
            width, smaller = widths[resolution], widths[resolution // 2]
            self.look.append(EqualConv2d(width, width, 3, activate=True))
            self.down.append(EqualConv2d(width, smaller, 3, change="down", activate=True))
        self.last = EqualConv2d(widths[4], widths[4], 3, activate=True)
        self.to_code = EqualLinear(widths[4] * 4 * 4, code, activate=True)
        self.drop_code = nn.Dropout(dropout)
        self.to_start = EqualLinear(code, widths[4] * 4 * 4, activate=True)

    @property
    def input_size(self) -> int:
        """Side in pixels of the pictures that it takes."""
        return int(self.config.size)

    @property
    def output_size(self) -> int:
        """Side in pixels of its results."""
        return int(self.config.size)

    @property
    def exemplar_rows(self) -> range:
        """Rows of the W+ latent that the exemplar gives."""
        return range(self.config.first_exemplar_row, self.synthesis.num_latents)

    def check_style_encoder(self, encoder: StyleEncoder) -> None:
        """See that an encoder gives the exemplar's rows, as wide as the styles here.

        Raises:
            CheckpointError: it does not.
        """
        rows, channels = self.exemplar_rows.stop, self.config.style_channels
        given = encoder.config
        if rows > given.rows or channels != given.channels:
            raise CheckpointError(
                f"the style encoder gives {given.rows} rows of {given.channels} channels, the "
                f"generator takes {rows} of {channels}"
            )

    def forward(
        self,
        x: torch.Tensor,
        *,
        mask: torch.Tensor,
        latents: torch.Tensor,
        noise: Noise = None,
        whole: bool = False,
    ) -> torch.Tensor:
        """Fill the holes of faces.

        Args:
            x: (B,3,size,size) RGB in [-1,1]; pixels in the holes have no influence.
            mask: (B,1,size,size), 1 in the holes, 0 elsewhere.
            latents: (B,num_latents,style_channels), see :meth:`latents`.
            noise: of the synthesis; None is the stored one, so that results repeat.
            whole: return the synthesis as it is, also outside the holes.

        Returns:
            (B,3,size,size): ``x`` outside the holes, the synthesis inside, not clamped.

        Raises:
            ValueError: a picture or mask of another size, styles of another shape.
        """
        encoded = self.encode(x, mask)
        code = encoded.code[:, None].expand(-1, latents.shape[1], -1)  # (B,rows,global_channels)
        styles = torch.cat([latents, code.to(latents.dtype)], dim=2)

        def add(features: torch.Tensor, resolution: int, stage: str) -> torch.Tensor:
            return features + encoded.features[resolution] if stage == "upsampled" else features

        synthesis = self.synthesis(styles, noise=noise, start=encoded.start, fuse=add)
        return synthesis if whole else complete(x, mask, synthesis)

    def random_w(
        self,
        z: torch.Tensor,
        other: torch.Tensor | None = None,
        crossover: int = 0,
        *,
        centre: torch.Tensor | None = None,
        psi: float = 1.0,
    ) -> torch.Tensor:
        """Random z (B,style_channels) as W+ (B,num_latents,style_channels).

        Args:
            z: first random vector.
            other: second random vector; None for one alone.
            crossover: rows from this one on come from ``other``.
            centre: (1,style_channels), where truncation leads to; None for no truncation.
            psi: how much of the distance to ``centre`` remains.
        """
        first = self.synthesis.mapping(z)
        second = first if other is None else self.synthesis.mapping(other)
        if centre is not None:
            first, second = truncate(first, centre, psi), truncate(second, centre, psi)
        return self.synthesis.mix(first, second, crossover)

    def latents(
        self, w: torch.Tensor, exemplar: torch.Tensor, *, own_share: float = 0.0
    ) -> torch.Tensor:
        """W+ (B,num_latents,style_channels) with the exemplar's rows in their places.

        Args:
            w: (B,style_channels) or (B,num_latents,style_channels), see :meth:`random_w`.
            exemplar: (B,rows,style_channels), styles for ``exemplar_rows``.
            own_share: 0..1, how much of ``w`` stays in those rows.

        Raises:
            ValueError: an exemplar of another number or width of rows.
        """
        expected = (len(w), len(self.exemplar_rows), self.config.style_channels)
        if exemplar.shape != expected:
            raise ValueError(f"styles {tuple(exemplar.shape)} of exemplars instead of {expected}")
        if w.ndim == 2:
            w = w[:, None].expand(-1, self.synthesis.num_latents, -1)
        first = self.config.first_exemplar_row
        return torch.cat([w[:, :first], torch.lerp(exemplar, w[:, first:], own_share)], dim=1)

    def encode(self, x: torch.Tensor, mask: torch.Tensor) -> Encoded:
        """Features of masked faces; arguments as in :meth:`forward`."""
        self._check(x, mask)
        seen = torch.cat([x * (1 - mask), mask - _GREY_OF_MASK], dim=1)
        features: dict[int, torch.Tensor] = {}
        x = self.first(seen)  # (B,C,size,size)
        for look, down in zip(self.look, self.down, strict=True):
            x = look(x)
            features[x.shape[-1]] = x  # (B,C,size,size) to (B,C,8,8)
            x = down(x)
        x = self.last(x)  # (B,C,4,4)
        code = self.drop_code(self.to_code(x.flatten(1)))  # (B,global_channels)
        start = x + self.to_start(code).view_as(x)  # (B,C,4,4)
        return Encoded(start, code, features)

    def _check(self, x: torch.Tensor, mask: torch.Tensor) -> None:
        size = self.input_size
        check_side(x, size)
        if mask.shape != (len(x), 1, size, size):
            raise ValueError(f"masks {tuple(mask.shape)} instead of {(len(x), 1, size, size)}")


def complete(x: torch.Tensor, mask: torch.Tensor, fill: torch.Tensor) -> torch.Tensor:
    """``fill`` (B,3,H,W) inside the holes of ``mask`` (B,1,H,W), ``x`` elsewhere."""
    return torch.where(mask > 0.5, fill.to(x.dtype), x)


def mix_rows(styles: torch.Tensor, other: torch.Tensor, crossover: int) -> torch.Tensor:
    """Styles (B,rows,C): rows before ``crossover`` from ``styles``, the rest from ``other``."""
    if not 0 <= crossover <= styles.shape[1]:
        raise ValueError(f"crossover={crossover} must lie in 0..{styles.shape[1]}")
    return torch.cat([styles[:, :crossover], other[:, crossover:]], dim=1)
