"""Recipe: Panini-Net's degradation encoder by contrast on grids of faces and degradations.

The paper's momentum contrast (:mod:`dr2pipe.training.recipes.degradation_encoder`) compares each
picture with many others, nearly all of other faces. What helps to tell faces apart then helps a
little, and stays in the vector. Here all faces of a batch have all its degradations: a picture's
positives are other faces, and its hardest negatives are the same face. One network, no queue.

All pictures are normalised together, so the statistics of the batch tell nothing about a pair.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F

from dr2pipe.core import files
from dr2pipe.core.errors import ConfigError
from dr2pipe.enhancers.degradation_encoder import DegradationEncoder
from dr2pipe.losses.contrastive import grid_contrast_loss
from dr2pipe.training.previews import PREVIEW_PICTURES, tile_rows
from dr2pipe.training.recipe import (
    Batch,
    Loss,
    Networks,
    TrainConfig,
    TrainedNetwork,
    unwrap,
)


@dataclass
class DegradationGridConfig(TrainConfig):
    """Settings of the recipe; ``batch_size`` counts faces."""

    degradations: dict[str, float] = field(default_factory=dict)  # chain: share
    columns: int = 32  # degradations of each face
    crop: int | None = None  # side in pixels of a part of each face; null: all of it
    recolour: float = 0.0  # of each face by itself, before it is degraded
    jitter: float = 0.0
    width: int = 64
    temperature: float = 0.1
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4


class DegradationGridRecipe:
    """A :class:`DegradationEncoder` by contrast on grids."""

    def __init__(self, config: DegradationGridConfig):
        if config.width < 1:
            raise ConfigError(f"width={config.width} must be at least 1")
        if not config.temperature > 0:
            raise ConfigError(f"temperature={config.temperature} must be above 0")
        self.config = config

    def build(self) -> dict[str, TrainedNetwork]:
        """Build ``encoder``."""
        config = self.config
        encoder = DegradationEncoder(config.width).train()
        optimizer = torch.optim.AdamW(
            encoder.parameters(), config.learning_rate, weight_decay=config.weight_decay
        )
        return {"encoder": TrainedNetwork(encoder, optimizer)}

    def step(self, networks: Networks, batch: Batch) -> Iterator[Loss]:
        """Yield the encoder's loss."""
        rows = batch["row"]  # (F,K,3,c,c)
        pictures = rows.flatten(0, 1).contiguous(memory_format=torch.channels_last)  # faster
        vectors = F.normalize(networks["encoder"](pictures, projected=True).float(), dim=1)
        grid = vectors.view(*rows.shape[:2], -1)  # (F,K,C)
        loss, right = grid_contrast_loss(grid, self.config.temperature)
        yield "encoder", loss, {"encoder/nearest_is_right": right}

    @torch.no_grad()
    def preview(self, networks: Networks, batch: Batch) -> torch.Tensor:
        """Two faces of the grid, each in a row."""
        return tile_rows(batch["row"][0][:PREVIEW_PICTURES], batch["row"][1][:PREVIEW_PICTURES])

    def export(self, networks: Networks, folder: Path) -> None:
        """Write a :class:`DegradationEncoder` folder."""
        network = copy.deepcopy(unwrap(networks["encoder"], DegradationEncoder)).eval()
        files.write_folder(folder, network.save_pretrained)
