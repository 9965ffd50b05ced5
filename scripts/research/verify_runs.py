"""Make every result of a run again, by another batch size and another number of processes.

python scripts/research/verify_runs.py PICTURES WORK [--processes 2] [--batch-size 5] [--count 60]
    [--preset default] [--set key=value ...]

The first pictures of a folder are restored by ``torchrun`` with several processes. Then each result
is made again as ``dr2pipe verify`` does it: alone, in one process. Prints how many came out the
same, what differed in the others, and how long it took. Exits with 1 if one differs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from dr2pipe.cli import report_errors
from dr2pipe.cli.commands import quiet_libraries
from dr2pipe.core.models import find_file
from dr2pipe.runs.verify import verify

ROOT = Path(__file__).parents[2]


def restore(options: argparse.Namespace, pictures: Path, output: Path) -> None:
    """Restore a folder with several processes."""
    preset = find_file("configs/restore", options.preset, what="preset")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    subprocess.run(
        [
            *torchrun, f"--nproc_per_node={options.processes}", str(ROOT / "scripts/restore.py"),
            str(preset), f"input={pictures}", f"output={output}",
            f"batch_size={options.batch_size}", *options.set,
        ],
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def measure(options: argparse.Namespace) -> int:
    """Restore, make the results again, and print what came of it."""
    pictures, output = options.work / "in", options.work / "out"
    for folder in (pictures, output):
        shutil.rmtree(folder, ignore_errors=True)
    pictures.mkdir(parents=True)
    found = sorted(path for path in options.pictures.iterdir() if path.is_file())
    for path in found[: options.count]:
        shutil.copy(path, pictures)
    began = time.monotonic()
    restore(options, pictures, output)
    print(
        f"restored with {options.processes} processes and batches of {options.batch_size} in "
        f"{time.monotonic() - began:.0f} s"
    )
    quiet_libraries()
    began, same, copies = time.monotonic(), 0, 0
    results = sorted((output / "restored").iterdir())
    originals = {path.stem: path for path in pictures.iterdir()}
    for result in results:
        verdict = verify(result, originals[result.stem])
        same += verdict.is_same
        copies += any("nothing was restored" in reason for reason in verdict.reasons)
        if not verdict.is_same:
            print(f"{result.name}: {verdict}")
    print(
        f"{same} of {len(results)} results made again exactly, one at a time in one process, in "
        f"{time.monotonic() - began:.0f} s; {copies} of them are copies of the original"
    )
    return int(same < len(results) or not results)


def main() -> int:
    """Parse the arguments, then measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pictures", type=Path, help="folder")
    parser.add_argument("work", type=Path, help="folder for copies and results")
    parser.add_argument("--processes", type=int, default=2, help="of the run (2)")
    parser.add_argument("--batch-size", type=int, default=5, help="of the run (5)")
    parser.add_argument("--count", type=int, default=60, help="pictures (60)")
    parser.add_argument("--preset", default="default")
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value")
    options = parser.parse_args()
    return report_errors(lambda: measure(options))


if __name__ == "__main__":
    sys.exit(main())
