"""What a training run leaves besides checkpoints: scalars, pictures, and its configuration."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from dr2pipe.core import files, images
from dr2pipe.core.config import to_dict, to_yaml
from dr2pipe.core.extras import needs_extra
from dr2pipe.core.records import append_jsonl, read_jsonl, to_jsonl
from dr2pipe.training.recipe import TrainConfig

with needs_extra("train"):
    from torch.utils.tensorboard import SummaryWriter


class TrainingLog:
    """``run.yaml``, ``log.jsonl``, ``previews/`` and tensorboard files below ``folder``."""

    def __init__(self, folder: Path, config: TrainConfig, first_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.previews, self.path = folder / "previews", folder / "log.jsonl"
        files.write_bytes(folder / "run.yaml", to_yaml(to_dict(config)).encode())
        # Steps after the checkpoint are done again; their lines would stand there twice.
        self.board = SummaryWriter(folder / "tensorboard", purge_step=first_step + 1)
        lines = read_jsonl(self.path).records
        kept = [line for line in lines if line.get("step", first_step + 1) <= first_step]
        files.write_bytes(self.path, to_jsonl(kept))

    def add_scalars(self, step: int, scalars: dict[str, float]) -> None:
        for name, value in scalars.items():
            self.board.add_scalar(name, value, step)
        append_jsonl(self.path, [{"step": step, **scalars}])

    def add_picture(self, step: int, pixels: np.ndarray) -> None:
        """``pixels``: (H,W,3) uint8 RGB."""
        images.write_png(self.previews / f"step_{step:08d}.png", pixels)
        self.board.add_image("preview", pixels, step, dataformats="HWC")

    def close(self) -> None:
        self.board.close()


class LogWindow:
    """What was measured since the last log line; part of a checkpoint, so that lines stay whole."""

    def __init__(self):
        self.totals: dict[str, float] = defaultdict(float)
        self.counts: dict[str, int] = defaultdict(int)
        self.pictures, self.seconds, self.waited = 0, 0.0, 0.0
        self._clock = time.perf_counter()

    def add(self, name: str, value: float | torch.Tensor) -> None:
        """A value that only some steps have is averaged over those."""
        self.totals[name] += float(value)
        self.counts[name] += 1

    def means(self) -> dict[str, float]:
        return {name: self.totals[name] / self.counts[name] for name in sorted(self.totals)}

    def speed(self) -> dict[str, float]:
        self._count_time()
        return {
            "pictures": self.pictures,
            "images_per_second": self.pictures / self.seconds,
            "data_wait_share": self.waited / self.seconds,
        }

    def state_dict(self) -> dict:
        self._count_time()
        names = ("pictures", "seconds", "waited")
        state = {name: getattr(self, name) for name in names}
        return state | {"totals": dict(self.totals), "counts": dict(self.counts)}

    def load_state_dict(self, state: dict) -> None:
        self.totals.update(state["totals"])
        self.counts.update(state["counts"])
        for name in ("pictures", "seconds", "waited"):
            setattr(self, name, state[name])

    def _count_time(self) -> None:
        now = time.perf_counter()
        self.seconds, self._clock = self.seconds + now - self._clock, now
