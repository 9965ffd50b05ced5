"""Time a restore configuration on this machine: network calls, whole pictures, memory.

Usage: ``python scripts/research/benchmark.py CONFIG input=FILE [key=value ...]``
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from dr2pipe.cli import report_errors
from dr2pipe.cli.commands import quiet_libraries
from dr2pipe.core import images
from dr2pipe.core.config import load_config, stable_seed
from dr2pipe.core.errors import ConfigError
from dr2pipe.core.processes import process_state
from dr2pipe.restoration.restorer import Restorer, build_restorer
from dr2pipe.runs.restore import RestoreConfig

_REPEATS = 3


def benchmark(
    config: RestoreConfig, *, precisions: Sequence[str], batch_sizes: Sequence[int], full: bool
) -> str:
    """Return a table of seconds per network call; with ``full``, of whole restorations too.

    Pictures are those of ``config.input``, repeated where a batch needs more. Timings are
    medians of three after one call to warm up; memory is the peak of the whole process.
    """
    device = process_state().device
    lines = [f"device {device}, {torch.get_num_threads()} threads, torch {torch.__version__}"]
    lines.append(f"{'precision':9} {'batch':>5} {'network call s':>15} {'enhancer call s':>16}")
    whole: list[str] = []
    results: dict[tuple[str, int], npt.NDArray[np.int_]] = {}
    for precision in precisions:
        restorer, _ = build_restorer(
            config.dr2,
            config.enhancer,
            device=device,
            precision=precision,
            attention=config.attention,
            channels_last=config.channels_last,
            compile=config.compile,
        )
        # The peak of a process only grows: it is that of the precision that needs most.
        for size in batch_sizes:
            pictures = _pictures(config.input, restorer.input_size, size)
            unet_s, enhancer_s = _call_seconds(restorer, pictures)
            lines.append(f"{precision:9} {size:5} {unet_s:15.3f} {enhancer_s:16.3f}")
            if full:
                start = time.perf_counter()
                result = restorer(pictures, [stable_seed(i) for i in range(size)])
                seconds = time.perf_counter() - start
                results[precision, size] = images.to_uint8(result.restored).astype(int)
                rate = f"{size / seconds:9.3f} pictures/s, {seconds / size:8.2f} s each"
                whole.append(f"{precision:9} {size:5} {rate}")
    if full:
        lines += ["whole restorations", *whole, *_differences(results)]
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    lines.append(f"peak memory {peak_mb:.0f} MB")
    return "\n".join(lines)


def _pictures(source: str, side: int, count: int) -> torch.Tensor:
    path = Path(source)
    files = images.find_images(path).paths if path.is_dir() else [path]
    if not files:
        raise ConfigError(f"no pictures in {source}")
    loaded = [images.read_image(file).resized(side) for file in files[:count]]
    return torch.cat([loaded[i % len(loaded)] for i in range(count)])


def _call_seconds(restorer: Restorer, pictures: torch.Tensor) -> tuple[float, float]:
    x = pictures.to(restorer.device, restorer.dtype)
    unet_s = 0.0
    if restorer.remover is not None:
        unet_s = _median_seconds(lambda: restorer.remover.unet(x, 500), restorer.device)
    coarse = x.float()
    return unet_s, _median_seconds(lambda: restorer.enhance(coarse), restorer.device)


@torch.no_grad()
def _median_seconds(call: Callable[[], object], device: torch.device) -> float:
    seconds = []
    for _ in range(_REPEATS + 1):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def _differences(results: dict[tuple[str, int], npt.NDArray[np.int_]]) -> list[str]:
    """Compare each lower precision with fp32: mean absolute difference in 8-bit levels."""
    lines = []
    for (precision, size), pixels in results.items():
        if precision != "fp32" and ("fp32", size) in results:
            mean = abs(pixels - results["fp32", size]).mean()
            lines.append(
                f"{precision} differs from fp32 by {mean:.2f} of 255 on average (batch {size})"
            )
    return lines


def main() -> int:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="YAML file of configs/restore")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--full", action="store_true", help="whole restorations too")
    options = parser.parse_args()
    quiet_libraries()
    config = load_config(RestoreConfig, options.config, ["output=unused", *options.overrides])
    sizes, precisions = options.batch_sizes, options.precisions
    print(benchmark(config, precisions=precisions, batch_sizes=sizes, full=options.full))
    return 0


if __name__ == "__main__":
    sys.exit(report_errors(main))
