"""A folder run: process every picture of a folder, resumable, on any number of processes.

What happens to a batch is an argument; restoring is one use.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from tqdm import tqdm

from dr2pipe.core import files, images
from dr2pipe.core.config import stable_seed
from dr2pipe.core.errors import ConfigError, is_out_of_memory
from dr2pipe.core.foreign import to_csv
from dr2pipe.core.processes import count_cores, process_state, stop_signals_caught
from dr2pipe.core.records import RunRecords, check_output
from dr2pipe.runs.batches import RunSummary
from dr2pipe.runs.jobs import Job, LoadedPicture, find_jobs, read_paired
from dr2pipe.runs.result_folders import is_result_folder
from dr2pipe.runs.results import Results
from dr2pipe.runs.steps import Batch, FailedPicture, Processed, Steps, takes_nothing
from dr2pipe.runs.writers import MOST_WAITING_BYTES, Writers, pixel_bytes

logger = logging.getLogger(__name__)
_MOST_LOADERS, _PHOTO_LOADERS = 16, 2  # whole photos may be large: few are read ahead


class FolderRun:
    """Take every picture of ``source`` through the steps and write the results into ``output``.

    Args:
        source: picture, or folder that is searched recursively.
        output: folder for the results and the records.
        steps: what is done with every picture.
        loader_threads: threads that read and decode; None for one for each core, at most 16, and for 2
            where pictures keep their size.
        writer_threads: threads that encode and write; None for two for each core, at most 32.
        run_description: the content of ``run.yaml``.

    Raises:
        ConfigError: no pictures, or an invalid setting.
    """

    def __init__(
        self,
        source: str | Path,
        output: str | Path,
        steps: Steps,
        *,
        loader_threads: int | None = None,
        writer_threads: int | None = None,
        run_description: dict[str, Any] | None = None,
    ):
        threads = [count for count in (loader_threads, writer_threads) if count is not None]
        if min(steps.batch_size, steps.max_pixels, *threads) < 1:
            raise ConfigError(
                "batch_size, loader_threads, writer_threads and max_pixels must be at least 1"
            )
        unknown = [name for name in steps.outputs if not is_result_folder(name)]
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: add new result folders to result_folders.py")
        self.steps, self.settings_hash = steps, steps.settings_hash
        options = steps.options
        options.check_format()
        self.jobs = find_jobs(source, output, steps.outputs, steps.paired.values(), options=options)
        self.source, self.output = Path(source), Path(output)
        usual = min(_MOST_LOADERS, count_cores()) if steps.size is not None else _PHOTO_LOADERS
        self.loader_threads = loader_threads or usual
        self.writer_threads = writer_threads
        self.run_description = run_description or {}
        self.records = RunRecords(output)
        self.results = Results(self.records, steps)
        self.summary = RunSummary()
        self.stop_requested = False
        self._summary_lock = threading.Lock()

    def run_with_table(
        self, name: str, lines_of: Callable[[list[dict[str, Any]]], list[list[Any]]]
    ) -> RunSummary:
        """As :meth:`run`; then write the table ``name`` of all that was made with these settings.

        Args:
            name: of a csv file in the output.
            lines_of: the table's lines, from the pictures' records in the order of their paths.

        Raises:
            ConfigError: a file of another program has this name.
        """
        if process_state().is_main_process:
            check_output(self.output, [name])
        summary = self.run()
        if process_state().is_main_process:
            finished, here = self.records.finished(), {job.relative for job in self.jobs}
            made = [
                record
                for path, record in sorted(finished.items())
                if path in here and record.get("settings") == self.settings_hash
            ]
            files.write_bytes(self.output / name, to_csv(lines_of(made)))
        return summary

    def run(self) -> RunSummary:
        """Process what is missing or changed; returns the counts over all processes."""
        state = process_state()
        # Single pictures of one folder may go into one output, one by one.
        source = self.source if self.source.is_dir() else self.source.parent
        try:
            if state.is_main_process:
                self.records.prepare(
                    self.run_description,
                    result_folders=self.steps.outputs,
                    source=source,
                    merge=self.steps.options.merge,
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
            most_pictures=2 * self.steps.batch_size,
            most_bytes=MOST_WAITING_BYTES if self.steps.size is None else None,
        )
        with (
            stop_signals_caught(self._request_stop),
            self.progress,
            ThreadPoolExecutor(self.loader_threads) as loaders,
            writers,
            closing(self._batches(self._load_ahead(jobs, loaders))) as batches,
        ):
            for done in self.steps.process_batches(self._until_stopped(batches)):
                if isinstance(done, FailedPicture):
                    self._fail(done.job, done.error)
                else:
                    size = pixel_bytes(done.loaded, done.pixels.values())
                    writers.submit(size, self._write, done)
            if self.stop_requested:
                self.summary.interrupted = True

    def _until_stopped(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """What a GPU has already is finished; nothing follows it."""
        for batch in batches:
            yield batch
            if self.stop_requested:
                return

    def _batches(self, pictures: Generator[LoadedPicture]) -> Generator[Batch]:
        """Batches; those of one size are put together while the networks have the one before."""
        with closing(pictures):
            batches = self.steps.in_batches(pictures)
            if self.steps.size is None:  # photos are large: no further ones wait in memory
                yield from ((batch, None) for batch in batches)
                return
            with ThreadPoolExecutor(1) as assembler:
                following = assembler.submit(self._next_batch, batches)
                while (found := following.result()) is not None:
                    following = assembler.submit(self._next_batch, batches)
                    yield found

    def _next_batch(self, batches: Iterator[list[LoadedPicture]]) -> Batch | None:
        """The next batch, put together unless memory ends; None after the last one."""
        batch = next(batches, None)
        if batch is None:
            return None
        try:
            return batch, self.steps.together(batch)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return batch, None  # smaller parts are tried

    def _load_ahead(self, jobs: list[Job], loaders: ThreadPoolExecutor) -> Generator[LoadedPicture]:
        waiting: deque[Future[LoadedPicture | None]] = deque()
        remaining = iter(jobs)
        # Pictures that keep their size may be large: few are read ahead.
        ahead = 2 * self.steps.batch_size + self.loader_threads
        if self.steps.size is None:
            ahead = 1 if self.steps.prepare is None else self.loader_threads
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

    # -- one picture ---------------------------------------------------------------------

    def _load(self, job: Job) -> LoadedPicture | None:
        """Decode a picture; None when it is done already or failed."""
        if self.stop_requested:
            return None
        try:
            data = images.read_file(job.path)
            sha256 = images.hash_bytes(data)
            paired = read_paired(self.steps.paired, job, sha256)
            hashes = {name: images.hash_bytes(found) for name, found in paired.items()}
            if self.results.is_done(job, sha256, hashes):
                self._count("skipped")
                return None
            return self.steps.load(job, data, sha256, paired)
        except Exception as error:  # recorded; the next picture goes on
            self._fail(job, error)
            return None

    def _write(self, done: Processed) -> None:
        job = done.loaded.job
        try:
            contents = self.steps.encode(done, lambda: images.read_file(job.path))
            self.results.write(job, contents, self.steps.record_of(done, contents))
        except Exception as error:  # such as a name too long: recorded; the next one goes on
            if takes_nothing(error):
                raise
            self._fail(job, error)
            return
        if done.record["warnings"]:
            with self._summary_lock:
                self.summary.warned += 1
        self._count("restored")

    def _fail(self, job: Job, error: Exception) -> None:
        logger.info("%s failed: %s", job.relative, error)
        self.records.add_failure(job.relative, error)
        self._count("failed")

    def _request_stop(self) -> None:
        self.stop_requested = True
        logger.warning("stopping after what is in work; the same command goes on later")

    def _count(self, what: str) -> None:
        with self._summary_lock:
            setattr(self.summary, what, getattr(self.summary, what) + 1)
            self.progress.update()


def _shard(job: Job, state: PartialState) -> int:
    """Number of the process that does a picture; its name decides, so that all agree."""
    processes: int = state.num_processes
    return stable_seed("shard", job.relative) % processes
