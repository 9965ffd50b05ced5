"""Kill every command at random moments, run it again, and compare with an undisturbed run.

python scripts/research/kill_runs.py --kills 200 [--commands restore train ...] [--seed 0]

Each command runs in a child of this process, which has loaded everything already, and is killed
by SIGKILL after a random time. The same command then goes on, and is killed again, until it ends;
its output must equal that of an undisturbed run. Then it starts anew in an empty folder. Prints,
for each command, the kills, the runs that were brought to an end, and what was lost (missing in
the end), doubled (recorded twice) or damaged (differs from the undisturbed run).
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dr2pipe import cli
from dr2pipe.core.config import resource

# Lines of records that differ from run to run.
_UNSTEADY = ("seconds", "time", "images_per_second", "data_wait_share")
# What is about the run, not its results.
_IGNORED = ("run.yaml", "config.yaml", "log.jsonl", "report.html", ".lock")
_IGNORED_FOLDERS = ("tensorboard", "checkpoints", "previews")


_LOADED_FIRST = (
    "dr2pipe.runs.restore",
    "dr2pipe.runs.inpaint",
    "dr2pipe.runs.degrade",
    "dr2pipe.evaluation.evaluate",
    "dr2pipe.training.recipes",
)


@dataclass
class Case:
    """A command and the arguments it gets for an output folder."""

    name: str
    arguments: Callable[[Path], list[str]]


def make_cases(folder: Path) -> list[Case]:
    """The commands, on small pictures written into ``folder``."""
    rng = np.random.default_rng(0)
    faces, masks = folder / "faces", folder / "masks"
    for i in range(8):
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        face = Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC)
        hole = np.zeros((64, 64), np.uint8)
        hole[20:40, 10 + i : 40] = 255
        for target, picture in ((faces, face), (masks, Image.fromarray(hole))):
            path = target / f"group_{i % 2}" / f"face_{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
    protocol = folder / "protocol.yaml"
    protocol.write_text(
        f"name: kills\nclean:\n  path: {faces}\nsize: 64\ndegraded_size: 64\n"
        "degradations: [mild, severe, speckle:3]\nmethods:\n  input: {}\n  bicubic:\n"
        "    enhancer:\n      name: bicubic\n      options: {size: 64}\n"
        "metrics: [psnr, ssim]\nbatch_size: 2\n"
    )
    recipe = str(resource("configs") / "train" / "ddpm_portrait64.yaml")
    train = [
        f"data.path={faces}", "data.sources=null", "total_steps=12", "batch_size=2",
        "save_every_steps=2", "preview_every_steps=100", "log_every_steps=4", "precision=no",
        "unet.channels=[32,32]", "unet.attention_sizes=[]", "schedule=constant",
    ]  # fmt: skip
    return [
        Case("restore", lambda out: ["restore", str(faces), str(out), "--set", "batch_size=2"]),
        Case(
            "inpaint",
            lambda out: [
                "inpaint", str(faces), str(masks), str(out),
                "--exemplar", str(faces / "group_0" / "face_0.png"),
            ],
        ),
        Case("degrade", lambda out: ["degrade", str(faces), str(out), "--with", "severe"]),
        Case("evaluate", lambda out: ["evaluate", str(protocol), f"output={out}"]),
        Case("train", lambda out: ["train", recipe, f"output={out}", *train]),
    ]  # fmt: skip


def run_child(arguments: list[str], *, kill_after: float | None) -> int | None:
    """Exit code of a command in a child process; None where it was killed."""
    child = os.fork()
    if child == 0:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
        code = 1
        try:
            code = cli.main(arguments)
        finally:
            os._exit(code)
    end = None if kill_after is None else time.monotonic() + kill_after
    while True:
        done, status = os.waitpid(child, 0 if end is None else os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if end is not None and time.monotonic() >= end:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            return None if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)
        time.sleep(0.001)


def content(folder: Path) -> dict[str, object]:
    """Every result below a folder: bytes of files, sorted records of JSONL files."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_dir() or path.name in _IGNORED or set(relative.parts) & {*_IGNORED_FOLDERS}:
            continue
        if path.suffix == ".jsonl":
            records = [json.loads(line) for line in path.read_text().splitlines()]
            steady = [{k: v for k, v in r.items() if k not in _UNSTEADY} for r in records]
            found[str(relative)] = sorted(json.dumps(r, sort_keys=True) for r in steady)
        else:
            found[str(relative)] = path.read_bytes()
    return found


def compare(result: dict[str, object], expected: dict[str, object]) -> Counter[str]:
    """What of ``expected`` is lost, doubled or damaged in ``result``."""
    faults: Counter[str] = Counter()
    faults["lost"] += len(expected.keys() - result.keys())
    faults["damaged"] += len(result.keys() - expected.keys())
    for name in expected.keys() & result.keys():
        if isinstance(expected[name], list):
            records, wanted = Counter(result[name]), Counter(expected[name])
            faults["doubled"] += sum(n > 1 for n in records.values())
            faults["lost"] += len(wanted - records)
            faults["damaged"] += len(records - wanted)
        elif result[name] != expected[name]:
            faults["damaged"] += 1
    return faults


def kill_case(case: Case, folder: Path, kills: int, rng: random.Random) -> tuple[Counter[str], str]:
    """Kill a command ``kills`` times; returns the faults and a line of the table."""
    reference, output = folder / f"{case.name}_reference", folder / f"{case.name}_killed"
    run_child(case.arguments(folder / f"{case.name}_first"), kill_after=None)  # fills caches
    start = time.monotonic()
    code = run_child(case.arguments(reference), kill_after=None)
    seconds = time.monotonic() - start
    if code != 0:
        raise SystemExit(f"{case.name} ends with {code} when nobody kills it")
    expected, faults = content(reference), Counter[str]()
    killed = ended = 0
    while killed < kills:
        code = run_child(case.arguments(output), kill_after=rng.uniform(0, 1.1 * seconds))
        if code is None:
            killed += 1
            if killed < kills:
                continue
            code = run_child(case.arguments(output), kill_after=None)
        ended += 1
        faults["failed"] += code != 0
        faults += compare(content(output), expected)
        shutil.rmtree(output)
    counts = " ".join(f"{faults[n]:8d}" for n in ("lost", "doubled", "damaged", "failed"))
    return faults, f"{case.name:10} {seconds:8.2f} {killed:6d} {ended:6d} {counts}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="of each command (200)")
    parser.add_argument("--commands", nargs="+", help="these alone")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # children of a process with running threads may hang
    for name in _LOADED_FIRST:
        importlib.import_module(name)
    rng, total = random.Random(options.seed), Counter[str]()
    print("command     seconds  kills  ended     lost  doubled  damaged   failed")
    with tempfile.TemporaryDirectory() as folder:
        for case in make_cases(Path(folder)):
            if options.commands and case.name not in options.commands:
                continue
            faults, line = kill_case(case, Path(folder), options.kills, rng)
            print(line, flush=True)
            total += faults
    return int(sum(total.values()) > 0)


if __name__ == "__main__":
    sys.exit(main())
