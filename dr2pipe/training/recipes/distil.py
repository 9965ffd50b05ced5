"""Recipe: a student that gives DR2's coarse face in one call (:mod:`dr2pipe.diffusion.student`).

The teacher, DR2 with its settings, runs on every batch. Teacher and student begin with the same x_ω
(an antithetic teacher also with its negative). The noise that the teacher draws afterwards is new for
every showing, so the student learns the mean over it.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from dr2pipe.core import files
from dr2pipe.core.diffusers_types import ModelMixin, UNet2DModel
from dr2pipe.core.errors import ConfigError
from dr2pipe.core.models import find_model
from dr2pipe.diffusion.noise import Philox
from dr2pipe.diffusion.patched_unet import PatchedUNet
from dr2pipe.diffusion.stage1 import DR2Config, Remover, load_remover
from dr2pipe.diffusion.student import DR2Student, load_student, student_of
from dr2pipe.losses.reconstruction import log_error
from dr2pipe.training.checkpoints import check_same_settings
from dr2pipe.training.previews import PREVIEW_PICTURES, tile_rows
from dr2pipe.training.recipe import (
    Batch,
    Loss,
    Networks,
    PairsConfig,
    TrainConfig,
    TrainedNetwork,
    unwrap,
)


@dataclass
class DistilConfig(TrainConfig):
    """Settings of the recipe ``distil``."""

    dr2: DR2Config = field(default_factory=DR2Config)  # the teacher; factor, tau, omega: by taught
    # The settings to learn, [N, tau, omega] each; all batches of a step have one of them.
    taught: list[list[int]] = field(default_factory=list)
    # Widths of the student; null: those of its teacher, whose weights it then begins with.
    channels: list[int] | None = None
    init: str | None = None  # name or folder of a student whose weights training starts from
    compile: bool = False  # the teacher, by torch.compile; its calls are most of the work
    pairs: PairsConfig = field(default_factory=PairsConfig)  # degraded faces, at the teacher's size
    learning_rate: float = 2e-4
    beta2: float = 0.99  # of AdamW
    export_precision: str = "fp32"  # fp32 | fp16


class DistilRecipe:
    """A student of one teacher with one or more settings."""

    def __init__(self, config: DistilConfig):
        _check(config)
        self.config = config
        self.teachers: list[Remover] = []  # one per setting, with one network between them
        hashes: dict[str, str] = {}
        for factor, tau, omega in config.taught:
            calls = config.dr2.num_evaluations
            settings = dataclasses.replace(
                config.dr2,
                factor=factor,
                tau=tau,
                omega=omega,
                # A short way from omega to tau has fewer steps than calls are asked for.
                num_evaluations=None if calls is None else min(calls, max(omega - tau + 1, 1)),
            )
            remover, hashes = load_remover(settings, wrap_unet=self._shared)
            assert isinstance(remover, Remover)  # the mode is fixed
            self.teachers.append(remover)
        self.teacher_sha256 = hashes["dr2"]
        self.is_compiled = False
        first = self.teachers[0]
        if {config.data.size, config.pairs.input_size} != {first.size}:
            raise ConfigError(
                f"data.size={config.data.size} and pairs.input_size={config.pairs.input_size} "
                f"must be the side of the teacher's faces, {first.size}"
            )

    def _shared(self, unet: ModelMixin, key: str) -> ModelMixin:
        if self.teachers:
            return self.teachers[0].unet
        unet.requires_grad_(False).eval()
        return unet

    def build(self) -> dict[str, TrainedNetwork]:
        """Build ``student``, which begins as ``init``, or as the teacher where it is as wide."""
        first = self.teachers[0]
        assert isinstance(first.unet, UNet2DModel | PatchedUNet)  # load_ddpm knows no other
        student = student_of(
            first.unet,
            self.config.taught,
            num_steps=first.num_steps,
            prediction_type=first.scheduler.config.prediction_type,
            teacher_sha256=self.teacher_sha256,
            channels=self.config.channels,
        ).train()
        if self.config.init is not None:
            start = load_student(find_model(self.config.init))
            what = f"init={self.config.init}"
            check_same_settings(start, student, what, free=("teacher_sha256",))
            student.load_state_dict(start.state_dict())
        optimizer = torch.optim.AdamW(
            student.parameters(),
            lr=self.config.learning_rate,
            betas=(0.9, self.config.beta2),
            weight_decay=0.0,
        )
        return {"student": TrainedNetwork(student, optimizer)}

    def step(self, networks: Networks, batch: Batch) -> Iterator[Loss]:
        """The loss of one batch: the logarithm of the error to the teacher's coarse faces."""
        place = batch["step"] % len(self.teachers)
        degraded = batch["input"]
        taught = self._teach(place, degraded, batch["seed"])
        remover, noise = self.teachers[place], Philox(batch["seed"], "distil")
        coarse = networks["student"](*remover.student_input(degraded, noise), place)
        error = (coarse.detach() - taught).square().mean()
        yield "student", log_error(coarse, taught), {"student/squared_error": error}

    @torch.no_grad()
    def _teach(self, place: int, degraded: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """The teacher's coarse faces of (B,3,S,S), by the showings' seeds."""
        remover = self.teachers[place]
        dtype = torch.bfloat16 if self.config.precision == "bf16" else torch.float32
        if (remover.unet.device, remover.unet.dtype) != (degraded.device, dtype):
            remover.unet.to(device=degraded.device, dtype=dtype)
        if self.config.compile and not self.is_compiled:
            remover.unet.compile(dynamic=False)  # one network for all settings
            self.is_compiled = True
        return remover(degraded, Philox(seeds, "distil")).float()

    @torch.no_grad()
    def preview(self, networks: Networks, batch: Batch) -> torch.Tensor:
        """Rows of faces for the first setting: input, x_ω, teacher, student, clean."""
        student = unwrap(networks["student"], DR2Student)
        clean, degraded, seeds = (
            batch[name][:PREVIEW_PICTURES] for name in ("image", "input", "seed")
        )
        degraded = degraded.to(student.device)
        given = self.teachers[0].student_input(degraded, Philox(seeds, "distil"))
        coarse = student(*given, 0)
        taught = self._teach(0, degraded, seeds)
        return tile_rows(degraded, given[0], taught, coarse, clean.to(student.device))

    def export(self, networks: Networks, folder: Path) -> None:
        """Write a folder that ``DR2Config.student`` names."""
        student = copy.deepcopy(unwrap(networks["student"], DR2Student))
        if self.config.export_precision == "fp16":
            student.half()
        files.write_folder(folder, student.save_pretrained)


def _check(config: DistilConfig) -> None:
    """Raise ConfigError for settings that are not valid or do not fit each other."""
    if config.export_precision not in ("fp32", "fp16"):
        raise ConfigError(f"export_precision '{config.export_precision}': choose fp32 or fp16")
    if not config.taught or any(len(setting) != 3 for setting in config.taught):
        raise ConfigError(f"taught={config.taught} must be a list of [N, tau, omega]")
    wanted = {"enabled": True, "mode": "fixed", "low_pass": "bicubic", "exposure": "keep"}
    for name, value in (wanted | {"student": None}).items():
        if getattr(config.dr2, name) != value:
            raise ConfigError(f"dr2.{name} of a teacher must be {value}")
