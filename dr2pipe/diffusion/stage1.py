"""Stage 1, DR2, as a configuration describes it: with fixed settings or ones for each picture."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from dr2pipe.core import files
from dr2pipe.core.config import stable_hash
from dr2pipe.core.diffusers_types import SchedulerMixin, UNet2DModel
from dr2pipe.core.errors import ConfigError
from dr2pipe.core.models import find_model
from dr2pipe.diffusion.auto import AutoSetting, load_auto
from dr2pipe.diffusion.dr2 import check_network, remove_degradation
from dr2pipe.diffusion.low_pass import LowPass, build_low_pass
from dr2pipe.diffusion.networks import load_unet
from dr2pipe.diffusion.timesteps import build_scheduler, check_chain, default_omega, start_chain

MODES = ("fixed", "auto")
STRENGTHS = {"bicubic": "factor", "gaussian": "sigma_px", "fft": "cutoff"}  # settings by filter


@dataclass
class DR2Config:
    """Stage 1."""

    enabled: bool = True
    model: str = "portrait64"  # name in checkpoints/, folder, or hub id of a face DDPM
    mode: str = "fixed"  # fixed | auto: all below chosen for each picture
    auto: str = "auto_portrait64"  # name in checkpoints/, or JSON file by dr2pipe fit-auto
    scheduler: str | None = None  # ddpm | ddim | dpmsolver++; null: the model's own
    variance: str | None = None  # of ddpm; null: learned_range for 6 channels, else fixed_small
    low_pass: str = "bicubic"  # bicubic | gaussian | fft | none
    factor: int = 4  # the paper's N; of bicubic
    sigma_px: float | None = None  # of gaussian
    cutoff: float | None = None  # of fft, share of the Nyquist frequency
    tau: int = 22
    omega: int | None = None  # null: by the table of N
    num_steps: int = 100
    num_evaluations: int | None = None  # null: every step from omega to tau


@dataclass
class Remover:
    """Stage 1 with its settings: what ``remove_degradation`` needs besides the pictures."""

    unet: UNet2DModel
    scheduler: SchedulerMixin
    low_pass: LowPass
    omega: int
    tau: int
    num_steps: int = 100
    num_evaluations: int | None = None

    @property
    def calls(self) -> int:
        """Network calls for a picture."""
        return self.num_evaluations or self.omega - self.tau + 1

    @property
    def size(self) -> int:
        sample_size = self.unet.config.sample_size
        return sample_size if isinstance(sample_size, int) else sample_size[0]

    def __call__(self, degraded: torch.Tensor, generator: list[torch.Generator]) -> torch.Tensor:
        return remove_degradation(
            self.unet,
            self.scheduler,
            self.low_pass,
            degraded,
            omega=self.omega,
            tau=self.tau,
            num_steps=self.num_steps,
            num_evaluations=self.num_evaluations,
            generator=generator,
        )

    def choose(self, degraded: torch.Tensor) -> list[Choice]:
        """Itself, for every picture."""
        return [Choice(self)] * len(degraded)


@dataclass
class Choice:
    """What to do to a picture: a remover, or None to leave it; ``note`` tells why."""

    remover: Remover | None
    note: dict[str, Any] | None = None

    @property
    def calls(self) -> int:
        return self.remover.calls if self.remover else 0


class AutoRemover:
    """Stage 1 with settings chosen for each picture.

    Args:
        setting: how to choose.
        removers: by candidate; None leaves stage 1 out. They share one network.
    """

    def __init__(self, setting: AutoSetting, removers: list[Remover | None]):
        self.setting, self.removers = setting, removers
        self._first = next(remover for remover in removers if remover is not None)

    @property
    def unet(self) -> UNet2DModel:
        return self._first.unet

    @unet.setter
    def unet(self, unet: UNet2DModel) -> None:
        for remover in self.removers:
            if remover is not None:
                remover.unet = unet

    @property
    def size(self) -> int:
        return self._first.size

    def choose(self, degraded: torch.Tensor) -> list[Choice]:
        """For each of (B,3,S,S) in [-1,1]; pictures do not depend on each other."""
        choices = []
        for place, confidence in self.setting.choose(degraded):
            settings = {k: v for k, v in self.setting.candidates[place].items() if v is not None}
            note = settings | {"confidence": round(confidence, 3)}
            choices.append(Choice(self.removers[place], note))
        return choices


def load_remover(config: DR2Config) -> tuple[Remover | AutoRemover, dict[str, str]]:
    """Stage 1 of a config, and the sha256 of its files.

    Raises:
        ConfigError, ValueError: a setting or name that is not valid, or missing weights.
    """
    if config.mode not in MODES:
        raise ConfigError(f"dr2.mode '{config.mode}': choose {', '.join(MODES)}")
    folder = find_model(config.model)
    unet, scheduler = load_unet(folder)
    hashes = {"dr2": files.sha256(folder)}
    if config.mode == "fixed":
        return _build_remover(config, unet, scheduler), hashes
    setting, path = load_auto(config.auto)
    if setting.model_sha256 != hashes["dr2"]:
        raise ConfigError(f"{path} was fitted on another model than {folder}; fit it again")
    try:
        configs = [dataclasses.replace(config, mode="fixed", **c) for c in setting.candidates]
    except TypeError as error:
        raise ConfigError(f"{path}: {error}") from None
    removers = [_build_remover(c, unet, scheduler) if c.enabled else None for c in configs]
    if not any(removers):
        raise ConfigError(f"{path}: no candidate has a first stage")
    return AutoRemover(setting, removers), hashes | {"auto": files.sha256(path)}


def describe_dr2(config: DR2Config, remover: Remover | AutoRemover) -> dict[str, Any]:
    """All of stage 1 that decides its results, with ω as a number; its weights have hashes."""
    network = {"network_config_hash": stable_hash(stated(remover.unet.config))}
    if isinstance(remover, AutoRemover):
        schedulers = [stated(r.scheduler.config) for r in remover.removers if r is not None]
        different = {stable_hash(scheduler): scheduler for scheduler in schedulers}
        chosen_from = {"scheduler_configs": list(different.values())}
        return {"mode": "auto", "variance": config.variance} | chosen_from | network
    described = dataclasses.asdict(config) | {
        "omega": remover.omega,
        "scheduler": type(remover.scheduler).__name__,
        "scheduler_config": stated(remover.scheduler.config),
    }
    # Where a model lies does not matter.
    for name in ("model", "auto"):
        described.pop(name)
    return described | network


def stated(config: dict[str, Any]) -> dict[str, Any]:
    """A diffusers configuration without its private entries, as plain values."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in config.items() if k[0] != "_"}


def _build_remover(
    config: DR2Config, unet: UNet2DModel, scheduler: SchedulerMixin | None
) -> Remover:
    omega = config.omega
    if omega is None and config.low_pass != "bicubic":
        raise ConfigError(f"dr2.omega must be given with dr2.low_pass={config.low_pass}")
    if omega is None:
        omega = default_omega(config.tau, config.factor, config.num_steps)
    check_chain(omega, config.tau, config.num_steps, config.num_evaluations)
    option = STRENGTHS.get(config.low_pass)
    chosen = {option: getattr(config, option)} if option else {}
    if option and chosen[option] is None:
        raise ConfigError(f"dr2.low_pass={config.low_pass} needs dr2.{option}")
    low_pass = build_low_pass(config.low_pass, **chosen)
    size = unet.config.sample_size
    if config.low_pass == "bicubic" and isinstance(size, int) and size % config.factor:
        raise ConfigError(f"dr2.factor={config.factor} does not divide the network's size {size}")
    if config.scheduler is not None or scheduler is None:
        shared = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")
        trained_with = {k: scheduler.config[k] for k in shared} if scheduler is not None else {}
        learned = unet.config.out_channels == 6
        scheduler = build_scheduler(
            config.scheduler or "ddpm",
            variance=config.variance or ("learned_range" if learned else "fixed_small"),
            **trained_with,
        )
    elif config.variance is not None:
        raise ConfigError("dr2.variance belongs to dr2.scheduler=ddpm; give both")
    chain = {
        "omega": omega,
        "tau": config.tau,
        "num_steps": config.num_steps,
        "num_evaluations": config.num_evaluations,
    }
    _, timesteps = start_chain(scheduler, **chain)
    check_network(unet, scheduler, first_timestep=timesteps[0])
    return Remover(unet, scheduler, low_pass, **chain)
