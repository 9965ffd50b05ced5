"""Take the disk away from every command that writes, give it back, and run the command again.

    python scripts/research/full_disk.py [--commands restore train ...] [--tries 4] [--seed 0]

The obstacles: no file may be larger than a limit (``ulimit -f``, as quotas work), a file system
that is full (tmpfs), one that is read-only from the start, and one that an error of the disk turns
read-only in the middle (ext4 in a file). All but the first need root and are left out without it.

A stopped command must end with an exit code other than 0 and 1, print no traceback, and name a
file; the same command must then give what an undisturbed run gives. Prints a line for each command
and obstacle: tries, runs that were stopped, their exit codes, tracebacks, messages that name no
file, and results that differ in the end. Exits with 1 if there is any fault.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from toy_commands import (
    Command,
    compare,
    content,
    load_everything,
    make_commands,
    make_sweep,
    run_child,
)

_PAGE = 4096
_IMAGE_BYTES = 1 << 26


@dataclass
class Tally:
    """What came of the tries with one obstacle."""

    tries: int = 0
    stopped: int = 0
    codes: Counter[int] = field(default_factory=Counter)
    tracebacks: int = 0
    unclear: int = 0
    different: int = 0

    @property
    def faults(self) -> int:
        return self.tracebacks + self.unclear + self.different + self.codes[1]


@dataclass
class Place:
    """An obstacle: where the command writes, and how the obstacle is put up and taken away."""

    folder: Path
    file_limit: int | None = None
    stop_after: float | None = None

    def obstruct(self) -> None:
        """In the child, before the command."""
        if self.file_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.file_limit, self.file_limit))

    def lift(self) -> None:
        """After the command was stopped."""


class FullDisk(Place):
    """A file system of a few pages."""

    def lift(self) -> None:
        _mount("-o", "remount,rw,size=1g", str(self.folder))


class ReadOnly(FullDisk):
    """A file system that takes nothing from the start."""


class FailingDisk(Place):
    """A file system that an error turns read-only while the command writes."""

    def lift(self) -> None:
        image = self.folder.with_suffix(".img")
        subprocess.run(["umount", self.folder], check=True)
        # 1: errors were corrected
        subprocess.run(
            ["e2fsck", "-fpy", image], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        _mount("-o", "loop,errors=remount-ro", str(image), str(self.folder))


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


@contextmanager
def limited(folder: Path, share: float, sizes: list[int], seconds: float) -> Iterator[Place]:
    """No file may have more than a share of the largest one."""
    yield Place(folder, file_limit=round(share * max(sizes)))
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def full(folder: Path, share: float, sizes: list[int], seconds: float) -> Iterator[Place]:
    """All files may have a share of what they need."""
    pages = sum(-(-size // _PAGE) for size in sizes)
    with _mounted(folder, "-t", "tmpfs", "-o", f"size={max(1, round(share * pages)) * _PAGE}"):
        yield FullDisk(folder)


@contextmanager
def read_only(folder: Path, share: float, sizes: list[int], seconds: float) -> Iterator[Place]:
    """Nothing can be written."""
    with _mounted(folder, "-t", "tmpfs", "-o", "ro"):
        yield ReadOnly(folder)


@contextmanager
def failing(folder: Path, share: float, sizes: list[int], seconds: float) -> Iterator[Place]:
    """After a share of its time, the command cannot write any more."""
    image = folder.with_suffix(".img")
    with image.open("wb") as file:
        file.truncate(_IMAGE_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", image], check=True)
    with _mounted(folder, "-o", "loop,errors=remount-ro", source=str(image)):
        yield FailingDisk(folder, stop_after=share * seconds)
    image.unlink()


@contextmanager
def _mounted(folder: Path, *options: str, source: str = "none") -> Iterator[None]:
    folder.mkdir()
    _mount(*options, source, str(folder))
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)
        folder.rmdir()


OBSTACLES = {"file size": limited, "full": full, "read-only": read_only, "turns read-only": failing}


def turn_read_only(folder: Path) -> None:
    """Let the kernel find an error in the file system at ``folder``."""
    device = subprocess.run(
        ["findmnt", "-no", "SOURCE", folder], check=True, capture_output=True, text=True
    ).stdout.strip()
    Path("/sys/fs/ext4", Path(device).name, "trigger_fs_error").write_text("x")


def disturb(command: Command, place: Place, expected: dict[str, object], tally: Tally) -> None:
    """Run a command against an obstacle, and again without."""
    out, said = place.folder / "out", place.folder.with_suffix(".txt")
    timer = None
    if place.stop_after is not None:
        timer = threading.Timer(place.stop_after, turn_read_only, [place.folder])
        timer.start()
    code = run_child(command.arguments(out), prepare=place.obstruct, output=said)
    if timer is not None:
        timer.join()
    text = said.read_text(errors="replace")
    tally.tries += 1
    if code != 0:
        text += "".join(path.read_text() for path in out.rglob("failures.jsonl"))
        tally.stopped += 1
        tally.codes[-1 if code is None else code] += 1
        tally.tracebacks += "Traceback" in text
        tally.unclear += not any(str(out) in line for line in text.splitlines())
        if "Traceback" in text or code == 1 or str(out) not in text:
            print(f"-- {command.name} ends with {code}:\n{text[-3000:]}", file=sys.stderr)
        place.lift()
        code = run_child(command.arguments(out), output=said)
    faults = compare(content(out), expected)
    if code != 0 or faults.total():
        print(
            f"-- {command.name} again: {code} {faults}\n{said.read_text()[-2000:]}", file=sys.stderr
        )
        tally.different += 1


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder's files, from a process of its own."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    server = http.server.HTTPServer(("127.0.0.1", 0), handler)
    child = os.fork()
    if child == 0:
        with open(os.devnull, "w") as sys.stderr:  # which gets a line for every request
            server.serve_forever()
    server.server_close()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--commands", nargs="+", help="these alone")
    parser.add_argument("--obstacles", nargs="+", choices=OBSTACLES, default=list(OBSTACLES))
    parser.add_argument("--tries", type=int, default=4, help="of each obstacle (4)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    load_everything()
    rng, faults = random.Random(options.seed), 0
    print(
        "command      obstacle         tries stopped  tracebacks unclear different  exit codes",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["DR2PIPE_HOME"] = str(folder / "home")  # remembers the hash of the download
        commands = make_commands(folder)
        with served(folder / "mirror") as os.environ["DR2PIPE_TOY_MIRROR"]:
            if "fit-auto" in (options.commands or ["fit-auto"]):
                make_sweep(folder, commands)
            for command in commands.values():
                if options.commands and command.name not in options.commands:
                    continue
                for line, found in test(command, folder, options, rng):
                    print(line, flush=True)
                    faults += found
    return int(faults > 0)


def test(
    command: Command, folder: Path, options: argparse.Namespace, rng: random.Random
) -> Iterator[tuple[str, int]]:
    """A line of the table and its number of faults, for each obstacle."""
    reference = folder / f"{command.name}_reference"
    run_child(command.arguments(folder / f"{command.name}_first"))  # fills caches
    start = time.monotonic()
    if run_child(command.arguments(reference)) != 0:
        raise SystemExit(f"{command.name} fails when nobody disturbs it")
    seconds, expected = time.monotonic() - start, content(reference)
    sizes = [path.stat().st_size for path in reference.rglob("*") if path.is_file()]
    for obstacle in options.obstacles:
        if obstacle != "file size" and os.geteuid() != 0:
            yield f"{command.name:12} {obstacle:16} left out: it needs root", 0
            continue
        tally = Tally()
        for number in range(1 if obstacle == "read-only" else options.tries):
            share = (number + rng.random()) / options.tries
            with OBSTACLES[obstacle](folder / "disk", share, sizes, seconds) as place:
                disturb(command, place, expected, tally)
        codes = " ".join(f"{code}:{count}" for code, count in sorted(tally.codes.items()))
        yield (
            f"{command.name:12} {obstacle:16} {tally.tries:5d} {tally.stopped:7d} "
            f"{tally.tracebacks:11d} {tally.unclear:7d} {tally.different:9d}  {codes}",
            tally.faults,
        )


if __name__ == "__main__":
    sys.exit(main())
