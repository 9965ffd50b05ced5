"""The training loop: one for every recipe.

A recipe says which networks are trained and how a batch becomes a loss. The loop does the rest:
processes and precision (accelerate), accumulation, EMA, logging, previews, checkpoints, resuming.
Everything random follows from the seed and the number of pictures seen. So a checkpoint needs no
generator state, and a resumed run repeats an undisturbed one bit for bit on the CPU.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from tqdm import tqdm

from dr2pipe.core import files, images
from dr2pipe.core.config import stable_seed, to_dict
from dr2pipe.core.diffusers_types import EMAModel
from dr2pipe.core.errors import CheckpointError, ConfigError, Dr2pipeError, NotFiniteError
from dr2pipe.core.precision import resolve_precision, warn_if_slow
from dr2pipe.core.processes import (
    forget_stray_ranks,
    ignore_stop_signals,
    stop_signals_caught,
    use_cpu,
)
from dr2pipe.core.records import EXIT_DONE, EXIT_INTERRUPTED
from dr2pipe.core.seeding import random_stream
from dr2pipe.data.showings import Item, ShowingDataset, ShuffledBatches
from dr2pipe.training.checkpoints import (
    load_newest_checkpoint,
    load_optimizer,
    save_checkpoint,
    warn_of_changes,
)
from dr2pipe.training.log import LogWindow, TrainingLog, chosen_trackers, tracker_folder
from dr2pipe.training.recipe import (
    Networks,
    Recipe,
    TrainConfig,
    check_config,
    learning_rate_factor,
)

if TYPE_CHECKING:
    Progress = tqdm[NoReturn]

logger = logging.getLogger(__name__)

# Several processes ask each other this often whether one was told to stop, since the answer must
# be waited for. A launcher kills them 30 seconds after Ctrl-C.
_ASK_EVERY_SECONDS, _ASK_EVERY_STEPS = 4.0, 10


class Trainer:
    """Train ``recipe`` on ``dataset`` until ``config.total_steps``.

    A run whose output folder has a checkpoint goes on from the newest one.

    Raises:
        ConfigError: an invalid setting, or a checkpoint of another recipe or other networks.
    """

    def __init__(self, config: TrainConfig, recipe: Recipe, dataset: ShowingDataset):
        check_config(config)
        device = "cpu" if use_cpu() else torch.accelerator.current_accelerator() or "cpu"
        # In the object that the recipe reads too.
        config.precision = resolve_precision(config.precision, device)
        warn_if_slow(config.precision, device)
        self.config, self.recipe, self.dataset = config, recipe, dataset
        self.output = Path(config.output)
        forget_stray_ranks()
        self.accelerator = Accelerator(
            cpu=use_cpu(),
            mixed_precision="no" if config.precision == "fp32" else config.precision,
            gradient_accumulation_steps=config.accumulation_steps,
            log_with=chosen_trackers(config.trackers) or None,
            project_dir=tracker_folder(self.output),
        )
        self.bare: Networks = {}
        self.networks: Networks = {}  # as accelerate prepared them
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.emas: dict[str, EMAModel] = {}
        with random_stream(torch.Generator().manual_seed(config.seed)):
            trained = recipe.build()
        for name, built in trained.items():
            network, optimizer = built.network.to(self.accelerator.device), built.optimizer
            self.bare[name] = self.networks[name] = network
            if optimizer is None:
                continue
            if built.ema:
                self.emas[name] = EMAModel(
                    network.parameters(),
                    decay=config.ema_decay,
                    foreach=self.accelerator.device.type == "cuda",  # a kernel for many weights
                )
            for group in optimizer.param_groups:
                group["initial_lr"] = group["lr"]
            prepared = self.accelerator.prepare(network, optimizer)
            self.networks[name], self.optimizers[name] = prepared
        scales = self.accelerator.scaler is not None
        if scales and len(self.optimizers) > 1 and config.accumulation_steps > 1:
            # A step of one network would undo the scale of what another has added up.
            raise ConfigError(
                f"precision=fp16 with accumulation_steps={config.accumulation_steps} takes one "
                f"network, not {len(self.optimizers)}: use bf16, or a larger batch_size"
            )
        self.log: TrainingLog | None = None  # of the main process
        self.window = LogWindow()
        self.step = self.saved_step = self._resume()
        self.stop_requested = False
        self._asked_at, self._asked_step, self._ask_at_step = time.monotonic(), self.step, 0

    def run(self) -> int:
        """Train to the end.

        Returns:
            0, or 130 when SIGINT or SIGTERM stopped the run; a checkpoint is saved first.

        Raises:
            FolderInUseError: another run is writing into the output folder.
            NotFiniteError: a loss, a gradient or a weight is not finite. That is found when a line
                is logged or a checkpoint is due, and nothing of it is saved.
        """
        main = self.accelerator.is_main_process
        with files.locked(self.output, wanted=main), stop_signals_caught(self._request_stop):
            if main:
                self.log = TrainingLog(self.output, self.config, self.step, self.accelerator)
            finished = self._train()
            if finished and main:
                with self._ema_weights():
                    self.recipe.export(self.bare, self.output / "final")
            self.accelerator.wait_for_everyone()
            self.accelerator.end_training()
        if finished:
            return EXIT_DONE
        logger.warning("stopped at step %d; the same command goes on from here", self.step)
        return EXIT_INTERRUPTED

    def _train(self) -> bool:
        """Take all steps that are left; False where a signal stopped them."""
        config = self.config
        batches = iter(self._loader())
        with self._progress() as progress:
            while self.step < config.total_steps:
                batch = self._optimizer_step(batches)
                progress.update(self._images_per_step)
                if self.step % config.log_every_steps == 0 or self.step == config.total_steps:
                    self._log(progress)
                if self.step % config.preview_every_steps == 0 and self.log is not None:
                    self._preview(batch, self.log)
                stop = self._any_process_stops()
                if stop or self.step % config.save_every_steps == 0:
                    self._save()
                if stop:
                    return False
        self._save()
        return True

    def _optimizer_step(self, batches: Iterator[Item]) -> Item:
        """Take one step of every optimizer; returns the last batch."""
        self._set_learning_rates()
        with random_stream(self._step_generator(), self.accelerator.device):
            for _ in range(self.config.accumulation_steps):
                wait_start = time.perf_counter()
                batch = next(batches)
                self.window.waited += time.perf_counter() - wait_start
                self._micro_step(batch)
        for name, ema in self.emas.items():
            ema.step(self.bare[name].parameters())
        self.step += 1
        self.window.pictures += self._images_per_step
        return batch

    def _step_generator(self) -> torch.Generator:
        """What dropout and the like draw from in the coming step."""
        seed = stable_seed(self.config.seed, self.step, self.accelerator.process_index)
        return torch.Generator().manual_seed(seed)

    def _progress(self) -> Progress:
        return tqdm(
            total=self.config.total_steps * self._images_per_step,
            initial=self.step * self._images_per_step,
            unit="img",
            disable=not self.accelerator.is_main_process,
        )

    @property
    def _images_per_step(self) -> int:
        c = self.config
        return c.batch_size * c.accumulation_steps * int(self.accelerator.num_processes)

    def _loader(self) -> DataLoader[Item]:
        batches = ShuffledBatches(
            len(self.dataset),
            seed=self.config.seed,
            batch_size=self.config.batch_size,
            accumulation_steps=self.config.accumulation_steps,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            first_step=self.step,
            total_steps=self.config.total_steps,
        )
        workers = self.config.loader_workers
        return DataLoader(
            self.dataset,
            batch_sampler=batches,
            num_workers=workers,
            worker_init_fn=ignore_stop_signals,
            # From there a batch is copied while the device still works on the one before it.
            pin_memory=self.accelerator.device.type == "cuda",
            # Data sets seed themselves; without this the loader would draw from a global stream.
            generator=torch.Generator().manual_seed(self.config.seed),
        )

    def _micro_step(self, item: Item) -> None:
        """Make a loss of one batch, and gradients of it; nothing here waits for the device."""
        batch = {key: self._on_device(key, value) for key, value in item.items()}
        batch["step"] = self.step
        add = partial(self.window.add, step=self.step, pictures=item["name"])
        with self.accelerator.accumulate(*self.networks.values()):
            for name, loss, scalars in self.recipe.step(self.networks, batch):
                self.accelerator.backward(loss)
                add(f"{name}/loss", loss, what=f"the loss of '{name}'")
                if self.accelerator.sync_gradients:
                    parameters = self.networks[name].parameters()
                    norm = self.accelerator.clip_grad_norm_(parameters, self.config.max_grad_norm)
                    # A scaler skips steps with such gradients by itself.
                    scaled = self.accelerator.scaler is not None
                    what = None if scaled else f"the gradient of '{name}'"
                    add(f"{name}/grad_norm", norm, what=what)
                self.optimizers[name].step()
                self.optimizers[name].zero_grad()
                for key, value in scalars.items():
                    add(key, value)

    def _on_device(self, key: str, value: Any) -> Any:
        # Recipes read the seeds on the host.
        if not torch.is_tensor(value) or key == "seed":
            return value
        return value.to(self.accelerator.device, non_blocking=True)

    def _check_finite(self) -> None:
        """Wait for the device; raise NotFiniteError where a value or a weight is broken."""
        self.window.read()
        for name, network in self.bare.items():
            tensors = [t for t in network.state_dict().values() if t.is_floating_point()]
            if tensors and not torch.stack([t.isfinite().all() for t in tensors]).all():
                raise NotFiniteError(
                    f"the weights of '{name}' are not finite after step {self.step}, though its "
                    "loss and gradient were; a lower learning_rate may help"
                )

    def _set_learning_rates(self) -> None:
        factor = learning_rate_factor(self.config, self.step)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor

    # -- stopping, saving, resuming ------------------------------------------------------

    def _request_stop(self) -> None:
        self.stop_requested = True

    def _any_process_stops(self) -> bool:
        # Every process must leave the loop at the same step, or the others wait forever.
        if self.accelerator.num_processes == 1:
            return self.stop_requested
        if self.step < self._ask_at_step and self.step % self.config.save_every_steps:
            return False
        now = time.monotonic()
        seconds = (now - self._asked_at) / max(self.step - self._asked_step, 1)
        said = torch.tensor([self.stop_requested, seconds], device=self.accelerator.device)
        stops, seconds = self.accelerator.reduce(said, "sum").tolist()
        # They must agree, so the mean of their speeds decides.
        steps = _ASK_EVERY_SECONDS * self.accelerator.num_processes / max(seconds, 1e-6)
        self._asked_at, self._asked_step = now, self.step
        self._ask_at_step = self.step + min(max(int(steps), 1), _ASK_EVERY_STEPS)
        return bool(stops > 0)

    def _save(self) -> None:
        if self.step != self.saved_step:
            self._check_finite()
        self.accelerator.wait_for_everyone()
        if self.step == self.saved_step:
            return
        self.saved_step = self.step
        if not self.accelerator.is_main_process:
            return
        state = {
            "recipe": self.config.recipe,
            "config": to_dict(self.config),
            "step": self.step,
            "images_per_step": self._images_per_step,
            "showings": len(self.dataset),
            "optimizers": {name: o.state_dict() for name, o in self.optimizers.items()},
            "emas": {name: ema.state_dict() for name, ema in self.emas.items()},
            "window": self.window.state_dict(),
        }
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        save_checkpoint(self.output, self.bare, state, keep=self.config.keep_checkpoints)

    def _resume(self) -> int:
        state = load_newest_checkpoint(self.output, self.bare, recipe=self.config.recipe)
        if state is None:
            return 0
        try:
            self._load_state(state)
        except Dr2pipeError:
            raise
        # What a file says of moments and averages can be wrong in any way.
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CheckpointError(
                f"{self.output} has a checkpoint that does not fit this configuration "
                f"({type(error).__name__}: {error}); remove it or choose another output folder"
            ) from error
        return int(state["step"])

    def _load_state(self, state: dict[str, Any]) -> None:
        for name, optimizer in self.optimizers.items():
            load_optimizer(optimizer, state["optimizers"][name])
        for name, ema in self.emas.items():
            ema.load_state_dict(state["emas"][name] | {"decay": self.config.ema_decay})
            ema.to(self.accelerator.device)
        self.window.load_state_dict(state["window"])
        if self.accelerator.scaler is not None and "scaler" in state:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        warn_of_changes(self.config, self._images_per_step, state, showings=len(self.dataset))

    # -- logs and previews ---------------------------------------------------------------

    def _log(self, progress: Progress) -> None:
        means, speed = self.window.means(), self.window.speed()
        self.window = LogWindow()
        values = torch.tensor(list(means.values()), device=self.accelerator.device)
        values = self.accelerator.reduce(values, "mean").tolist()
        if self.log is None:
            return
        scalars = dict(zip(means, values, strict=True))
        self.log.add_scalars(self.step, scalars | speed)
        losses = {n: f"{v:.4f}" for n, v in scalars.items() if n.endswith("/loss")}
        progress.set_postfix({"step": self.step, **losses})

    def _preview(self, batch: Item, log: TrainingLog) -> None:
        self.window.read()  # before a picture is made of broken weights
        with self._ema_weights():
            picture = self.recipe.preview(self.bare, batch)
        log.add_picture(self.step, images.to_uint8(picture[None])[0])

    @contextmanager
    def _ema_weights(self) -> Iterator[None]:
        """Inside the block the networks have their averaged weights and are in evaluation mode."""
        for name, network in self.bare.items():
            network.eval()
            if name in self.emas:
                self.emas[name].store(network.parameters())
                self.emas[name].copy_to(network.parameters())
        yield
        for name, network in self.bare.items():
            network.train()
            if name in self.emas:
                self.emas[name].restore(network.parameters())
