"""Two faces that share nothing but their degradation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch.utils.data import Dataset

from dr2pipe import images
from dr2pipe.config import ConfigError
from dr2pipe.data.folders import FaceDataset
from dr2pipe.degradations import UNSEEN, check_degradation, degrade


class DegradationPairs(Dataset):
    """Positive pairs for contrastive learning.

    One draw of a degradation is applied to two different faces. They share its parameters, not
    the pixels of its noise: those would tell a pair without telling the degradation.

    Args:
        faces: clean faces, two or more.
        degradations: chain: share of the pairs.

    Raises:
        ConfigError, ValueError: one face alone, no or an unknown chain, or an unseen family,
            which is kept for evaluation.
    """

    def __init__(self, faces: FaceDataset, degradations: Mapping[str, float]):
        if len(faces) < 2:
            raise ConfigError("a pair takes two faces, and there is one")
        shares = np.array(list(degradations.values()), dtype=float)
        if not len(shares) or (shares < 0).any() or shares.sum() <= 0:
            raise ConfigError("degradations must name chains with shares of 0 or more")
        unseen = [name for name in degradations if name in UNSEEN]
        if unseen:
            raise ConfigError(f"{', '.join(unseen)}: kept for evaluation, training must not see it")
        for name in degradations:
            check_degradation(name)
        self.faces, self.names, self.shares = faces, list(degradations), shares / shares.sum()

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        """``query`` and ``key`` (3,S,S) in [-1,1], ``name`` of the first face, ``seed``."""
        index, position = key
        item = self.faces[key]
        rng = np.random.default_rng(item["seed"])
        other = (index + 1 + int(rng.integers(len(self.faces) - 1))) % len(self.faces)
        chain = str(rng.choice(self.names, p=self.shares))
        pair = {"name": item["name"], "seed": item["seed"]}
        clean = {"query": item["image"], "key": self.faces[other, position]["image"]}
        for number, (role, image) in enumerate(clean.items()):
            degraded, _ = degrade(
                images.to_uint8(image[None])[0],
                chain,
                np.random.default_rng([item["seed"], 1]),
                noise_rng=np.random.default_rng([item["seed"], 2, number]),
            )
            pair[role] = images.to_tensor(degraded)[0]
        return pair
