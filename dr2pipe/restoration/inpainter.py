"""Filling the holes of faces in the style of an exemplar (EXE-GAN), on tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from dr2pipe.core import files, images
from dr2pipe.core.errors import NotFiniteError, PictureError
from dr2pipe.core.models import find_model
from dr2pipe.enhancers import build_enhancer
from dr2pipe.enhancers.exegan import ExeGAN, complete, mix_rows
from dr2pipe.features.psp import StyleEncoder, load_style_encoder

_STYLE_ENCODER = "style_encoder"  # its folder inside of the generator's
_HALF = 128  # of 8-bit levels


@dataclass
class InpainterConfig:
    model: str = "exegan_64"  # folder of an EXE-GAN, or a name in checkpoints/
    style_encoder: str | None = None  # folder; null: the one inside of the model's


class Inpainter:
    """Generator and style encoder.

    Args:
        device: where the networks run; in float32.
    """

    def __init__(
        self, network: ExeGAN, encoder: StyleEncoder, *, device: torch.device | str = "cpu"
    ):
        self.device = torch.device(device)
        self.network = network.float().to(self.device).eval().requires_grad_(False)
        self.encoder = encoder.float().to(self.device).eval().requires_grad_(False)
        rows, channels = network.exemplar_rows, network.config.style_channels
        if rows.stop > encoder.config.rows or channels != encoder.config.channels:
            raise ValueError(
                f"the style encoder gives {encoder.config.rows} rows of "
                f"{encoder.config.channels} channels, the generator takes {rows.stop} of {channels}"
            )

    @property
    def size(self) -> int:
        """Side in pixels at which holes are filled."""
        return self.network.config.size

    @property
    def exemplar_size(self) -> int:
        """Side in pixels at which exemplars are looked at."""
        return self.encoder.config.size

    @property
    def num_exemplar_rows(self) -> int:
        """Rows of styles that exemplars give."""
        return len(self.network.exemplar_rows)

    @torch.no_grad()
    def styles(self, exemplars: torch.Tensor) -> torch.Tensor:
        """(B,3,H,W) RGB in [-1,1], any size, to (B,num_exemplar_rows,C)."""
        return self.encoder(exemplars.to(self.device), self.network.exemplar_rows)

    @torch.no_grad()
    def __call__(
        self,
        pictures: torch.Tensor,
        holes: torch.Tensor,
        styles: torch.Tensor,
        seeds: Sequence[int],
    ) -> torch.Tensor:
        """Pictures of any size with their holes filled; what is known stays as it is.

        The network works at ``size``: a hole there covers all that it touches, and what was drawn
        is brought to the picture's size.

        Args:
            pictures: (B,3,H,W) float32 RGB in [-1,1].
            holes: (B,1,H,W), 1 in the holes, 0 elsewhere.
            styles: (B,num_exemplar_rows,C), see :meth:`styles`.
            seeds: one for each picture; the same seed fills a hole in the same way.

        Returns:
            (B,3,H,W) around [-1,1].

        Raises:
            NotFiniteError: what was drawn is not finite.
        """
        if len(seeds) != len(pictures):
            raise ValueError(f"{len(pictures)} pictures need as many seeds, not {len(seeds)}")
        small = _resized(pictures, (self.size, self.size))
        drawn = self._draw(small, cover(holes, self.size), styles, seeds).to(pictures.device)
        if not drawn.isfinite().all():
            raise NotFiniteError("what was drawn into the holes is not finite")
        return complete(pictures, holes, _resized(drawn, pictures.shape[-2:]))

    def mixtures(
        self,
        picture: torch.Tensor,
        hole: torch.Tensor,
        styles: torch.Tensor,
        other: torch.Tensor,
        seed: int,
    ) -> torch.Tensor:
        """Two exemplars' styles mixed at every row, first from one on, then from the other.

        Args:
            picture, hole, styles, other: as in a call, B = 1.

        Returns:
            (2,num_exemplar_rows + 1,3,size,size); in column i the first i rows are of ``styles`` in
            row 0, of ``other`` in row 1.
        """
        picture = _resized(picture, (self.size, self.size))
        hole, crossovers = cover(hole, self.size), range(self.num_exemplar_rows + 1)
        return torch.stack(
            [
                torch.cat([self(picture, hole, mix_rows(a, b, i), [seed]) for i in crossovers])
                for a, b in ((styles, other), (other, styles))
            ]
        )

    def _draw(
        self, small: torch.Tensor, holes: torch.Tensor, styles: torch.Tensor, seeds: Sequence[int]
    ) -> torch.Tensor:
        network, width = self.network, self.network.config.style_channels
        # Drawn on the CPU and each by itself, so that neither device nor batch changes a picture.
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        z = torch.stack([torch.randn(width, generator=g) for g in generators])
        noise = [
            torch.stack([torch.randn(1, r, r, generator=g) for g in generators]).to(self.device)
            for r in network.synthesis.noise_sizes
        ]
        latents = network.latents(network.random_w(z.to(self.device)), styles)
        small, holes = small.to(self.device), holes.to(self.device)
        return network(small, mask=holes, latents=latents, noise=noise)


def _resized(pictures: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if pictures.shape[-2:] == size:
        return pictures
    return F.interpolate(pictures, size, mode="bicubic", antialias=True, align_corners=False)


def cover(holes: torch.Tensor, size: int) -> torch.Tensor:
    """(B,1,H,W) of 0 and 1 as (B,1,size,size): 1 wherever a hole touches the pixel."""
    if max(holes.shape[-2:]) <= size:
        return F.interpolate(holes, (size, size), mode="nearest")
    return F.adaptive_max_pool2d(holes, size)


def read_hole(mask: images.Picture, picture: images.Picture) -> torch.Tensor:
    """The hole that a mask's picture shows, (1,1,H,W) float32 of 0 and 1.

    A mask with transparency has its holes where it is transparent, another one where it is
    white. A picture with transparency may be its own mask. Where the picture is transparent in
    a hole, it becomes opaque: what is filled there is to be seen.

    Raises:
        PictureError: another size than the picture's, or a mask that covers nothing or all.
    """
    hole = mask.pixels.max(axis=2) >= _HALF if mask.alpha is None else mask.alpha < _HALF
    if hole.shape != picture.pixels.shape[:2]:
        sizes = [f"{array.shape[1]}x{array.shape[0]}" for array in (hole, picture.pixels)]
        raise PictureError(f"{sizes[0]} pixels, and the picture has {sizes[1]}")
    if mask.sha256 == picture.sha256 and mask.alpha is None:
        raise PictureError("the picture itself, which has no transparency")
    if hole.all():
        raise PictureError("covers everything")
    if not hole.any():
        lightest = f", its lightest level is {mask.pixels.max()}" if mask.alpha is None else ""
        raise PictureError(f"covers nothing{lightest}")
    if picture.alpha is not None:
        opaque = np.where(hole, np.uint8(255), picture.alpha)
        picture.alpha = None if opaque.min() == 255 else opaque
    return torch.from_numpy(hole).float()[None, None]


def load_inpainter(
    config: InpainterConfig, *, device: torch.device | str = "cpu"
) -> tuple[Inpainter, dict[str, str]]:
    """Also returns the sha256 of both weight files.

    Raises:
        ValueError: no such model, another network there, or parts that do not fit.
    """
    folder = find_model(config.model)
    network = build_enhancer("exegan", folder)
    named = config.style_encoder
    of_styles = find_model(named) if named else folder / _STYLE_ENCODER
    encoder = load_style_encoder(of_styles)
    hashes = {"exegan": files.sha256(folder), "style_encoder": files.sha256(of_styles)}
    return Inpainter(network, encoder, device=device), hashes
