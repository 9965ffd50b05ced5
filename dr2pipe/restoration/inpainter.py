"""Inpainting of faces in the style of an exemplar (EXE-GAN), on tensors.

A mask is 1 in the holes, which are filled, and 0 elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from dr2pipe.core import files, images
from dr2pipe.core.errors import Dr2pipeError, NotFiniteError, PictureError
from dr2pipe.core.model_folders import load_network
from dr2pipe.core.models import find_model
from dr2pipe.core.precision import parts_of_batch
from dr2pipe.enhancers.exegan import ExeGAN, complete, mix_rows
from dr2pipe.features.psp import StyleEncoder, load_style_encoder

_KEPT = 0.7  # of what the rim of a hole lacks, at each doubling of the distance from it
_STYLE_ENCODER = "style_encoder"  # the subfolder for it in the generator's folder
# of 8-bit levels
_HALF, _DARK, _LIGHT = 128, 32, 223
# Shares of pixels: greys of a doubtful mask, its largest holes, stray pixels, and the two colours
# of a painted mask.
_MANY, _MOST, _FEW, _FLAT_SHARE = 0.1, 0.5, 0.05, 0.98


@dataclass
class InpainterConfig:
    """The two networks."""

    model: str = "exegan_64"  # a model's name, or folder of an EXE-GAN
    style_encoder: str | None = None  # folder; null: the subfolder of the model's


class Inpainter:
    """Generator and style encoder, in float32.

    Args:
        network: draws what fills the holes.
        encoder: turns exemplars into styles.
        device: where both run.

    Raises:
        CheckpointError: networks that do not fit each other.
    """

    def __init__(
        self, network: ExeGAN, encoder: StyleEncoder, *, device: torch.device | str = "cpu"
    ):
        self.device = torch.device(device)
        self.network = network.float().to(self.device).eval().requires_grad_(False)
        self.encoder = encoder.float().to(self.device).eval().requires_grad_(False)
        network.check_style_encoder(encoder)

    @property
    def size(self) -> int:
        """Side in pixels at which holes are filled."""
        return int(self.network.config.size)

    @property
    def exemplar_size(self) -> int:
        """Side in pixels at which the encoder sees exemplars."""
        return int(self.encoder.config.size)

    @property
    def num_exemplar_rows(self) -> int:
        """Number of style rows that come from an exemplar."""
        return len(self.network.exemplar_rows)

    @torch.no_grad()
    def styles(self, exemplars: torch.Tensor) -> torch.Tensor:
        """(B,3,H,W) RGB in [-1,1], any size, to (B,num_exemplar_rows,C)."""
        rows = self.network.exemplar_rows
        return torch.cat(
            [
                self.encoder(exemplars[part].to(self.device), rows)
                for part in parts_of_batch(len(exemplars), self.device, torch.float32)
            ]
        )

    @torch.no_grad()
    def __call__(
        self,
        pictures: torch.Tensor,
        masks: torch.Tensor,
        styles: torch.Tensor,
        seeds: Sequence[int],
    ) -> torch.Tensor:
        """Fill the holes of pictures of any size. Pixels outside the masks are unchanged.

        The network works at ``size``, with a mask of every pixel that a hole touches; its result
        is resized to the picture.

        Args:
            pictures: (B,3,H,W) float32 RGB in [-1,1].
            masks: (B,1,H,W), 1 in the holes, 0 elsewhere.
            styles: (B,num_exemplar_rows,C), see :meth:`styles`.
            seeds: one for each picture; the same seed fills a hole in the same way.

        Returns:
            (B,3,H,W) around [-1,1].

        Raises:
            Dr2pipeError: another number of seeds.
            NotFiniteError: the filled holes are not finite.
        """
        if len(seeds) != len(pictures):
            raise Dr2pipeError(f"{len(pictures)} pictures need as many seeds, not {len(seeds)}")
        small, holes = _reduced(pictures, masks, self.size), resize_mask(masks, self.size)
        fill = torch.cat(
            [
                self._fill(small[part], holes[part], styles[part], seeds[part])
                for part in parts_of_batch(len(small), self.device, torch.float32)
            ]
        )
        if not fill.isfinite().all():
            raise NotFiniteError("the filled holes are not finite")
        height, width = pictures.shape[-2:]
        fill = images.resize_tensor(fill.to(pictures.device), (height, width))
        return complete(pictures, masks, fill)

    def mixtures(
        self,
        picture: torch.Tensor,
        mask: torch.Tensor,
        styles: torch.Tensor,
        other: torch.Tensor,
        seed: int,
    ) -> torch.Tensor:
        """One picture filled with the styles of two exemplars, mixed at every row.

        Args:
            picture: (1,3,H,W) float32 RGB in [-1,1].
            mask: (1,1,H,W), 1 in the holes, 0 elsewhere.
            styles: (1,num_exemplar_rows,C), of the first exemplar.
            other: (1,num_exemplar_rows,C), of the second exemplar.
            seed: the same for all mixtures.

        Returns:
            (2,num_exemplar_rows + 1,3,size,size). In column i, row 0 has the first i style rows
            from ``styles`` and the rest from ``other``; row 1 the other way round.
        """
        picture = _reduced(picture, mask, self.size)
        mask, crossovers = resize_mask(mask, self.size), range(self.num_exemplar_rows + 1)
        return torch.stack(
            [
                torch.cat([self(picture, mask, mix_rows(a, b, i), [seed]) for i in crossovers])
                for a, b in ((styles, other), (other, styles))
            ]
        )

    def _fill(
        self, small: torch.Tensor, masks: torch.Tensor, styles: torch.Tensor, seeds: Sequence[int]
    ) -> torch.Tensor:
        """(B,3,size,size), the network's result for pictures and masks of that size."""
        network, width = self.network, self.network.config.style_channels
        # One CPU generator per picture, so that neither device nor batch changes the noise.
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        z = torch.stack([torch.randn(width, generator=g) for g in generators])  # (B,width)
        noise = [
            torch.stack([torch.randn(1, r, r, generator=g) for g in generators]).to(self.device)
            for r in network.synthesis.noise_sizes
        ]
        latents = network.latents(network.random_w(z.to(self.device)), styles)
        small, masks = small.to(self.device), masks.to(self.device)
        drawn = network(small, mask=masks, latents=latents, noise=noise, whole=True)
        return complete(small, masks, drawn + _spread((small - drawn) * (1 - masks), 1 - masks))


def resize_mask(masks: torch.Tensor, size: int) -> torch.Tensor:
    """(B,1,H,W) of 0 and 1 as (B,1,size,size): 1 wherever a hole touches the pixel."""
    if max(masks.shape[-2:]) <= size:
        return F.interpolate(masks, (size, size), mode="nearest")
    return F.adaptive_max_pool2d(masks, size)


def read_mask(mask: images.Picture, picture: images.Picture) -> torch.Tensor:
    """The mask in a picture file, (1,1,H,W) float32 of 0 and 1.

    A mask with transparency has its holes where it is transparent, any other where it is white.
    A picture with transparency may be its own mask. In a hole, a transparent ``picture`` becomes
    opaque, so that the filled hole can be seen. ``picture.warnings`` tells of a doubtful mask.

    Raises:
        PictureError: another size than the picture's, a mask that covers nothing or all, or one
            of which white and transparent pixels say different things.
    """
    hole = _holes_of(mask, picture)
    if hole.shape != picture.pixels.shape[:2]:
        sizes = [f"{array.shape[1]}x{array.shape[0]}" for array in (hole, picture.pixels)]
        raise PictureError(f"{sizes[0]} pixels, and the picture has {sizes[1]}")
    if mask.sha256 == picture.sha256 and mask.alpha is None:
        raise PictureError("the picture itself, which has no transparency")
    if hole.all():
        how = "is white" if mask.alpha is None else "is transparent"
        raise PictureError(f"covers everything: all of it {how}")
    if not hole.any():
        lightest = f", its lightest level is {mask.pixels.max()}" if mask.alpha is None else ""
        raise PictureError(f"covers nothing{lightest}")
    if picture.alpha is not None:
        opaque = np.where(hole, np.iinfo(picture.alpha.dtype).max, picture.alpha)
        opaque = opaque.astype(picture.alpha.dtype)
        picture.alpha = None if opaque.min() == np.iinfo(opaque.dtype).max else opaque
    return torch.from_numpy(hole).float()[None, None]


def _holes_of(mask: images.Picture, picture: images.Picture) -> npt.NDArray[np.bool_]:
    """(H,W), True in the holes."""
    lightest: images.Pixels = mask.pixels.max(axis=2)
    if mask.alpha is None:
        between = ((lightest > _DARK) & (lightest < _LIGHT)).mean()
        if between > _MANY:
            picture.warnings.append(
                f"{100 * between:.0f} % of its mask is neither black nor white; holes are where it "
                "is lighter than middle grey"
            )
        return np.asarray(lightest >= _HALF)
    clear = images.reduced(mask.alpha) < _HALF
    white = ~clear & (lightest >= _HALF)
    if (
        mask.sha256 == picture.sha256
        or not (clear.any() and white.any())
        or not _is_flat(mask, ~clear)
    ):
        return clear
    # Somebody painted on a layer that has transparency, too.
    shares = f"{100 * white.mean():.2f} % is white and {100 * clear.mean():.2f} % is transparent"
    smaller, larger = sorted((white.sum(), clear.sum()))
    if (white | clear).mean() > _MOST or smaller > _FEW * larger:
        raise PictureError(
            f"ambiguous: {shares}, and either could be the holes; save it in black and white "
            "without transparency"
        )
    picture.warnings.append(f"of its mask, {shares}; both were taken for holes")
    return np.asarray(white | clear)


def _is_flat(mask: images.Picture, visible: npt.NDArray[np.bool_]) -> bool:
    """Whether the visible pixels have hardly more than two colours, as a mask has and no face."""
    colours = (mask.pixels[visible] >> 6).astype(np.int64) @ [16, 4, 1]  # 4 levels per channel
    counts = np.sort(np.bincount(colours, minlength=64))
    return bool(counts[-2:].sum() >= _FLAT_SHARE * len(colours))


def _spread(values: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Continue ``values`` smoothly where they are not known, from all sides (push-pull).

    Gortler et al., "The lumigraph", SIGGRAPH 1996: each level of a pyramid averages what is known, and
    the unknown is taken from the next coarser level. At each level, ``_KEPT`` of it is kept.

    Args:
        values: (B,C,S,S), 0 where they are not known.
        known: (B,1,S,S), 1 where they are, 0 elsewhere.
    """
    side = values.shape[-1]
    if side == 1 or bool(known.all()):
        return values
    half = (side + 1) // 2
    shares = F.adaptive_avg_pool2d(known, half)
    coarse = F.adaptive_avg_pool2d(values, half) / shares.clamp(min=1e-6)
    coarse = _spread(coarse, (shares > 0).to(known.dtype))
    coarse = F.interpolate(coarse, (side, side), mode="bilinear", align_corners=False)
    return values + (1 - known) * _KEPT * coarse


def _reduced(pictures: torch.Tensor, masks: torch.Tensor, size: int) -> torch.Tensor:
    """Resize pictures by their known pixels alone: what lies in a hole does not reach its rim."""
    known = 1 - masks
    shares = images.resize_tensor(known, size)
    # Far from the holes the share is 1. Where it is small, the picture is a hole itself.
    return images.resize_tensor(pictures * known, size) / shares.clamp(min=0.5)


def load_inpainter(
    config: InpainterConfig, *, device: torch.device | str = "cpu"
) -> tuple[Inpainter, dict[str, str]]:
    """Load both networks; also returns the sha256 of their weights.

    Raises:
        ConfigError: no such model.
        CheckpointError: another network there, or networks that do not fit each other.
    """
    folder = find_model(config.model)
    network = load_network(folder, ExeGAN, hint="'dr2pipe convert' makes one from an official file")
    named = config.style_encoder
    encoder_folder = find_model(named) if named else folder / _STYLE_ENCODER
    encoder = load_style_encoder(encoder_folder)
    hashes = {"exegan": files.sha256(folder), "style_encoder": files.sha256(encoder_folder)}
    return Inpainter(network, encoder, device=device), hashes
