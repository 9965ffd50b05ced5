"""What a training run leaves besides checkpoints: scalars, pictures, and its configuration."""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator

from dr2pipe.core import files, images
from dr2pipe.core.config import to_dict, to_yaml
from dr2pipe.core.errors import ConfigError, NotFiniteError
from dr2pipe.core.foreign import read_text
from dr2pipe.core.markers import MARKER, marked
from dr2pipe.core.records import (
    append_jsonl,
    check_output,
    read_jsonl,
    set_damaged_aside,
    to_jsonl,
)
from dr2pipe.training.recipe import TrainConfig

logger = logging.getLogger(__name__)

# name: what pip installs
_TRACKERS = {"tensorboard": "'dr2pipe[train]'", "wandb": "wandb"}
_PROJECT = "dr2pipe"
_KIND = "training"  # in the marker
_RESULT_FOLDERS = ("checkpoints", "final", "final_slow", "previews", "tensorboard", "wandb")
_WRITTEN = (MARKER, "log.jsonl", *_RESULT_FOLDERS)


def chosen_trackers(names: list[str] | None) -> list[str]:
    """The names of accelerate's trackers that a run logs to.

    Args:
        names: ``tensorboard`` and ``wandb``, or none; None: tensorboard if it is installed.

    Raises:
        ConfigError: an unknown name, or one whose package is not installed.
    """
    if names is None:
        if find_spec("tensorboard") is not None:
            return ["tensorboard"]
        logger.info(
            "tensorboard is not installed; scalars go to log.jsonl alone (pip install %s adds it)",
            _TRACKERS["tensorboard"],
        )
        return []
    for name in names:
        if name not in _TRACKERS:
            raise ConfigError(f"trackers: unknown '{name}'; choose from {', '.join(_TRACKERS)}")
        if find_spec(name) is None:
            raise ConfigError(
                f"trackers: {name} is not installed; run: pip install {_TRACKERS[name]}"
            )
    return list(dict.fromkeys(names))


def tracker_folder(output: Path) -> Path:
    """Where trackers that write files write them."""
    return output / "tensorboard"


class TrainingLog:
    """``run.yaml`` (marker and configuration), ``log.jsonl``, ``previews/`` and the trackers of one run.

    Args:
        folder: the output folder of the run.
        config: the resolved configuration.
        first_step: steps done so far. Steps after it were lost with a stopped run and are done
            again: their old lines are removed.
        accelerator: made with ``log_with`` and ``tracker_folder``; its trackers are started.
    """

    def __init__(
        self, folder: Path, config: TrainConfig, first_step: int, accelerator: Accelerator
    ):
        if first_step == 0:  # else the folder has a checkpoint of this run
            check_output(folder, _WRITTEN, kind=_KIND)
        folder.mkdir(parents=True, exist_ok=True)
        self.previews, self.path = folder / "previews", folder / "log.jsonl"
        content = marked({"kind": _KIND, "config": to_dict(config)}, _RESULT_FOLDERS)
        files.write_bytes(folder / MARKER, to_yaml(content).encode())
        set_damaged_aside(self.path)
        # Steps after the checkpoint are done again; their lines would stand there twice.
        lines = read_jsonl(self.path).records
        kept = [
            line
            for line in lines
            if isinstance(line.get("step"), int) and line["step"] <= first_step
        ]
        files.write_bytes(self.path, to_jsonl(kept))
        self.accelerator = accelerator
        options: dict[str, dict[str, Any]] = {"tensorboard": {"purge_step": first_step + 1}}
        if "wandb" in map(str, accelerator.log_with):
            options["wandb"] = _wandb_options(folder, config, first_step)
        accelerator.init_trackers(_PROJECT, init_kwargs=options)

    def add_scalars(self, step: int, scalars: dict[str, float]) -> None:
        """Write one line of ``log.jsonl`` and the trackers' values at ``step``."""
        self.accelerator.log(scalars, step=step)
        append_jsonl(self.path, [{"step": step, **scalars}])

    def add_picture(self, step: int, pixels: npt.NDArray[np.uint8]) -> None:
        """Write a preview as PNG and to the trackers; ``pixels``: (H,W,3) RGB."""
        images.write_png(self.previews / f"step_{step:08d}.png", pixels)
        for tracker in self.accelerator.trackers:
            options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({"preview": pixels[None]}, step=step, **options)


def _wandb_options(folder: Path, config: TrainConfig, first_step: int) -> dict[str, Any]:
    """Options of ``wandb.init``, with which a resumed run goes on in the same wandb run."""
    id_file = folder / "wandb_id"
    if first_step == 0 or not id_file.exists():
        files.write_bytes(id_file, uuid.uuid4().hex.encode())
    return {
        "name": folder.name,
        "dir": str(folder),
        "config": to_dict(config),
        "id": read_text(id_file, max_bytes=1000),
        "resume": "allow",
    }


@dataclass
class _Unread:
    """A value that is still on the device: reading it would wait for the device."""

    name: str
    value: torch.Tensor
    what: str | None  # it is, where it must be finite
    step: int
    pictures: Sequence[str]


class LogWindow:
    """What was measured since the last log line.

    Values stay on the device until somebody asks for them, so that a step waits for nothing.
    The window is saved with a checkpoint, so that the line a run was stopped in is complete.
    """

    def __init__(self) -> None:
        self.totals: dict[str, float] = defaultdict(float)
        self.counts: dict[str, int] = defaultdict(int)
        self.pictures, self.seconds, self.waited = 0, 0.0, 0.0
        self._unread: list[_Unread] = []
        self._clock = time.perf_counter()

    def add(
        self,
        name: str,
        value: torch.Tensor,
        *,
        step: int,
        pictures: Sequence[str] = (),
        what: str | None = None,
    ) -> None:
        """Add a value to the mean of ``name``; steps that have no such value do not count.

        Args:
            name: of the scalar in the log.
            value: one number, on any device.
            step: the number of steps done before the one that it belongs to.
            pictures: the names of the batch.
            what: what :meth:`read` calls it if it is not finite; None for a value that may be.
        """
        self._unread.append(_Unread(name, value.detach(), what, step, pictures))

    def read(self) -> None:
        """Wait for the device, and take all values into the means.

        Raises:
            NotFiniteError: a value that must be finite is not; it names the first.
        """
        unread, self._unread = self._unread, []
        for entry, number in zip(unread, _numbers([e.value for e in unread]), strict=True):
            if entry.what is not None and not math.isfinite(number):
                raise NotFiniteError(
                    f"{entry.what} is {number} at step {entry.step}; pictures of this batch: "
                    f"{', '.join(entry.pictures)}. Nothing after the newest checkpoint was saved: "
                    "the same command repeats the steps from there, in the same order"
                )
            self.totals[entry.name] += number
            self.counts[entry.name] += 1

    def means(self) -> dict[str, float]:
        """Means by name, sorted by name; raises as :meth:`read`."""
        self.read()
        return {name: self.totals[name] / self.counts[name] for name in sorted(self.totals)}

    def speed(self) -> dict[str, float]:
        """Pictures seen, pictures per second, and the share 0..1 of time spent waiting for data."""
        self._count_time()
        return {
            "pictures": self.pictures,
            "images_per_second": self.pictures / self.seconds,
            "data_wait_share": self.waited / self.seconds,
        }

    def state_dict(self) -> dict[str, Any]:
        """The window's content, for a checkpoint; raises as :meth:`read`."""
        self.read()
        self._count_time()
        names = ("pictures", "seconds", "waited")
        state = {name: getattr(self, name) for name in names}
        return state | {"totals": dict(self.totals), "counts": dict(self.counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned."""
        self.totals.update(state["totals"])
        self.counts.update(state["counts"])
        for name in ("pictures", "seconds", "waited"):
            setattr(self, name, state[name])

    def _count_time(self) -> None:
        now = time.perf_counter()
        self.seconds, self._clock = self.seconds + now - self._clock, now


def _numbers(values: list[torch.Tensor]) -> list[float]:
    """The values as numbers; one copy, and one wait, for each device they are on."""
    numbers = [0.0] * len(values)
    for device in {value.device for value in values}:
        places = [i for i, value in enumerate(values) if value.device == device]
        stacked = torch.stack([values[i].float().reshape(()) for i in places])
        for i, number in zip(places, stacked.tolist(), strict=True):
            numbers[i] = number
    return numbers
