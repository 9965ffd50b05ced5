"""Stage 1 (DR2) built from a configuration: with fixed settings, or settings for each picture."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from dr2pipe.core import files
from dr2pipe.core.config import stable_hash
from dr2pipe.core.diffusers_types import ModelMixin, SchedulerMixin
from dr2pipe.core.errors import ConfigError
from dr2pipe.core.models import find_model
from dr2pipe.diffusion.auto import AutoSetting, load_auto
from dr2pipe.diffusion.dr2 import check_network, clamp_x0, diffuse, remove_degradation
from dr2pipe.diffusion.exposure import normalise_exposure
from dr2pipe.diffusion.low_pass import BicubicLowPass, LowPass, build_low_pass
from dr2pipe.diffusion.networks import FaceDDPM, load_ddpm
from dr2pipe.diffusion.noise import Antithetic, Generators
from dr2pipe.diffusion.pipeline import network_size
from dr2pipe.diffusion.student import DR2Student, load_student
from dr2pipe.diffusion.timesteps import (
    build_scheduler,
    check_chain,
    check_max_timestep,
    default_omega,
    start_chain,
)

logger = logging.getLogger(__name__)

WrapUNet = Callable[[ModelMixin, str], ModelMixin]

MODES = ("fixed", "auto")
EXPOSURES = ("keep", "normalise")
STRENGTHS = {"bicubic": "factor", "gaussian": "sigma_px", "fft": "cutoff"}  # settings by filter
# What a scheduler must have in common with the one that the network was trained with.
_CHAIN = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")


@dataclass
class DR2Config:
    """Settings of stage 1.

    Some belong together: ``factor`` to the low pass ``bicubic``, ``sigma_px`` to ``gaussian``,
    ``cutoff`` to ``fft``, ``variance`` to the scheduler ``ddpm``, ``auto`` to the mode ``auto``.
    """

    enabled: bool = True
    model: str = "portrait128"  # name in checkpoints/, folder, or hub id of a face DDPM
    # fixed | auto. The automatic setting chooses for each picture whether stage 1 is enabled, the
    # scheduler, the filter with its strength, tau, omega, num_steps and num_evaluations; also
    # antithetic, where that is null. The rest holds for all pictures.
    mode: str = "fixed"
    auto: str = "auto_portrait128"  # name in checkpoints/, or JSON file by dr2pipe fit-auto
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
    exposure: str = "keep"  # keep | normalise dark and pale pictures, see diffusion/exposure.py
    # Name or folder of a student of the model: it takes one call in place of all for each noise, for
    # the settings that it was taught. num_evaluations is then of the others.
    student: str | None = None
    # Each face is made twice, from noise and from its negative, and the mean is taken: see
    # diffusion/noise.py, Antithetic. null: as the automatic setting was fitted; else false.
    antithetic: bool | None = None


@dataclass
class Remover:
    """Stage 1 with its settings: what ``remove_degradation`` needs besides the pictures."""

    unet: ModelMixin
    scheduler: SchedulerMixin
    low_pass: LowPass
    omega: int
    tau: int
    num_steps: int = 100
    num_evaluations: int | None = None
    max_timestep: int | None = None  # the highest that the network was trained on; None for all
    exposure: str = "keep"  # keep | normalise
    student: DR2Student | None = None  # takes the place of the chain for settings that it knows
    antithetic: bool = False  # the mean of two, from noise and from its negative

    @property
    def taught_place(self) -> int | None:
        """The student's place of these settings; None where the chain of the network is run."""
        if self.student is None or not isinstance(self.low_pass, BicubicLowPass):
            return None
        return self.student.place_of(self.low_pass.factor, self.tau, self.omega, self.num_steps)

    @property
    def calls(self) -> int:
        """Network calls for a picture."""
        calls = self.num_evaluations or self.omega - self.tau + 1
        if self.taught_place is not None:
            calls = 1
        return 2 * calls if self.antithetic else calls

    @property
    def networks(self) -> list[ModelMixin]:
        """The network, and the student where there is one."""
        return [self.unet] if self.student is None else [self.unet, self.student]

    @property
    def size(self) -> int:
        """Side in pixels of the pictures it takes."""
        return network_size(self.unet)

    def __call__(self, degraded: torch.Tensor, generator: Generators) -> torch.Tensor:
        """Return the coarse faces of (B,3,S,S) in [-1,1], by the noise of ``generator``."""
        if self.exposure == "normalise":
            normal, undo = normalise_exposure(degraded)
            return undo(self._coarse(normal, generator))
        return self._coarse(degraded, generator)

    def student_input(
        self, degraded: torch.Tensor, generator: Generators
    ) -> tuple[torch.Tensor, torch.Tensor, int, torch.Tensor]:
        """What a student sees of (B,3,S,S): x_ω, Φ_N(y), the timestep of ω and ᾱ there.

        x_ω is drawn as the chain draws its own.
        """
        scheduler, timesteps = start_chain(
            self.scheduler, omega=self.omega, tau=self.tau, num_steps=self.num_steps
        )
        alpha_bar = scheduler.alphas_cumprod[timesteps[0]]
        noisy = diffuse(degraded, alpha_bar, generator)
        return noisy, self.low_pass(degraded), timesteps[0], alpha_bar

    def _coarse(self, degraded: torch.Tensor, generator: Generators) -> torch.Tensor:
        if not self.antithetic:
            return self._remove(degraded, generator)
        # What the result owes to the noise is mostly linear in it, and so cancels.
        both = self._remove(torch.cat([degraded, degraded]), Antithetic(generator))
        first, second = both.chunk(2)
        return (first + second) / 2

    def _remove(self, degraded: torch.Tensor, generator: Generators) -> torch.Tensor:
        place = self.taught_place
        if self.student is not None and place is not None:
            return clamp_x0(self.student(*self.student_input(degraded, generator), place))
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

    def with_single_noise(self) -> Remover:
        """The same, but every face is made once, from one noise."""
        return dataclasses.replace(self, antithetic=False) if self.antithetic else self

    def choose(self, degraded: torch.Tensor) -> list[Choice]:
        """Choose itself for every picture."""
        return [Choice(self)] * len(degraded)


@dataclass
class Choice:
    """What stage 1 does to a picture.

    Attributes:
        remover: None leaves the picture as it is.
        note: why, for the manifest; None with fixed settings.
    """

    remover: Remover | None
    note: dict[str, Any] | None = None

    @property
    def calls(self) -> int:
        """Network calls for the picture."""
        return self.remover.calls if self.remover else 0


class AutoRemover:
    """Stage 1 with settings chosen for each picture.

    Args:
        setting: how to choose.
        removers: one per candidate of ``setting``, with one network between them; None leaves
            stage 1 out. At least one is not None.
    """

    def __init__(self, setting: AutoSetting, removers: list[Remover | None]):
        self.setting, self.removers = setting, removers
        self._first = next(remover for remover in removers if remover is not None)

    @property
    def unet(self) -> ModelMixin:
        """The network of all candidates."""
        return self._first.unet

    @property
    def networks(self) -> list[ModelMixin]:
        """The network of all candidates, and the student where there is one."""
        return self._first.networks

    @property
    def size(self) -> int:
        """Side in pixels of the pictures it takes."""
        return self._first.size

    def with_single_noise(self) -> AutoRemover:
        """The same, but every face is made once, from one noise."""
        single = [remover and remover.with_single_noise() for remover in self.removers]
        same = all(one is other for one, other in zip(single, self.removers, strict=True))
        return self if same else AutoRemover(self.setting, single)

    def choose(self, degraded: torch.Tensor) -> list[Choice]:
        """Choose for each of (B,3,S,S) in [-1,1]; a choice depends on its picture alone."""
        choices = []
        for place, confidence in self.setting.choose(degraded):
            remover = self.removers[place]
            settings = {k: v for k, v in self.setting.candidates[place].items() if v is not None}
            if remover is not None:  # dr2.antithetic and samples may differ from the file
                settings["antithetic"] = remover.antithetic
            choices.append(Choice(remover, settings | {"confidence": round(confidence, 3)}))
        return choices


def load_remover(
    config: DR2Config, *, wrap_unet: WrapUNet | None = None
) -> tuple[Remover | AutoRemover, dict[str, str]]:
    """Load stage 1; also return the sha256 of its files.

    Args:
        config: the settings.
        wrap_unet: called with the loaded network and a hash of its weights and config; returns
            the network to use in its place, for instance one that several removers share.

    Raises:
        ConfigError: a setting or name that is not valid, or missing weights.
    """
    if config.mode not in MODES:
        raise ConfigError(f"dr2.mode '{config.mode}': choose {', '.join(MODES)}")
    folder = find_model(config.model)
    ddpm = load_ddpm(folder)
    hashes = {"dr2": files.sha256(folder)}
    if wrap_unet is not None:
        key = hashes["dr2"] + stable_hash(plain_config(ddpm.unet.config))
        ddpm = dataclasses.replace(ddpm, unet=wrap_unet(ddpm.unet, key))
    student = None
    if config.student is not None:
        path = find_model(config.student)
        student, hashes["student"] = load_student(path), files.sha256(path)
        if student.config.teacher_sha256 != hashes["dr2"]:
            raise ConfigError(f"{path} is the student of another model than {folder}")
    if config.mode == "fixed":
        return _build_remover(config, ddpm, student), hashes
    setting, path = load_auto(config.auto)
    if setting.model_sha256 != hashes["dr2"]:
        raise ConfigError(f"{path} was fitted on another model than {folder}; fit it again")
    try:
        configs = candidate_configs(config, setting)
    except TypeError as error:
        raise ConfigError(f"{path}: {error}") from None
    removers = [_build_remover(c, ddpm, student) if c.enabled else None for c in configs]
    if not any(removers):
        raise ConfigError(f"{path}: no candidate has a first stage")
    return AutoRemover(setting, removers), hashes | {"auto": files.sha256(path)}


def candidate_configs(config: DR2Config, setting: AutoSetting) -> list[DR2Config]:
    """The candidates of an automatic setting, as fixed settings; the rest is as in ``config``."""
    kept = {} if config.antithetic is None else {"antithetic": config.antithetic}
    return [dataclasses.replace(config, mode="fixed", **(c | kept)) for c in setting.candidates]


def describe_dr2(config: DR2Config, remover: Remover | AutoRemover) -> dict[str, Any]:
    """Return all settings of stage 1 that decide its results, with ω as a number.

    Weights are not among them: they have hashes of their own.
    """
    network = {"network_config_hash": stable_hash(plain_config(remover.unet.config))}
    if isinstance(remover, AutoRemover):
        schedulers = [plain_config(r.scheduler.config) for r in remover.removers if r is not None]
        different = {stable_hash(scheduler): scheduler for scheduler in schedulers}
        chosen_from: dict[str, Any] = {"scheduler_configs": list(different.values())}
        if config.exposure != "keep":
            chosen_from["exposure"] = config.exposure
        if config.antithetic is not None:
            chosen_from["antithetic"] = config.antithetic
        return {"mode": "auto", "variance": config.variance} | chosen_from | network
    described = dataclasses.asdict(config) | {
        "omega": remover.omega,
        "scheduler": type(remover.scheduler).__name__,
        "scheduler_config": plain_config(remover.scheduler.config),
    }
    # As before there was another choice: finished pictures remain valid.
    if config.exposure == "keep":
        described.pop("exposure")
    if not config.antithetic:
        described.pop("antithetic")
    # The place of a model does not matter, only its content.
    for name in ("model", "auto", "student"):
        described.pop(name)
    return described | network


def plain_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return a diffusers configuration as plain values, without its private entries."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in config.items() if k[0] != "_"}


def _build_remover(config: DR2Config, ddpm: FaceDDPM, student: DR2Student | None) -> Remover:
    if config.exposure not in EXPOSURES:
        raise ConfigError(f"dr2.exposure '{config.exposure}': choose {', '.join(EXPOSURES)}")
    omega = config.omega
    if omega is None and config.low_pass != "bicubic":
        raise ConfigError(f"dr2.omega must be given with dr2.low_pass={config.low_pass}")
    if omega is None:
        omega = default_omega(config.tau, config.factor, config.num_steps)
    check_chain(omega, config.tau, config.num_steps, config.num_evaluations)
    low_pass = _build_low_pass(config)
    size = ddpm.unet.config.sample_size
    if config.low_pass == "bicubic" and isinstance(size, int) and size % config.factor:
        raise ConfigError(f"dr2.factor={config.factor} does not divide the network's size {size}")
    remover = Remover(
        ddpm.unet,
        _build_scheduler(config, ddpm),
        low_pass,
        omega=omega,
        tau=config.tau,
        num_steps=config.num_steps,
        num_evaluations=config.num_evaluations,
        max_timestep=ddpm.max_timestep,
        exposure=config.exposure,
        student=student,
        antithetic=bool(config.antithetic),
    )
    if student is not None and remover.taught_place is None:
        logger.warning(
            "dr2.student=%s was not taught N=%s, tau=%d, omega=%d, so dr2.model takes %d calls; it "
            "knows (N, tau, omega): %s",
            config.student,
            config.factor if config.low_pass == "bicubic" else config.low_pass,
            config.tau,
            omega,
            remover.calls,
            ", ".join(str(tuple(setting)) for setting in student.config.taught),
        )
    _, timesteps = start_chain(
        remover.scheduler,
        omega=omega,
        tau=config.tau,
        num_steps=config.num_steps,
        num_evaluations=config.num_evaluations,
    )
    check_network(remover.unet, remover.scheduler)
    check_max_timestep(timesteps[0], remover.max_timestep)
    return remover


def _build_low_pass(config: DR2Config) -> LowPass:
    option = STRENGTHS.get(config.low_pass)
    options = {option: getattr(config, option)} if option else {}
    if option and options[option] is None:
        raise ConfigError(f"dr2.low_pass={config.low_pass} needs dr2.{option}")
    return build_low_pass(config.low_pass, **options)


def _build_scheduler(config: DR2Config, ddpm: FaceDDPM) -> SchedulerMixin:
    """Return the model's own scheduler, or the one of the config with the model's chain."""
    if config.scheduler is None and ddpm.scheduler is not None:
        if config.variance is not None:
            raise ConfigError("dr2.variance belongs to dr2.scheduler=ddpm; give both")
        return ddpm.scheduler
    trained_with = {}
    if ddpm.scheduler is not None:
        trained_with = {name: ddpm.scheduler.config[name] for name in _CHAIN}
    learned = ddpm.unet.config.out_channels == 6
    return build_scheduler(
        config.scheduler or "ddpm",
        variance=config.variance or ("learned_range" if learned else "fixed_small"),
        **trained_with,
    )
