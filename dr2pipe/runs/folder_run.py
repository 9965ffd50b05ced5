"""A folder run: every picture of a folder through a network, resumable, on any number of
processes. Restoring is one use; what happens to a batch is an argument.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm

from dr2pipe.core import images
from dr2pipe.core.config import stable_hash, stable_seed
from dr2pipe.core.errors import ConfigError, PictureError
from dr2pipe.core.processes import process_state, stop_signals_caught
from dr2pipe.core.records import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_NONE_SUCCEEDED,
    EXIT_SOME_FAILED,
    RunRecords,
)
from dr2pipe.runs.jobs import Job, Partners, find_jobs, is_foreign

logger = logging.getLogger(__name__)


@dataclass
class Loaded:
    """A decoded picture on its way through the network: (1,3,S,S) and what to keep."""

    job: Job
    image: torch.Tensor
    picture: images.Picture
    warnings: list[str]
    partners: dict[str, torch.Tensor]  # what was prepared of each, by name
    partner_sha256: dict[str, str]


@dataclass
class BatchResult:
    """Per picture: pixels (H,W,3) uint8 by output subfolder, warnings, and what was drawn for it."""

    pixels: list[dict[str, np.ndarray]]
    warnings: list[list[str]]
    drawn: list[dict[str, Any]] | None = None


# (B,3,S,S) in [-1,1] and one seed per picture to their results; partners come as keyword
# arguments by their names, lists of what was prepared of each.
ProcessBatch = Callable[..., BatchResult]


@dataclass
class RunSummary:
    restored: int = 0
    skipped: int = 0
    failed: int = 0
    warned: int = 0  # restored, with a warning in the manifest
    interrupted: bool = False

    @property
    def exit_code(self) -> int:
        """0 all done, 3 some failed, 4 none succeeded, 130 interrupted."""
        if self.interrupted:
            return EXIT_INTERRUPTED
        if not self.failed:
            return EXIT_DONE
        return EXIT_SOME_FAILED if self.restored + self.skipped else EXIT_NONE_SUCCEEDED


class FolderRun:
    """Take every picture of ``source`` through ``process`` into ``output``.

    Args:
        size: side in pixels that ``process`` takes; None leaves every picture as it is, which
            asks for ``batch_size`` 1.
        output_size: side in pixels of its results (the alpha channel is brought to it), or None.
        settings: everything that decides a result besides the picture; its hash tells which
            finished pictures are still valid, and the pictures carry it as text.
        outputs: subfolders written for every picture, the main one first.
        run_description: the content of ``run.yaml``.
        partners: files that belong to each picture, by the name that ``process`` has for them.
    """

    def __init__(
        self,
        source: str | Path,
        output: str | Path,
        *,
        process: ProcessBatch,
        size: int | None,
        output_size: int | None,
        settings: dict[str, Any],
        outputs: Sequence[str],
        seed: int,
        batch_size: int,
        loader_threads: int = 2,
        max_pixels: int = images.MAX_PIXELS,
        run_description: dict[str, Any] | None = None,
        png_text: dict[str, Any] | None = None,
        partners: Mapping[str, Partners] | None = None,
    ):
        if batch_size < 1 or loader_threads < 1:
            raise ConfigError("batch_size and loader_threads must be at least 1")
        self.partners = dict(partners or {})
        self.jobs = find_jobs(source, output, outputs, self.partners.values())
        self.output = Path(output)
        self.process, self.size, self.output_size = process, size, output_size
        self.settings, self.settings_hash = settings, stable_hash(settings)
        self.outputs, self.seed = tuple(outputs), seed
        self.batch_size, self.loader_threads = batch_size, loader_threads
        self.max_pixels = max_pixels
        self.run_description, self.png_text = run_description or {}, png_text or {}
        self.records = RunRecords(output)
        self.summary = RunSummary()
        self.stop_requested = False
        self._summary_lock = threading.Lock()

    def run(self) -> RunSummary:
        """Do what is missing or changed; returns the counts over all processes."""
        state = process_state()
        try:
            if state.is_main_process:
                self.records.prepare(self.run_description)
            state.wait_for_everyone()
            self.finished = self.records.finished()
            self._owners: dict[str, set[str]] = {}
            for record in self.finished.values():
                self._owners.setdefault(record.get("output", ""), set()).add(record["path"])
            jobs = [self._renamed(job) for job in self.jobs]
            self._work(
                [job for job in jobs if _shard(job, state) == state.process_index],
                show_progress=state.is_main_process,
            )
            every = gather_object([dataclasses.astuple(self.summary)])
        finally:
            if state.is_main_process:
                self.records.close()
        counts = [sum(column) for column in zip(*every, strict=True)]
        return RunSummary(*counts[:4], interrupted=bool(counts[4]))

    # -- the loop ------------------------------------------------------------------------

    def _work(self, jobs: list[Job], *, show_progress: bool) -> None:
        self.progress = tqdm(total=len(jobs), unit="picture", disable=not show_progress)
        writing: deque[Future] = deque()
        with (
            stop_signals_caught(self._request_stop),
            self.progress,
            ThreadPoolExecutor(self.loader_threads) as loaders,
            ThreadPoolExecutor(1) as writer,
        ):
            for batch in self._batches(self._load_ahead(jobs, loaders)):
                for done in self._process(batch):
                    writing.append(writer.submit(self._write, *done))
                while len(writing) > 2 * self.batch_size:  # bounds what waits in memory
                    writing.popleft().result()
                if self.stop_requested:
                    self.summary.interrupted = True
                    break
            for future in writing:
                future.result()

    def _load_ahead(self, jobs: list[Job], loaders: ThreadPoolExecutor) -> Iterator[Loaded]:
        waiting: deque[Future] = deque()
        remaining = iter(jobs)
        # Pictures of their own size may be large: none waits but those that are being read.
        ahead = 1 if self.size is None else 2 * self.batch_size + self.loader_threads
        try:
            while True:
                while len(waiting) < ahead and (job := next(remaining, None)) is not None:
                    waiting.append(loaders.submit(self._load, job))
                if not waiting:
                    return
                loaded = waiting.popleft().result()
                if loaded is not None:
                    yield loaded
                elif self.stop_requested:  # a long row of skipped pictures ends too
                    self.summary.interrupted = True
                    return
        finally:
            for future in waiting:
                future.cancel()

    def _batches(self, pictures: Iterator[Loaded]) -> Iterator[list[Loaded]]:
        batch: list[Loaded] = []
        for loaded in pictures:
            batch.append(loaded)
            if len(batch) >= self.batch_size:
                yield batch
                batch = []
        if batch:
            yield batch

    def _process(
        self, batch: list[Loaded]
    ) -> Iterator[tuple[Loaded, dict[str, np.ndarray], dict[str, Any]]]:
        """Results of a batch; where it fails, smaller parts are tried, down to one picture."""
        size = len(batch)
        while batch:
            part = batch[:size]
            start = time.perf_counter()
            try:
                result = self.process(
                    torch.cat([loaded.image for loaded in part]),
                    [self._seed(loaded.job) for loaded in part],
                    **{name: [one.partners[name] for one in part] for name in self.partners},
                )
            # The run loop is the one place that carries on: it records the picture that failed.
            except Exception as error:
                if len(part) == 1:
                    self._fail(part[0].job, error)
                    batch = batch[1:]
                    continue
                size = len(part) // 2
                if is_out_of_memory(error):
                    self.batch_size = size
                    logger.warning("out of memory: going on with batches of %d", size)
                    if torch.cuda.is_available():
                        torch.cuda.empty_cache()
                continue
            seconds = round((time.perf_counter() - start) / len(part), 4)
            drawn = result.drawn or [{}] * len(part)
            for i, loaded in enumerate(part):
                warnings = loaded.warnings + result.warnings[i]
                record = {"seconds": seconds, "warnings": warnings}
                if drawn[i]:
                    record["drawn"] = drawn[i]
                yield loaded, result.pixels[i], record
            batch = batch[len(part) :]

    # -- one picture ---------------------------------------------------------------------

    def _renamed(self, job: Job) -> Job:
        """The job, with its long name where an earlier run gave the short one to another picture."""
        result = f"{self.outputs[0]}/{job.output_name}"
        owners = self._owners.get(result, set())
        if owners <= {job.relative} or self.finished.get(job.relative, {}).get("output") == result:
            return job
        return dataclasses.replace(job, output_name=f"{job.relative}.png")

    def _seed(self, job: Job) -> int:
        return stable_seed(self.seed, job.relative)

    def _load(self, job: Job) -> Loaded | None:
        """Decode a picture; None when it is done already or failed."""
        if self.stop_requested:
            return None
        try:
            data = images.read_file(job.path)
            of_partners = {name: self._read_partner(name, job) for name in self.partners}
            hashes = {name: images.hash_bytes(found) for name, found in of_partners.items()}
            if self._is_done(job, images.hash_bytes(data), hashes):
                self._count("skipped")
                return None
            picture = images.decode_image(data, max_pixels=self.max_pixels)
            prepared = self._prepare(of_partners, picture)
            if self.size is None:
                image = images.to_tensor(picture.pixels)
            else:
                image = picture.resized(self.size)
            if picture.alpha is not None and self.output_size is not None:
                side = (self.output_size, self.output_size)
                picture.alpha = images.resize_pixels(picture.alpha, side)
            warnings = picture.warnings
            # The full-size pixels are not needed any more, and many pictures wait.
            picture = dataclasses.replace(picture, pixels=np.empty((0, 0, 3), np.uint8))
            return Loaded(job, image, picture, warnings, prepared, hashes)
        except Exception as error:  # recorded; the next picture goes on
            self._fail(job, error)
            return None

    def _read_partner(self, name: str, job: Job) -> bytes:
        try:
            return images.read_file(self.partners[name].of(job))
        except PictureError as error:
            raise PictureError(f"its {name}: {error}") from None

    def _prepare(self, found: dict[str, bytes], picture: images.Picture) -> dict[str, torch.Tensor]:
        prepared = {}
        for name, data in found.items():
            try:
                partner = images.decode_image(data, max_pixels=self.max_pixels)
                prepared[name] = self.partners[name].prepare(partner, picture)
            except PictureError as error:
                raise PictureError(f"its {name}: {error}") from None
        return prepared

    def _is_done(self, job: Job, sha256: str, partner_sha256: dict[str, str]) -> bool:
        record = self.finished.get(job.relative)
        return (
            record is not None
            and record.get("sha256") == sha256
            and record.get("partners", {}) == partner_sha256
            and record.get("settings") == self.settings_hash
            and record.get("output") == f"{self.outputs[0]}/{job.output_name}"
            and all((self.output / name / job.output_name).is_file() for name in self.outputs)
        )

    def _write(self, loaded: Loaded, pixels: dict[str, np.ndarray], record: dict[str, Any]) -> None:
        job, picture = loaded.job, loaded.picture
        text = {"dr2pipe": json.dumps(self.png_text | {"seed": self._seed(job)})}
        try:
            self._check_foreign(job)
            for position, name in enumerate(self.outputs):
                is_result = position == 0
                images.write_png(
                    self.output / name / job.output_name,
                    pixels[name],
                    alpha=picture.alpha if is_result else None,
                    icc_profile=picture.icc_profile,
                    exif=picture.exif if is_result else None,
                    text=text,
                    partial_folder=self.records.partial_folder,
                )
            self.records.add_finished(
                {
                    "path": job.relative,
                    "sha256": picture.sha256,
                    "settings": self.settings_hash,
                    "output": f"{self.outputs[0]}/{job.output_name}",
                    "seed": self._seed(job),
                    **({"partners": loaded.partner_sha256} if self.partners else {}),
                    **record,
                }
            )
        except Exception as error:  # a full disk, a name too long: recorded, the run goes on
            self._fail(job, error)
            return
        if record["warnings"]:
            with self._summary_lock:
                self.summary.warned += 1
        self._count("restored")

    def _check_foreign(self, job: Job) -> None:
        for name in self.outputs:
            path = self.output / name / job.output_name
            if is_foreign(path):
                raise FileExistsError(f"{path} is there, and no run wrote it; it was left alone")

    def _fail(self, job: Job, error: Exception) -> None:
        logger.info("%s failed: %s", job.relative, error)
        self.records.add_failure(job.relative, error)
        self._count("failed")

    def _request_stop(self) -> None:
        self.stop_requested = True
        logger.warning("stopping after the batch in flight; the same command goes on later")

    def _count(self, what: str) -> None:
        with self._summary_lock:
            setattr(self.summary, what, getattr(self.summary, what) + 1)
            self.progress.update()


def _shard(job: Job, state: PartialState) -> int:
    """The process that does a picture: by its name, so that every process agrees."""
    return stable_seed("shard", job.relative) % state.num_processes


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    said = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in said)
