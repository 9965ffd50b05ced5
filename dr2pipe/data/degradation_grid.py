"""Grids of faces and degradations, for contrast in which the face tells nothing."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from dr2pipe.core import images
from dr2pipe.core.config import stable_seed
from dr2pipe.core.errors import ConfigError
from dr2pipe.data.degradation_pairs import shares_of_chains, varied
from dr2pipe.data.folders import FaceDataset
from dr2pipe.data.shares import check_share
from dr2pipe.data.showings import Item, ShowingDataset
from dr2pipe.degradations import degrade


class DegradationGrid(ShowingDataset):
    """Faces, each with all degradations of its batch.

    The faces of a batch are the rows of a grid and its degradations are the columns. A column
    shares the parameters of a degradation, but not the pixels of its noise: equal noise would
    reveal it. Each face is mirrored, moved and recoloured by itself, and stays so along its row.

    Args:
        faces: clean faces.
        degradations: share of the columns by chain.
        columns: degradations of a batch, two or more.
        batch_size: faces of a batch, two or more.
        crop: side in pixels of a random part of each face that the pictures show; None: all.
        recolour: strength 0..1 of the changes of colour.
        jitter: strength 0..1 of the moves.

    Raises:
        ConfigError: a number out of range, no chain or an unknown one, or a family of
            degradations that is kept for evaluation.
    """

    def __init__(
        self,
        faces: FaceDataset,
        degradations: Mapping[str, float],
        *,
        columns: int,
        batch_size: int,
        crop: int | None = None,
        recolour: float = 0.0,
        jitter: float = 0.0,
    ):
        if min(columns, batch_size) < 2:
            raise ConfigError(
                f"columns={columns} and batch_size={batch_size} must be 2 or more: there is "
                f"nothing to compare"
            )
        if crop is not None and not 1 <= crop <= faces.size:
            raise ConfigError(f"crop={crop} must lie in 1..{faces.size}, which is data.size")
        check_share("recolour", recolour)
        check_share("jitter", jitter)
        self.faces, self.names = faces, list(degradations)
        self.shares = shares_of_chains(degradations)
        self.columns, self.batch_size, self.crop = columns, batch_size, crop or faces.size
        self.recolour, self.jitter = recolour, jitter

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        """``row`` (columns,3,crop,crop) in [-1,1], ``name`` of the face, ``seed``."""
        item = self.faces[key]
        # Batches are consecutive positions, whatever the number of processes and workers.
        batch = stable_seed(self.faces.seed, "columns", key[1] // self.batch_size)
        rng = np.random.default_rng([item["seed"], 1])
        # The data set mirrors already.
        face = varied(item["image"], rng, flip=False, recolour=self.recolour, jitter=self.jitter)
        top, left = rng.integers(self.faces.size - self.crop + 1, size=2)
        row = []
        for column in range(self.columns):
            column_rng = np.random.default_rng([batch, column])
            chain = str(column_rng.choice(self.names, p=self.shares))
            noise_rng = np.random.default_rng([item["seed"], 2, column])
            degraded, _ = degrade(face, chain, column_rng, noise_rng=noise_rng)
            row.append(degraded[top : top + self.crop, left : left + self.crop])
        pictures: torch.Tensor = images.to_tensor(np.stack(row))
        return {"row": pictures, "name": item["name"], "seed": item["seed"]}
