"""What a recipe is: the settings all share, the networks it trains, and its four methods."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from omegaconf import MISSING

from dr2pipe.core.errors import ConfigError


@dataclass
class DataConfig:
    """The training pictures; see :class:`dr2pipe.data.folders.FaceDataset`."""

    path: str = MISSING
    size: int = MISSING
    sources: list[int] | None = None
    flip: bool = True


@dataclass
class TrainConfig:
    """What every recipe needs; each recipe's schema adds its own sections."""

    recipe: str = MISSING
    output: str = MISSING
    data: DataConfig = field(default_factory=DataConfig)
    seed: int = 0
    total_steps: int = MISSING
    batch_size: int = 16  # pictures per process and accumulation step
    accumulation_steps: int = 1
    precision: str = "no"  # no | bf16 | fp16 (autocast; the weights stay float32)
    warmup_steps: int = 0
    schedule: str = "constant"  # constant | cosine (down to zero at total_steps) | halving
    halve_at_steps: list[int] = field(default_factory=list)  # of the schedule "halving"
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    loader_workers: int = 0
    log_every_steps: int = 50
    preview_every_steps: int = 1000
    save_every_steps: int = 500
    keep_checkpoints: int = 2


@dataclass
class Trained:
    """A network under training with its optimizer; ``ema``: keep a moving average of it.

    Without an optimizer it holds what the recipe wants saved with every checkpoint.
    """

    network: torch.nn.Module
    optimizer: torch.optim.Optimizer | None
    ema: bool = True


class Recipe(Protocol):
    def build(self) -> dict[str, Trained]:
        """The networks under training, by name; each a diffusers ModelMixin."""

    def step(
        self, networks: dict[str, torch.nn.Module], batch: dict
    ) -> Iterator[tuple[str, torch.Tensor, dict[str, torch.Tensor]]]:
        """Yield (network name, its loss, scalars to log), one per optimizer step to take.

        ``batch``: the data set's items, and ``step``, the number of steps done.
        """

    def preview(self, networks: dict[str, torch.nn.Module], batch: dict) -> torch.Tensor:
        """Sample pictures (3,H,W) in [-1,1] of the EMA networks."""

    def export(self, networks: dict[str, torch.nn.Module], folder: Path) -> None:
        """Write the EMA networks as a native folder that inference loads."""


_AT_LEAST_ONE = (
    "total_steps",
    "batch_size",
    "accumulation_steps",
    "log_every_steps",
    "preview_every_steps",
    "save_every_steps",
    "keep_checkpoints",
)


def check_config(config: TrainConfig) -> None:
    """Raise ConfigError where a setting that all recipes share is not valid."""
    if config.schedule not in ("constant", "cosine", "halving"):
        raise ConfigError(f"schedule '{config.schedule}': choose constant, cosine or halving")
    for name in _AT_LEAST_ONE:
        if getattr(config, name) < 1:
            raise ConfigError(f"{name}={getattr(config, name)} must be at least 1")
    if config.precision not in ("no", "bf16", "fp16"):
        raise ConfigError(f"precision '{config.precision}': choose no, bf16 or fp16")


def learning_rate_factor(config: TrainConfig, step: int) -> float:
    """What ``warmup_steps`` and ``schedule`` make of the learning rates at ``step``."""
    factor = 1.0
    if config.schedule == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * step / config.total_steps))
    elif config.schedule == "halving":
        factor = 0.5 ** sum(step >= at for at in config.halve_at_steps)
    if step < config.warmup_steps:
        factor *= (step + 1) / config.warmup_steps
    return factor
