"""The table of enhancers in docs/models.md: what each costs, and what it needs.

python scripts/research/enhancer_table.py [--threads 2] [--repeats 3]

Builds every enhancer at its official size from its constructor, with random weights: its cost does not
depend on them. Each runs in a process of its own, so that its peak memory is its own. Prints a
Markdown table: parameters, sides of input and result, the median seconds for one face in float32
and bfloat16, peak memory, and the terms of the published weights.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch

from dr2pipe.core.official import BY_HAND, FILES
from dr2pipe.enhancers import build_enhancer

# title: (name of the enhancer, options, name of its official file)
ENHANCERS = {
    "SPARNet, 256 px (`enhancer256`)": (
        "sparnet",
        {
            "size": 256,
            "patch": 4,
            "channels": [64, 96, 128, 192],
            "residual_blocks": 4,
            "hourglass_depth": 2,
            "hourglass_channels": 16,
            "add_input": True,
        },
        None,
    ),
    "SPARNetHD": ("sparnet", {}, "sparnethd_v4_2d"),
    "VQFR v1": ("vqfr", {}, "vqfr1"),
    "GFP-GAN v1.4": ("gfpgan", {}, "gfpgan14"),
    "Panini-Net MFR": ("panini", {}, "panini_mfr"),
}


def measure(title: str, repeats: int) -> dict[str, object]:
    """Build one enhancer, run it, and say what that took."""
    name, options, _ = ENHANCERS[title]
    network = build_enhancer(name, **options)
    side = network.input_size or 512
    face = torch.rand(1, 3, side, side) * 2 - 1
    found: dict[str, object] = {
        "parameters": sum(p.numel() for p in network.parameters()),
        "sides": [side, network.output_size or side],
    }
    with torch.no_grad():
        for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            seconds = []
            for _ in range(repeats + 1):  # the first one warms up
                start = time.perf_counter()
                with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                    network(face)
                seconds.append(time.perf_counter() - start)
            found[precision] = statistics.median(seconds[1:])
            if precision == "fp32":
                found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return found


def main() -> None:
    """Measure every enhancer in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=ENHANCERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.only:
        print(json.dumps(measure(options.only, options.repeats)))
        return
    print(f"torch {torch.__version__}, {options.threads} threads, median of {options.repeats}\n")
    print("| enhancer | parameters | px | s fp32 | s bf16 | peak memory | weights |")
    print("|---|---|---|---|---|---|---|")
    for title, (_, _, file) in ENHANCERS.items():
        command = [sys.executable, __file__, "--only", title, "--threads", str(options.threads)]
        command += ["--repeats", str(options.repeats)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        official = {**FILES, **BY_HAND}.get(file or "")
        terms = official.terms if official else "come with dr2pipe, Apache-2.0"
        print(
            f"| {title} | {found['parameters'] / 1e6:.1f} M | "
            f"{found['sides'][0]} → {found['sides'][1]} | {found['fp32']:.2f} | "
            f"{found['bf16']:.2f} | {found['peak'] / 1e9:.1f} GB | {terms} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
