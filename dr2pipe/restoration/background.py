"""Photos enlarged: everything of them but the faces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from dr2pipe.core import files, images
from dr2pipe.core.errors import ConfigError
from dr2pipe.core.models import find_model

SCALES = (1, 2, 4)
_TILE_PX, _OVERLAP_PX = 256, 16  # of the photo; a network sees this much around each tile


@dataclass
class BackgroundConfig:
    """What enlarges the photo around its faces."""

    name: str = "lanczos"  # lanczos | spandrel
    weights: str | None = None  # of spandrel: a model's name, or an official file


class Background:
    """Enlarges photos.

    Args:
        scale: 1, 2 or 4.
        network: from (1,3,h,w) in [-1,1] to a larger picture; None for Lanczos interpolation.
    """

    def __init__(self, scale: int, network: Callable[[torch.Tensor], torch.Tensor] | None = None):
        self.scale, self.network = scale, network

    def __call__(self, picture: images.Picture) -> images.Levels:
        """The samples of ``picture.own`` enlarged, in the file's own colour space.

        Returns:
            (scale·H,scale·W[,3]), with the type of the file's samples.
        """
        assert picture.own is not None
        if self.scale == 1:
            return picture.own.levels
        if self.network is None:
            return enlarged(picture.own.levels, self.scale)
        height, width = picture.pixels.shape[:2]
        type = picture.own.levels.dtype
        result = np.empty((height * self.scale, width * self.scale, 3), type)
        for top in range(0, height, _TILE_PX):
            for left in range(0, width, _TILE_PX):
                tile = self._tile(picture.pixels, top, left)
                rows = slice(top * self.scale, top * self.scale + len(tile))
                columns = slice(left * self.scale, left * self.scale + tile.shape[1])
                result[rows, columns] = tile if type == np.uint16 else images.reduced(tile)
        if picture.tint is not None:
            result = picture.tint.apply(result)
        return picture.own.from_srgb(result)

    @torch.no_grad()
    def _tile(self, pixels: images.Pixels, top: int, left: int) -> images.Levels:
        """One enlarged tile, uint16; the network sees some pixels around it."""
        assert self.network is not None
        height, width = pixels.shape[:2]
        above, before = min(top, _OVERLAP_PX), min(left, _OVERLAP_PX)
        bottom, right = min(top + _TILE_PX, height), min(left + _TILE_PX, width)
        seen = pixels[
            top - above : min(bottom + _OVERLAP_PX, height),
            left - before : min(right + _OVERLAP_PX, width),
        ]
        size = (seen.shape[0] * self.scale, seen.shape[1] * self.scale)
        large = images.resize_tensor(self.network(images.to_tensor(seen)).float(), size)
        y, x = above * self.scale, before * self.scale
        shape = ((bottom - top) * self.scale, (right - left) * self.scale)
        return images.to_uint16(large)[0, y : y + shape[0], x : x + shape[1]]


def enlarged(levels: images.Levels, scale: int) -> images.Levels:
    """(H,W[,C]) uint8 or uint16 enlarged ``scale`` times, by Lanczos interpolation."""
    height, width = levels.shape[:2]
    size = (width * scale, height * scale)
    return np.asarray(cv2.resize(levels, size, interpolation=cv2.INTER_LANCZOS4))


def load_background(config: BackgroundConfig, scale: int) -> tuple[Background, dict[str, str]]:
    """What enlarges photos, and the sha256 of its weights.

    Raises:
        ConfigError: an unknown name or scale, or weights that belong to no network.
    """
    if scale not in SCALES:
        raise ConfigError(f"scale={scale}: choose {', '.join(map(str, SCALES))}")
    if config.name == "lanczos":
        if config.weights is not None:
            raise ConfigError("background.weights belong to background.name=spandrel")
        return Background(scale), {}
    if config.name != "spandrel":
        raise ConfigError(f"background.name '{config.name}': choose lanczos or spandrel")
    if config.weights is None:
        raise ConfigError("background.name=spandrel needs background.weights, an official file")
    if scale == 1:
        raise ConfigError("background.name=spandrel enlarges photos: give scale 2 or 4 too")
    from dr2pipe.enhancers.spandrel import load_spandrel

    path = find_model(config.weights)
    return Background(scale, load_spandrel(path)), {"background": files.sha256(path)}
