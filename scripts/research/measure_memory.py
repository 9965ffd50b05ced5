"""Whether the memory of a long folder run stays flat.

    python scripts/research/measure_memory.py --pictures 2000
    python scripts/research/measure_memory.py --set enhancer.name=none dr2.student=STUDENT noise=philox

Restores as many aligned faces, made by a rule, and prints the resident memory of the process while
tenths of them are done; then how much larger it was at most in the second half than in the first.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import threading
from pathlib import Path

import psutil

from dr2pipe.cli.benchmark import _made_picture
from dr2pipe.core import images
from dr2pipe.core.config import load_config, resource
from dr2pipe.runs.restore import RestoreConfig, restore_folder

_DIFFERENT = 20
_MB = 1 << 20


def write_faces(folder: Path, count: int, side: int) -> None:
    """``count`` PNG files; some tens of them are different."""
    for i in range(count):
        path = folder / f"{i:06}.png"
        if i < _DIFFERENT:
            images.write_png(path, _made_picture(i, side))
        else:
            shutil.copyfile(folder / f"{i % _DIFFERENT:06}.png", path)


class Watch(threading.Thread):
    """Notes the resident memory, in MB, by the number of results that lie in a folder."""

    def __init__(self, folder: Path, every: int):
        super().__init__(daemon=True)
        self.folder, self.every = folder, every
        self.ended = threading.Event()
        self.most: dict[int, float] = {}  # by tenths done

    def run(self) -> None:
        """Look several times a second."""
        process = psutil.Process()
        while not self.ended.wait(0.2):
            done = sum(1 for _ in self.folder.glob("*.png")) // self.every
            now = process.memory_info().rss / _MB
            self.most[done] = max(now, self.most.get(done, 0.0))


def main() -> None:
    """Read the arguments, restore and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--side", type=int, default=128, help="of the files, in pixels")
    parser.add_argument("--preset", default="default")
    parser.add_argument("--set", nargs="+", default=[])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder, "in"), Path(folder, "out")
        write_faces(source, options.pictures, options.side)
        settings = [f"input={source}", f"output={output}", "faces.mode=aligned", *options.set]
        preset = resource("configs") / "restore" / f"{options.preset}.yaml"
        watch = Watch(output / "restored", max(1, options.pictures // 10))
        watch.start()
        summary = restore_folder(load_config(RestoreConfig, preset, settings))
        watch.ended.set()
        watch.join()
    for done, most in sorted(watch.most.items()):
        print(f"{done * watch.every:6} done: {most:.1f} MB")
    halves = [
        max(most for done, most in watch.most.items() if (done >= 5) == second)
        for second in (False, True)
    ]
    print(
        f"{summary.restored} pictures; the second half's peak is {halves[1] / halves[0]:.3f} of the first's"
    )


if __name__ == "__main__":
    main()
