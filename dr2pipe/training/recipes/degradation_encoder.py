"""Recipe: Panini-Net's degradation encoder by momentum contrast.

He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020; what
is a pair: Wang et al. (Panini-Net), AAAI 2022, §3.2.

Batch normalisation lets a network cheat here: all keys that are no negatives come from this
batch, and statistics of the batch are in every one of its vectors. MoCo shuffles keys among
GPUs. Here a batch is normalised in groups, and keys are dealt to other groups than their
queries, which does the same in one process.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F

from dr2pipe.core import files
from dr2pipe.core.diffusers_types import ConfigMixin, ModelMixin, register_to_config
from dr2pipe.core.errors import ConfigError
from dr2pipe.core.processes import process_state
from dr2pipe.enhancers.degradation_encoder import DegradationEncoder
from dr2pipe.losses.contrastive import contrastive_logits, info_nce_loss
from dr2pipe.training.gan import generator_of
from dr2pipe.training.recipe import TrainConfig, Trained


@dataclass
class DegradationEncoderConfig(TrainConfig):
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


class Memory(ModelMixin, ConfigMixin):
    """The key encoder and the queue of its latest keys, saved with every checkpoint."""

    @register_to_config
    def __init__(self, width: int, size: int):
        super().__init__()
        self.encoder = DegradationEncoder(width).requires_grad_(False)
        keys = torch.randn(self.encoder.channels, size)
        self.register_buffer("queue", F.normalize(keys, dim=0))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def follow(self, encoder: torch.nn.Module, momentum: float) -> None:
        """Move the key encoder's parameters towards ``encoder``'s; not its running statistics."""
        for ours, theirs in zip(self.encoder.parameters(), encoder.parameters(), strict=True):
            ours.mul_(momentum).add_(theirs.detach(), alpha=1 - momentum)

    @torch.no_grad()
    def remember(self, keys: torch.Tensor) -> None:
        """Replace the oldest keys by (B,C) of unit length; B divides the queue."""
        start = int(self.place)
        self.queue[:, start : start + len(keys)] = keys.T
        self.place.fill_((start + len(keys)) % self.queue.shape[1])


class DegradationEncoderRecipe:
    """Exports a :class:`DegradationEncoder` folder."""

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
                "batch_size must hold two groups of norm_group pictures or more: keys in the "
                "group of their queries would be told by its statistics"
            )
        if config.width < 1:
            raise ConfigError(f"width={config.width} must be at least 1")
        if not (0 <= config.momentum < 1 and config.temperature > 0):
            raise ConfigError("momentum must lie in [0, 1), and temperature above 0")
        self.config = config

    def build(self) -> dict[str, Trained]:
        config = self.config
        torch.manual_seed(config.seed)
        encoder, memory = DegradationEncoder(config.width), Memory(config.width, config.queue)
        memory.encoder.load_state_dict(encoder.state_dict())
        optimizer = torch.optim.SGD(
            encoder.parameters(),
            config.learning_rate,
            momentum=0.9,
            weight_decay=config.weight_decay,
        )
        return {"encoder": Trained(encoder.train(), optimizer), "memory": Trained(memory, None)}

    def step(self, networks: dict, batch: dict) -> Iterator[tuple[str, torch.Tensor, dict]]:
        config, memory = self.config, networks["memory"].train()
        groups = len(batch["query"]) // config.norm_group
        queries = networks["encoder"](batch["query"], projected=True, groups=groups)
        queries = F.normalize(queries.float(), dim=1)
        memory.follow(getattr(networks["encoder"], "module", networks["encoder"]), config.momentum)
        order = deal(batch["seed"].tolist(), config.norm_group).to(queries.device)
        # The trainer sets the precision of what it trains, and keys are not trained.
        low = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.precision)
        device = queries.device.type
        with torch.no_grad(), torch.autocast(device, low, enabled=low is not None):
            dealt = memory.encoder(batch["key"][order], projected=True, groups=groups)
            keys = F.normalize(dealt.float(), dim=1)[order.argsort()]
        logits = contrastive_logits(queries, keys, memory.queue, config.temperature)
        right = (logits.argmax(dim=1) == 0).float().mean()
        yield "encoder", info_nce_loss(logits), {"encoder/first_of_all": right}
        memory.remember(_of_all_processes(keys))

    @torch.no_grad()
    def preview(self, networks: dict, batch: dict) -> torch.Tensor:
        """Two rows: queries and their keys."""
        rows = (batch["query"][:8], batch["key"][:8])
        return torch.cat([torch.cat(list(row), dim=-1) for row in rows], dim=-2)

    def export(self, networks: dict, folder: Path) -> None:
        network = copy.deepcopy(networks["encoder"]).eval()
        files.write_folder(folder, network.save_pretrained)


def deal(seeds: list[int], group: int) -> torch.Tensor:
    """An order (B,) of keys whose groups are no groups of queries.

    Drawn by the seeds of the showings; it is drawn again in the rare case that a whole group
    stays together.
    """
    generator, home = generator_of(seeds, "deal"), torch.arange(len(seeds)) // group
    while True:
        order = torch.randperm(len(seeds), generator=generator)
        if all(len(part.unique()) > 1 for part in home[order].split(group)):
            return order


def _of_all_processes(keys: torch.Tensor) -> torch.Tensor:
    """(B·processes,C), in the same order everywhere, so that all queues stay equal."""
    if not (dist.is_available() and dist.is_initialized()):
        return keys
    parts = [torch.empty_like(keys) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, keys.contiguous())
    return torch.cat(parts)
