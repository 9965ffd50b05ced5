"""A folder run: process every picture of a folder, resumable, on any number of processes.

What happens to a batch is an argument; restoring is one use.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import reduce
from tqdm import tqdm

from dr2pipe.core import images
from dr2pipe.core.config import stable_hash, stable_seed
from dr2pipe.core.errors import ConfigError, is_out_of_memory
from dr2pipe.core.processes import process_state, stop_signals_caught
from dr2pipe.core.records import RunRecords
from dr2pipe.restoration.photos import PreparedPhoto
from dr2pipe.runs.batches import ProcessBatch, Result, RunSummary
from dr2pipe.runs.jobs import (
    Job,
    LoadedPicture,
    PairedFiles,
    find_jobs,
    prepare_paired,
    read_paired,
)
from dr2pipe.runs.options import RunOptions
from dr2pipe.runs.result_folders import is_result_folder
from dr2pipe.runs.results import Results
from dr2pipe.runs.writers import MOST_WAITING_BYTES, Writers, pixel_bytes

logger = logging.getLogger(__name__)

# Errors after which no further result could be written either.
_DISK_TAKES_NOTHING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class FolderRun:
    """Run ``process`` on every picture of ``source`` and write the results into ``output``.

    Args:
        source: picture, or folder that is searched recursively.
        output: folder for the results and the records.
        process: computes the results of a batch.
        size: side in pixels that ``process`` takes; None leaves every picture as it is, which
            needs ``batch_size`` 1, or ``prepare``.
        output_size: side in pixels of its results, to which an alpha channel is resized; None
            leaves the alpha channel as it is.
        settings: everything that decides a result besides the picture. Pictures that were done
            with other settings are done again.
        outputs: result folders written for every picture, the main one first.
        seed: each picture's seed is derived from this one and its relative path.
        batch_size: pictures per call of ``process``.
        loader_threads: threads that read and decode.
        writer_threads: threads that encode and write; None for two for each core.
        max_pixels: larger pictures are failures.
        keep_tint: show the process the luma of monochrome pictures, see ``Picture.tint``.
        keep_own: keep the pictures in their own colour space, see ``Picture.own``.
        prepare: makes of a photo of any shape, and its relative path, what ``process`` takes a
            list of; called in the loaders' threads. The photo's pixels are its own to keep.
        lacks: whether a finished picture's record lacks what this run wants, and has to be done
            again.
        options: how files are read and compared.
        run_description: the content of ``run.yaml``.
        png_text: written into every result, besides its seed.
        paired: files that belong to each picture, by the name that ``process`` has for them.

    Raises:
        ConfigError: no pictures, or an invalid setting.
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
        writer_threads: int | None = None,
        max_pixels: int = images.MAX_PIXELS,
        keep_tint: bool = False,
        keep_own: bool = False,
        prepare: Callable[[images.Picture, str], PreparedPhoto] | None = None,
        lacks: Callable[[dict[str, Any]], bool] | None = None,
        options: RunOptions | None = None,
        run_description: dict[str, Any] | None = None,
        png_text: dict[str, Any] | None = None,
        paired: Mapping[str, PairedFiles] | None = None,
    ):
        least = min(batch_size, loader_threads, max_pixels)
        if least < 1 or (writer_threads is not None and writer_threads < 1):
            raise ConfigError(
                "batch_size, loader_threads, writer_threads and max_pixels must be at least 1"
            )
        unknown = [name for name in outputs if not is_result_folder(name)]
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: add new result folders to result_folders.py")
        self.paired = dict(paired or {})
        self.options = options or RunOptions()
        self.options.check_format()
        self.jobs = find_jobs(source, output, outputs, self.paired.values(), options=self.options)
        self.source, self.output = Path(source), Path(output)
        self.keep_tint, self.keep_own, self.prepare = keep_tint, keep_own, prepare
        self.process, self.size, self.output_size = process, size, output_size
        self.settings, self.settings_hash = settings, stable_hash(settings)
        self.outputs, self.seed = tuple(outputs), seed
        self.batch_size, self.max_pixels = batch_size, max_pixels
        self.loader_threads, self.writer_threads = loader_threads, writer_threads
        self.run_description, self.png_text = run_description or {}, png_text or {}
        self.records = RunRecords(output)
        self.results = Results(
            self.records, self.outputs, self.settings_hash, self.options, lacks=lacks
        )
        self.summary = RunSummary()
        self.stop_requested = False
        self._summary_lock = threading.Lock()

    def run(self) -> RunSummary:
        """Process what is missing or changed; returns the counts over all processes."""
        state = process_state()
        # Single pictures of one folder may go into one output, one by one.
        source = self.source if self.source.is_dir() else self.source.parent
        try:
            if state.is_main_process:
                self.records.prepare(
                    self.run_description,
                    result_folders=self.outputs,
                    source=source,
                    merge=self.options.merge,
                )
            state.wait_for_everyone()
            self.results.read(source)
            jobs = [
                dataclasses.replace(job, output_name=self.results.name_of(job)) for job in self.jobs
            ]
            self._work(
                [job for job in jobs if _shard(job, state) == state.process_index],
                show_progress=state.is_main_process,
            )
            counts = torch.tensor(dataclasses.astuple(self.summary), device=state.device)
            counts = reduce(counts, reduction="sum")
        finally:
            if state.is_main_process:
                self.records.close()
        restored, skipped, failed, warned, interrupted = (int(count) for count in counts)
        return RunSummary(restored, skipped, failed, warned, interrupted > 0)

    # -- the loop ------------------------------------------------------------------------

    def _work(self, jobs: list[Job], *, show_progress: bool) -> None:
        self.progress = tqdm(total=len(jobs), unit="picture", disable=not show_progress)
        # What waits in memory is bounded: whole photos may be large.
        writers = Writers(
            self.writer_threads,
            most_pictures=2 * self.batch_size,
            most_bytes=MOST_WAITING_BYTES if self.size is None else None,
        )
        with (
            stop_signals_caught(self._request_stop),
            self.progress,
            ThreadPoolExecutor(self.loader_threads) as loaders,
            writers,
        ):
            for batch in self._batches(self._load_ahead(jobs, loaders)):
                for done in self._process(batch):
                    writers.submit(pixel_bytes(done[0], done[1].values()), self._write, *done)
                if self.stop_requested:
                    self.summary.interrupted = True
                    break

    def _load_ahead(self, jobs: list[Job], loaders: ThreadPoolExecutor) -> Iterator[LoadedPicture]:
        waiting: deque[Future[LoadedPicture | None]] = deque()
        remaining = iter(jobs)
        # Pictures that keep their size may be large: few are read ahead.
        ahead = 2 * self.batch_size + self.loader_threads
        if self.size is None:
            ahead = 1 if self.prepare is None else self.loader_threads
        try:
            while True:
                while len(waiting) < ahead and (job := next(remaining, None)) is not None:
                    waiting.append(loaders.submit(self._load, job))
                if not waiting:
                    return
                loaded = waiting.popleft().result()
                if loaded is not None:
                    yield loaded
                elif self.stop_requested:  # also amid many pictures that are skipped
                    self.summary.interrupted = True
                    return
        finally:
            for future in waiting:
                future.cancel()

    def _batches(self, pictures: Iterator[LoadedPicture]) -> Iterator[list[LoadedPicture]]:
        batch: list[LoadedPicture] = []
        filled = 0.0
        for loaded in pictures:
            batch.append(loaded)
            filled += loaded.share_of_batch(self.batch_size)
            if filled >= 1 - 1e-9:
                yield batch
                batch, filled = [], 0.0
        if batch:
            yield batch

    def _process(
        self, batch: list[LoadedPicture]
    ) -> Iterator[
        tuple[LoadedPicture, Mapping[str, Result | None], dict[str, Any], frozenset[str]]
    ]:
        """Results of a batch; where it fails, smaller parts are tried, down to one picture."""
        size = len(batch)
        while batch:
            part = batch[:size]
            start = time.perf_counter()
            try:
                result = self.process(
                    _together([loaded.ready for loaded in part]),
                    [self._seed(loaded.job) for loaded in part],
                    [loaded.picture for loaded in part],
                    **{name: [loaded.paired[name] for loaded in part] for name in self.paired},
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
            for i, loaded in enumerate(part):
                warnings = loaded.picture.warnings + (result.warnings[i] if result.warnings else [])
                record = {"seconds": seconds, "warnings": warnings}
                if result.notes[i]:
                    record["notes"] = result.notes[i]
                if result.records is not None:
                    record |= result.records[i]
                yield loaded, result.pixels[i], record, result.in_own_space
            batch = batch[len(part) :]

    # -- one picture ---------------------------------------------------------------------

    def _seed(self, job: Job) -> int:
        return stable_seed(self.seed, job.relative)

    def _load(self, job: Job) -> LoadedPicture | None:
        """Decode a picture; None when it is done already or failed."""
        if self.stop_requested:
            return None
        try:
            data = images.read_file(job.path)
            sha256 = images.hash_bytes(data)
            paired = read_paired(self.paired, job, sha256)
            hashes = {name: images.hash_bytes(found) for name, found in paired.items()}
            if self.results.is_done(job, sha256, hashes):
                self._count("skipped")
                return None
            picture = images.decode_image(
                data,
                max_pixels=self.max_pixels,
                page=job.page,
                keep_own=self.keep_own,
                whole_photo=self.prepare is not None,
                sha256=sha256,
            )
            if self.keep_tint:
                picture.set_tint_aside()
            prepared = prepare_paired(self.paired, paired, picture, self.max_pixels)
            if self.prepare is not None:
                ready: torch.Tensor | PreparedPhoto = self.prepare(picture, job.relative)
            else:
                ready = self._resized(picture)
            # The full-size pixels are not needed any more, and many pictures wait in memory.
            picture = dataclasses.replace(picture, pixels=np.empty((0, 0, 3), np.uint8))
            return LoadedPicture(job, ready, picture, prepared, hashes)
        except Exception as error:  # recorded; the next picture goes on
            self._fail(job, error)
            return None

    def _resized(self, picture: images.Picture) -> torch.Tensor:
        """(1,3,S,S) in [-1,1]; the alpha channel becomes as large as the result."""
        height, width = picture.pixels.shape[:2]
        if picture.alpha is not None and self.output_size is not None:
            side = (self.output_size, self.output_size)
            picture.alpha = images.resize_pixels(images.reduced(picture.alpha), side)
        if self.output_size is not None and min(height, width) > self.output_size:
            picture.warnings.append(
                f"{width}x{height} reduced: the result has {self.output_size} pixels a side"
            )
        return images.to_tensor(picture.pixels) if self.size is None else picture.resized(self.size)

    def _write(
        self,
        loaded: LoadedPicture,
        pixels: Mapping[str, Result | None],
        record: dict[str, Any],
        in_own_space: frozenset[str],
    ) -> None:
        job, seed = loaded.job, self._seed(loaded.job)
        try:
            self.results.write(
                loaded,
                pixels,
                {"seed": seed, **record},
                text=self.png_text | {"seed": seed},
                in_own_space=in_own_space,
            )
        except Exception as error:  # such as a name too long: recorded; the next one goes on
            if isinstance(error, OSError) and error.errno in _DISK_TAKES_NOTHING:
                raise
            self._fail(job, error)
            return
        if record["warnings"]:
            with self._summary_lock:
                self.summary.warned += 1
        self._count("restored")

    def _fail(self, job: Job, error: Exception) -> None:
        logger.info("%s failed: %s", job.relative, error)
        self.records.add_failure(job.relative, error)
        self._count("failed")

    def _request_stop(self) -> None:
        self.stop_requested = True
        logger.warning("stopping after the current batch; the same command goes on later")

    def _count(self, what: str) -> None:
        with self._summary_lock:
            setattr(self.summary, what, getattr(self.summary, what) + 1)
            self.progress.update()


def _together(
    ready: list[torch.Tensor | PreparedPhoto],
) -> torch.Tensor | list[torch.Tensor | PreparedPhoto]:
    """A batch as a process takes it: pictures of one size stacked, photos in a list."""
    tensors = [one for one in ready if isinstance(one, torch.Tensor)]
    return torch.cat(tensors) if tensors else ready


def _shard(job: Job, state: PartialState) -> int:
    """Number of the process that does a picture; its name decides, so that all agree."""
    processes: int = state.num_processes
    return stable_seed("shard", job.relative) % processes
