"""Recipe: Panini-Net's degradation encoder by momentum contrast.

He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020; what
is a pair: Wang et al. (Panini-Net), AAAI 2022, §3.2.

Batch normalisation lets a network cheat here (MoCo, §3.3): a query and its key come from the same
batch, and the batch's statistics leave traces in every vector. MoCo shuffles keys among GPUs. Here
a batch is normalised in groups, and keys are shuffled into other groups than their queries. This
does the same in one process.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate.utils import gather

from dr2pipe.core import files
from dr2pipe.core.diffusers_types import ConfigMixin, ModelMixin, register_to_config
from dr2pipe.core.errors import ConfigError
from dr2pipe.core.processes import process_state
from dr2pipe.core.seeding import generator_of
from dr2pipe.enhancers.degradation_encoder import DegradationEncoder
from dr2pipe.losses.contrastive import contrastive_logits, info_nce_loss
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
class DegradationEncoderConfig(TrainConfig):
    """Settings of the recipe."""

    degradations: dict[str, float] = field(default_factory=dict)  # chain: share
    recolour: float = 0.0  # of each face by itself, before it is degraded
    jitter: float = 0.0
    width: int = 64
    queue: int = 8192  # keys
    momentum: float = 0.999  # of the key encoder
    temperature: float = 0.07
    norm_group: int = 8  # pictures that are normalised together
    learning_rate: float = 0.03
    weight_decay: float = 1e-4


class KeyQueue(ModelMixin, ConfigMixin):
    """MoCo's key encoder and the queue of its latest keys, saved with every checkpoint.

    Args:
        width: of the key encoder.
        size: number of keys in the queue.
    """

    queue: torch.Tensor  # (C,size), columns of unit length
    place: torch.Tensor  # of the oldest key

    @register_to_config
    def __init__(self, width: int, size: int):
        super().__init__()
        self.encoder = DegradationEncoder(width).requires_grad_(False)
        keys = torch.randn(self.encoder.channels, size)
        self.register_buffer("queue", F.normalize(keys, dim=0))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def update_encoder(self, encoder: torch.nn.Module, momentum: float) -> None:
        """Move the key encoder's parameters towards ``encoder``'s (MoCo, eq. 2).

        Its running statistics are its own.
        """
        for ours, theirs in zip(self.encoder.parameters(), encoder.parameters(), strict=True):
            ours.mul_(momentum).add_(theirs.detach(), alpha=1 - momentum)

    @torch.no_grad()
    def enqueue(self, keys: torch.Tensor) -> None:
        """Replace the oldest keys by (B,C) of unit length; B is at most the size of the queue."""
        size = self.queue.shape[1]
        places = (int(self.place) + torch.arange(len(keys), device=keys.device)) % size
        self.queue[:, places] = keys.T
        self.place.fill_((int(self.place) + len(keys)) % size)


class DegradationEncoderRecipe:
    """A :class:`DegradationEncoder` by momentum contrast."""

    def __init__(self, config: DegradationEncoderConfig):
        together = config.batch_size * process_state().num_processes
        if config.queue < together or config.queue % together:
            raise ConfigError(
                f"queue={config.queue} must be a multiple of the {together} pictures of a batch "
                f"in all processes"
            )
        if config.norm_group < 2 or config.batch_size % config.norm_group:
            raise ConfigError(
                f"batch_size={config.batch_size} must be a multiple of norm_group="
                f"{config.norm_group}, which must be 2 or more"
            )
        if config.batch_size == config.norm_group:
            raise ConfigError(
                "batch_size must be twice norm_group or more: with one group, the statistics of "
                "a batch would reveal which key belongs to which query"
            )
        if config.width < 1:
            raise ConfigError(f"width={config.width} must be at least 1")
        if not (0 <= config.momentum < 1 and config.temperature > 0):
            raise ConfigError("momentum must lie in [0, 1), and temperature above 0")
        self.config = config

    def build(self) -> dict[str, TrainedNetwork]:
        """Build ``encoder``, and the ``memory`` of keys, which has no gradients."""
        config = self.config
        encoder = DegradationEncoder(config.width)
        memory = KeyQueue(config.width, config.queue)
        memory.encoder.load_state_dict(encoder.state_dict())
        optimizer = torch.optim.SGD(
            encoder.parameters(),
            config.learning_rate,
            momentum=0.9,
            weight_decay=config.weight_decay,
        )
        return {
            "encoder": TrainedNetwork(encoder.train(), optimizer),
            "memory": TrainedNetwork(memory, None),
        }

    def step(self, networks: Networks, batch: Batch) -> Iterator[Loss]:
        """Yield the encoder's loss, then put the keys of all processes into the queue."""
        config, memory = self.config, unwrap(networks["memory"], KeyQueue).train()
        groups = len(batch["query"]) // config.norm_group
        queries = networks["encoder"](batch["query"], projected=True, groups=groups)
        queries = F.normalize(queries.float(), dim=1)
        memory.update_encoder(unwrap(networks["encoder"], DegradationEncoder), config.momentum)
        order = shuffled_across_groups(batch["seed"].tolist(), config.norm_group)
        order = order.to(queries.device)
        # The trainer sets the precision of the networks it trains; the key encoder is not one.
        low = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.precision)
        device = queries.device.type
        with torch.no_grad(), torch.autocast(device, low, enabled=low is not None):
            shuffled = memory.encoder(batch["key"][order], projected=True, groups=groups)
            keys = F.normalize(shuffled.float(), dim=1)[order.argsort()]
        logits = contrastive_logits(queries, keys, memory.queue, config.temperature)
        right = (logits.argmax(dim=1) == 0).float().mean()
        yield "encoder", info_nce_loss(logits), {"encoder/first_of_all": right}
        # The same order in every process, so that all queues stay equal.
        memory.enqueue(gather(keys.contiguous()))

    @torch.no_grad()
    def preview(self, networks: Networks, batch: Batch) -> torch.Tensor:
        """Two rows: queries and their keys."""
        return tile_rows(batch["query"][:PREVIEW_PICTURES], batch["key"][:PREVIEW_PICTURES])

    def export(self, networks: Networks, folder: Path) -> None:
        """Write a :class:`DegradationEncoder` folder."""
        network = copy.deepcopy(unwrap(networks["encoder"], DegradationEncoder)).eval()
        files.write_folder(folder, network.save_pretrained)


def shuffled_across_groups(seeds: list[int], group: int) -> torch.Tensor:
    """A random order (B,) of keys in which no group of keys is a group of queries.

    Args:
        seeds: (B,) of the showings; the order follows from them.
        group: pictures per group; B is a multiple of it, and twice as many or more.
    """
    generator, home = generator_of(seeds, "deal"), torch.arange(len(seeds)) // group
    while True:  # an order in which a whole group stays together is rare
        order = torch.randperm(len(seeds), generator=generator)
        if all(len(part.unique()) > 1 for part in home[order].view(-1, group)):
            return order
