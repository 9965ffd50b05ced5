"""``dr2pipe benchmark``: how fast a preset is on this machine, and where the time goes."""

from __future__ import annotations

import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.flop_counter import FlopCounterMode

from dr2pipe.cli.benchmark_report import FORMAT, Row
from dr2pipe.core import images
from dr2pipe.core.config import stable_seed
from dr2pipe.core.errors import ConfigError, PictureError
from dr2pipe.core.precision import PRECISIONS
from dr2pipe.core.processes import count_cores, process_state
from dr2pipe.core.records import versions
from dr2pipe.restoration.precision import restoration_precision
from dr2pipe.restoration.restorer import Restorer, build_restorer
from dr2pipe.runs.aligned import begin_batch
from dr2pipe.runs.batches import BatchResult, BeginBatch
from dr2pipe.runs.folder_run import FolderRun
from dr2pipe.runs.restore import RestoreConfig
from dr2pipe.runs.result_folders import RESTORED
from dr2pipe.runs.steps import Steps

_BATCH = 16  # of a preset whose batch size is measured
PARTS = ("networks", "restorer", "machinery", "run")
_MATRIX_SIDE = {"cpu": 1024, "cuda": 8192}
_MATRIX_SECONDS = 3.0  # the last multiplication begins before


@dataclass
class Benchmark:
    """What is measured.

    Attributes:
        config: the preset with its overrides; its input and output are not used.
        precisions: of the networks; empty for the preset's own.
        batch_sizes: of the networks.
        parts: some of ``PARTS``.
        input: pictures that are taken; None for pictures made by a rule.
        pictures: how many go through the machinery and the whole run.
        size: side in pixels of the machinery's pictures.
        repeats: of the networks, whose median counts.
    """

    config: RestoreConfig
    precisions: Sequence[str] = ()
    batch_sizes: Sequence[int] = (1, 4)
    parts: Sequence[str] = PARTS
    input: str | None = None
    pictures: int = 32
    size: int = 512
    repeats: int = 3
    rows: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        if min(self.pictures, self.repeats, *self.batch_sizes) < 1:
            raise ConfigError("pictures, repeats and batch sizes must be at least 1")
        unknown = [part for part in self.parts if part not in PARTS]
        unknown += [name for name in self.precisions if name not in PRECISIONS]
        if unknown:
            raise ConfigError(
                f"{', '.join(unknown)}: the parts are {', '.join(PARTS)}, "
                f"the precisions {', '.join(PRECISIONS)}"
            )
        if self.size < images.MIN_SIDE_PX:
            raise ConfigError(f"size={self.size}: at least {images.MIN_SIDE_PX}")
        self.device = process_state().device
        # The same batches on every machine, so that numbers can be compared.
        self.batch = _BATCH if isinstance(self.config.batch_size, str) else self.config.batch_size
        own = restoration_precision(self.config.precision, self.config.enhancer.name, self.device)
        self.precisions = list(self.precisions) or [own]

    def run(self) -> dict[str, Any]:
        """Measure; returns a report that JSON can hold."""
        peaks = {}
        restored: dict[tuple[str, int], npt.NDArray[np.int_]] = {}
        if {"networks", "restorer", "run"} & set(self.parts):
            for precision in self.precisions:
                restorer = self._restorer(precision)
                peaks[precision] = self._matrix_peak(PRECISIONS[precision])
                if "networks" in self.parts:
                    self._networks(restorer, precision, peaks[precision])
                if "restorer" in self.parts:
                    self._whole(restorer, precision, restored)
                if "run" in self.parts:
                    self._folder_run(restorer, precision)
        if "machinery" in self.parts:
            self._machinery()
        return {
            "format": FORMAT,
            "versions": versions(),
            "machine": self._machine(),
            "matrix_multiply_gflop_s": peaks,
            "rows": self.rows,
            "difference_of_255": _differences(restored),
            "peak_memory_mb": round(_peak_memory_mb()),
        }

    # -- the parts -------------------------------------------------------------------------

    def _networks(self, restorer: Restorer, precision: str, peak: float) -> None:
        unet = None if restorer.remover is None else restorer.remover.unet
        for batch in self.batch_sizes:
            pictures = self._tensors(restorer.input_size, batch).to(restorer.device)
            # Together, even where a restoration takes one after another.
            calls = {"stage 2": partial(restorer.enhance_together, pictures)}
            if unet is not None:
                # As DR2 calls it; a compiled network takes a number for a constant.
                timestep = torch.full((), 500, device=restorer.device)
                calls["stage 1, a call"] = partial(unet, pictures.to(restorer.dtype), timestep)
            for what, call in calls.items():
                seconds = self._median_seconds(call)
                # The operations of compiled kernels are not counted.
                with (
                    torch.no_grad(),
                    torch.compiler.set_stance("force_eager"),
                    FlopCounterMode(display=False) as counter,
                ):
                    call()
                rate = counter.get_total_flops() / seconds / 1e9
                self._add(
                    what, precision, batch, batch / seconds, gflop_s=rate, of_peak=rate / peak
                )

    def _whole(
        self,
        restorer: Restorer,
        precision: str,
        restored: dict[tuple[str, int], npt.NDArray[np.int_]],
    ) -> None:
        for batch in self.batch_sizes:
            seconds, inside, result = self._restore_once(restorer, batch)
            restored[precision, batch] = images.to_uint8(result).astype(int)
            self._add(
                "both stages", precision, batch, batch / seconds, outside=1 - inside / seconds
            )

    def _restore_once(self, restorer: Restorer, batch: int) -> tuple[float, float, torch.Tensor]:
        """Seconds of a batch, those within the networks, and its results."""
        pictures = self._tensors(restorer.input_size, batch)
        seeds = [stable_seed(i) for i in range(batch)]
        if self.device.type != "cpu" or self.config.compile:
            restorer(pictures, seeds)  # kernels are chosen, or compiled, on the first call
        with _network_seconds(restorer) as inside:
            start = time.perf_counter()
            result = restorer(pictures, seeds).restored
            self._wait()
            seconds = time.perf_counter() - start
        return seconds, sum(inside), result

    def _machinery(self) -> None:
        def nothing(
            pictures: torch.Tensor, seeds: list[int], _: list[images.Picture]
        ) -> Callable[[], BatchResult]:
            return lambda: BatchResult(
                [{RESTORED: pixels} for pixels in images.to_uint8(pictures)], [{} for _ in seeds]
            )

        seconds, cpu_seconds = self._time_run(nothing, self.size, self.size)
        self._add(
            f"files at {self.size} px, no network",
            "",
            self.batch,
            self.pictures / seconds,
            per_core_s=self.pictures / cpu_seconds,
        )

    def _folder_run(self, restorer: Restorer, precision: str) -> None:
        def begin(
            pictures: torch.Tensor, seeds: list[int], decoded: list[images.Picture]
        ) -> Callable[[], BatchResult]:
            return begin_batch(restorer, pictures, seeds, [RESTORED], decoded=decoded)

        sides = restorer.input_size, restorer.output_size
        if self.device.type != "cpu":
            # Waiting for every call would hold up a run that prepares the next one meanwhile.
            _, batch_s, _ = self._restore_once(restorer, self.batch)
            seconds, cpu_seconds = self._time_run(begin, *sides)
            inside = [batch_s / self.batch * self.pictures]
        else:
            with _network_seconds(restorer) as inside:
                seconds, cpu_seconds = self._time_run(begin, *sides)
        self._add(
            "files to files",
            precision,
            self.batch,
            self.pictures / seconds,
            per_core_s=self.pictures / cpu_seconds,
            outside=1 - sum(inside) / seconds,
        )

    def _time_run(self, begin: BeginBatch, size: int, output_size: int) -> tuple[float, float]:
        """Seconds, and seconds of all cores, of a folder run over PNG files of ``size``."""
        on_gpu = self.device.type == "cuda"
        with tempfile.TemporaryDirectory() as folder:
            source, output = Path(folder, "in"), Path(folder, "out")
            for i, pixels in enumerate(self._pixels(size, self.pictures)):
                images.write_png(source / f"{i:05}.png", pixels)
            run = FolderRun(
                source,
                output,
                Steps(
                    process=lambda *batch: begin(*batch)(),
                    size=size,
                    output_size=output_size,
                    settings={},
                    outputs=[RESTORED],
                    seed=0,
                    batch_size=self.batch,
                    on_gpu=on_gpu,
                    options=self.config.run_options(),
                    begin=begin if on_gpu else None,
                ),
                loader_threads=self.config.loader_threads,
                writer_threads=self.config.writer_threads,
            )
            start, cpu_start = time.perf_counter(), time.process_time()
            summary = run.run()
            seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
            if summary.restored != self.pictures:
                raise ConfigError(f"only {summary.restored} of {self.pictures} pictures were done")
        return seconds, cpu_seconds

    # -- what they need --------------------------------------------------------------------

    def _restorer(self, precision: str) -> Restorer:
        config = self.config
        return build_restorer(
            config.dr2,
            config.enhancer,
            device=self.device,
            precision=precision,
            attention=config.attention,
            channels_last=config.channels_last,
            compile=config.compile,
            noise=config.noise,
        )[0]

    def _pixels(self, side: int, count: int) -> list[images.Pixels]:
        if self.input is None:
            return [_made_picture(i, side) for i in range(count)]
        path = Path(self.input)
        paths = images.find_images(path).paths if path.is_dir() else [path]
        if not paths:
            raise ConfigError(f"no pictures in {path}")
        read = [images.resize_pixels(_read(p), (side, side)) for p in paths[:count]]
        return [read[i % len(read)] for i in range(count)]

    def _tensors(self, side: int, count: int) -> torch.Tensor:
        return images.to_tensor(np.stack(self._pixels(side, count)))

    @torch.no_grad()
    def _median_seconds(self, call: Callable[[], object]) -> float:
        """The median of ``repeats`` calls, after one to warm up."""
        seconds = []
        for _ in range(self.repeats + 1):
            start = time.perf_counter()
            call()
            self._wait()
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds[1:])

    def _matrix_peak(self, dtype: torch.dtype) -> float:
        """GFLOP/s of a square matrix multiplication: the best of several, which is the limit."""
        side = _MATRIX_SIDE.get(self.device.type, 2048)
        matrix = torch.ones(side, side, dtype=dtype, device=self.device)
        best, began = float("inf"), time.perf_counter()
        for _ in range(3 + self.repeats):
            start = time.perf_counter()
            if start - began > _MATRIX_SECONDS:
                break
            torch.mm(matrix, matrix)
            self._wait()
            best = min(best, time.perf_counter() - start)
        return 2 * side**3 / best / 1e9

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def _machine(self) -> dict[str, Any]:
        is_cuda = self.device.type == "cuda"
        name = torch.cuda.get_device_name(self.device) if is_cuda else _processor_name()
        return {
            "device": f"{self.device}: {name}",
            "cores": count_cores(),
            "threads": torch.get_num_threads(),
            "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        }

    def _add(
        self, what: str, precision: str, batch: int, rate: float, **more: float | None
    ) -> None:
        numbers = {"pictures_per_s": rate, **more}
        rounded = {name: float(f"{number:.4g}") for name, number in numbers.items() if number}
        self.rows.append({"what": what, "precision": precision, "batch": batch, **rounded})


@contextmanager
def _network_seconds(restorer: Restorer) -> Iterator[list[float]]:
    """Collects the seconds that each call of a network takes meanwhile."""
    seconds: list[float] = []

    def now() -> float:
        if restorer.device.type != "cpu":
            torch.accelerator.synchronize(restorer.device)
        return time.perf_counter()

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def timed_call(*arguments: Any, **options: Any) -> Any:
            start = now()
            result = call(*arguments, **options)
            seconds.append(now() - start)
            return result

        return timed_call

    networks = [restorer.enhancer, *(restorer.remover.networks if restorer.remover else [])]
    compiled = [network._compiled_call_impl for network in networks]
    for network, call in zip(networks, compiled, strict=True):
        # Not hooks: they would be compiled with the network.
        network._compiled_call_impl = timed(network._call_impl if call is None else call)
    try:
        yield seconds
    finally:
        for network, call in zip(networks, compiled, strict=True):
            network._compiled_call_impl = call


def _read(path: Path) -> images.Pixels:
    try:
        return images.read_image(path).pixels
    except PictureError as error:
        raise PictureError(f"{path}: {error}") from None


def _made_picture(seed: int, side: int) -> images.Pixels:
    """(side,side,3): noise of all sizes, which compresses about as photos do."""
    rng = np.random.default_rng(seed)
    levels = np.full((side, side, 3), 128.0)
    for cells, spread in ((4, 40.0), (16, 20.0), (64, 8.0), (side, 3.0)):
        noise = rng.normal(0, spread, (min(cells, side), min(cells, side), 3))
        levels += cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)
    return images.round_to_uint8(levels)


def _differences(restored: dict[tuple[str, int], npt.NDArray[np.int_]]) -> dict[str, float]:
    """Mean absolute difference of each other precision from fp32, in levels of 255."""
    return {
        f"{precision}, batch {batch}": round(
            float(np.abs(pixels - restored["fp32", batch]).mean()), 3
        )
        for (precision, batch), pixels in restored.items()
        if precision != "fp32" and ("fp32", batch) in restored
    }


def _peak_memory_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _processor_name() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.is_file() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
