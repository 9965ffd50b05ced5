"""What a recipe is: the settings that all share, the networks it trains, and its four methods."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from accelerate.utils import extract_model_from_parallel
from omegaconf import MISSING

from dr2pipe.core.errors import ConfigError
from dr2pipe.core.precision import resolve_precision


@dataclass
class DataConfig:
    """The training pictures; see :class:`dr2pipe.data.folders.FaceDataset`."""

    path: str = MISSING
    size: int = MISSING
    sources: list[int] | None = None
    flip: bool = True


@dataclass
class PairsConfig:
    """The inputs of an enhancer under training; see :class:`dr2pipe.data.pairs.PairDataset`."""

    input_size: int = 64
    # No default: entries of a YAML file would be added to it.
    degradations: dict[str, float] = field(default_factory=dict)
    coarse: str | None = None
    coarse_share: float = 0.0
    coarse_sigma_px: list[float] = field(default_factory=lambda: [0.0, 1.0])
    recolour: float = 0.0
    jitter: float = 0.0


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
    # fp32 | bf16 | fp16 (autocast; the weights stay float32) | auto: bf16 where the device multiplies it
    precision: str = "fp32"
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
    trackers: list[str] | None = None  # tensorboard, wandb; null: tensorboard if it is installed


# Networks by name. While a recipe's step runs, they are what accelerate made of them: see unwrap.
Networks = dict[str, torch.nn.Module]
# The items of a data set put together, and "step": the number of steps done.
Batch = dict[str, Any]
# Of one optimizer step: the network's name, its loss, and scalars to log.
Loss = tuple[str, torch.Tensor, dict[str, torch.Tensor]]
Network = TypeVar("Network", bound=torch.nn.Module)


@dataclass
class TrainedNetwork:
    """A network under training with its optimizer.

    Attributes:
        network: a diffusers ``ModelMixin`` with ``ConfigMixin``.
        optimizer: None for a network that has no gradients and is only saved with every
            checkpoint.
        ema: keep an exponential moving average of the weights; previews and the exported
            model use it.
    """

    network: torch.nn.Module
    optimizer: torch.optim.Optimizer | None
    ema: bool = True


class Recipe(Protocol):
    """What the trainer needs to know about one kind of training."""

    def build(self) -> dict[str, TrainedNetwork]:
        """Build the networks under training, by name.

        Initial weights come from torch's global generator, which the trainer seeds.

        Raises:
            ConfigError: settings that do not fit together, or weights that do not fit them.
        """
        ...

    def step(self, networks: Networks, batch: Batch) -> Iterator[Loss]:
        """Yield one loss for each optimizer step to take, in their order."""
        ...

    def preview(self, networks: Networks, batch: Batch) -> torch.Tensor:
        """Draw a sample picture (3,H,W) RGB in [-1,1] with the averaged (EMA) networks."""
        ...

    def export(self, networks: Networks, folder: Path) -> None:
        """Write the averaged (EMA) networks as a native folder that inference loads."""
        ...


def unwrap(network: torch.nn.Module, kind: type[Network]) -> Network:
    """The bare network of one that accelerate prepared for several processes or for compilation.

    Args:
        network: prepared or bare.
        kind: the class of the bare network.

    Raises:
        TypeError: the bare network is of another class.
    """
    bare = extract_model_from_parallel(network)
    if not isinstance(bare, kind):
        raise TypeError(f"{type(bare).__name__} instead of {kind.__name__}")
    return bare


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
    """Check the settings that all recipes share.

    Raises:
        ConfigError: an invalid one; the message names the valid choices.
    """
    if config.schedule not in ("constant", "cosine", "halving"):
        raise ConfigError(f"schedule '{config.schedule}': choose constant, cosine or halving")
    for name in _AT_LEAST_ONE:
        if getattr(config, name) < 1:
            raise ConfigError(f"{name}={getattr(config, name)} must be at least 1")
    if not config.max_grad_norm > 0:
        raise ConfigError(
            f"max_grad_norm={config.max_grad_norm} must be above 0; .inf clips no gradient"
        )
    if not 0 <= config.ema_decay < 1:
        raise ConfigError(f"ema_decay={config.ema_decay} must be at least 0 and below 1")
    rates = [f.name for f in dataclasses.fields(config) if f.name.endswith("learning_rate")]
    for name in [*rates, "loader_workers", "warmup_steps"]:
        if getattr(config, name) < 0:
            raise ConfigError(f"{name}={getattr(config, name)} must not be below 0")
    losses = getattr(config, "loss", None)
    for name, weight in vars(losses).items() if dataclasses.is_dataclass(losses) else ():
        if isinstance(weight, float) and not weight >= 0:
            raise ConfigError(f"loss.{name}={weight} must not be below 0")
    if config.halve_at_steps and config.schedule != "halving":
        raise ConfigError("halve_at_steps belongs to schedule=halving; give both")
    resolve_precision(config.precision, "cpu")  # raises for an unknown name


def pair_of(name: str, values: Sequence[float]) -> tuple[float, float]:
    """The two numbers of the setting ``name``.

    Raises:
        ConfigError: more or fewer numbers.
    """
    if len(values) != 2:
        raise ConfigError(f"{name}={list(values)} must have two numbers")
    return values[0], values[1]


def betas_of(name: str, values: Sequence[float]) -> tuple[float, float]:
    """The two numbers of Adam in the setting ``name``.

    Raises:
        ConfigError: more or fewer numbers, or one out of range.
    """
    betas = pair_of(name, values)
    if not all(0 <= value < 1 for value in betas):
        raise ConfigError(f"{name}={list(values)} must be at least 0 and below 1")
    return betas


def learning_rate_factor(config: TrainConfig, step: int) -> float:
    """The factor of all learning rates at ``step``, by ``warmup_steps`` and ``schedule``."""
    factor = 1.0
    if config.schedule == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * step / config.total_steps))
    elif config.schedule == "halving":
        factor = 0.5 ** sum(step >= at for at in config.halve_at_steps)
    if step < config.warmup_steps:
        factor *= (step + 1) / config.warmup_steps
    return factor
