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
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from toy_commands import Command, compare, content, load_everything, make_commands, run_child

COMMANDS = ("restore", "photos", "inpaint", "degrade", "evaluate", "train", "video")


def kill_case(
    case: Command, folder: Path, kills: int, rng: random.Random
) -> tuple[Counter[str], str]:
    """Kill a command ``kills`` times; returns the faults and a line of the table."""
    reference, output = folder / f"{case.name}_reference", folder / f"{case.name}_killed"
    run_child(case.arguments(folder / f"{case.name}_first"))  # fills caches
    start = time.monotonic()
    code = run_child(case.arguments(reference))
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
            code = run_child(case.arguments(output))
        ended += 1
        found = content(output)
        faults["failed"] += code != 0
        faults += compare(found, expected)
        differing = [n for n in found.keys() | expected.keys() if found.get(n) != expected.get(n)]
        if differing:
            print(f"{case.name}: {', '.join(sorted(differing))} differ", file=sys.stderr)
        shutil.rmtree(output)
    counts = " ".join(f"{faults[n]:8d}" for n in ("lost", "doubled", "damaged", "failed"))
    return faults, f"{case.name:10} {seconds:8.2f} {killed:6d} {ended:6d} {counts}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="of each command (200)")
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=COMMANDS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    load_everything()
    rng, total = random.Random(options.seed), Counter[str]()
    print("command     seconds  kills  ended     lost  doubled  damaged   failed")
    with tempfile.TemporaryDirectory() as folder:
        commands = make_commands(Path(folder))
        for name in options.commands:
            faults, line = kill_case(commands[name], Path(folder), options.kills, rng)
            print(line, flush=True)
            total += faults
    return int(sum(total.values()) > 0)


if __name__ == "__main__":
    sys.exit(main())
