"""Faces with holes, for training to fill them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from dr2pipe.core.errors import ConfigError
from dr2pipe.data.folders import FaceDataset
from dr2pipe.data.shares import normalised_shares
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
        self.faces, self.names = faces, list(masks)
        self.shares = normalised_shares("masks", masks)

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        """The face's item with ``mask`` (1,S,S): 1 in the holes, 0 elsewhere."""
        item = self.faces[key]
        rng = np.random.default_rng([item["seed"], 4])
        name = str(rng.choice(self.names, p=self.shares))
        mask = draw_mask(name, self.faces.size, rng)
        return item | {"mask": torch.from_numpy(mask).float()[None]}
