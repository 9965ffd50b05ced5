"""Faces with holes, for training to fill them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from dr2pipe.core.errors import ConfigError
from dr2pipe.data.folders import FaceDataset
from dr2pipe.data.showings import Item, ShowingDataset
from dr2pipe.degradations.masks import MASKS, draw_mask


class MaskedFaces(ShowingDataset):
    """A face and a mask, addressed like :class:`FaceDataset`.

    Args:
        faces: clean faces.
        masks: share of each kind of ``degradations.masks.MASKS``.

    Raises:
        ConfigError: an unknown kind, shares that are negative or all 0.
    """

    def __init__(self, faces: FaceDataset, masks: Mapping[str, float]):
        unknown = [name for name in masks if name not in MASKS]
        if unknown:
            raise ConfigError(f"unknown masks {', '.join(unknown)}; choose {', '.join(MASKS)}")
        shares = np.array(list(masks.values()), dtype=float)
        if not len(shares) or (shares < 0).any() or shares.sum() <= 0:
            raise ConfigError("masks must name kinds with shares of 0 or more, not all 0")
        self.faces, self.names, self.shares = faces, list(masks), shares / shares.sum()

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        """The face's item with ``mask`` (1,S,S): 1 in the holes, 0 elsewhere."""
        item = self.faces[key]
        rng = np.random.default_rng([item["seed"], 4])
        name = str(rng.choice(self.names, p=self.shares))
        mask = draw_mask(name, self.faces.size, rng)
        return item | {"mask": torch.from_numpy(mask).float()[None]}
