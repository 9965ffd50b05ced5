"""How long the web page takes, and what it does with visitors at once: numbers of docs/measurements.md.

Usage: ``python scripts/research/measure_web.py [--visitors 4] [--requests 20]``. It starts ``dr2pipe web``,
opens it in five new Chromium browsers, then sends photos with one face of a million pixels through the page's own
interface. Every answer is compared with what the command line writes for the same photo. It needs what
``scripts/web_pictures.py`` needs.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from gradio_client import Client, handle_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo import PORTRAITS, damage_photo, fade
from web_pictures import Window

from dr2pipe.cli import report_errors
from dr2pipe.core import images
from dr2pipe.web.wishes import usual_sharpness

_SIZE = (1000, 1000)
# The controls as they are at first, up to the seed.
_WISH = ("default", "auto", 14, usual_sharpness("default") or 0, True, 1)


def make_photo(path: Path, number: int) -> None:
    """A print of one face on paper of a million pixels; another one for every number."""
    portrait = list(PORTRAITS.values())[number % len(PORTRAITS)]
    left, top, right, bottom = portrait.frame
    paper = np.full((*_SIZE, 3), 150, np.uint8)
    pixels = portrait.load()[top:bottom, left:right]
    height = 500 + 10 * number
    pixels = images.resize_pixels(pixels, (height, round(height * pixels.shape[1] / len(pixels))))
    paper[200 : 200 + height, 250 : 250 + pixels.shape[1]] = pixels
    damaged = damage_photo(fade(paper), 12, np.random.default_rng(number))
    images.write_png(path, damaged)


def resident_mb(process: int) -> float:
    """Memory of a process in MB."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def cpu_seconds(process: int) -> float:
    """What a process has used of all cores, whatever else the machine does."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Visitor:
    """A session with the page.

    Args:
        url: of the page.
        folder: for downloads.
    """

    def __init__(self, url: str, folder: Path):
        self.client = Client(url, verbose=False, download_files=folder)

    def find(self, photo: Path) -> None:
        """Upload a photo."""
        self.client.predict([handle_file(photo)], "default", api_name="/find")

    def restore(self, photo: Path, seed: int) -> tuple[float, bytes, str]:
        """Upload and restore; the seconds, the bytes of the result and the status."""
        began = time.monotonic()
        self.find(photo)
        answer = self.client.predict(photo.name, *_WISH, seed, 1, api_name="/restore")
        seconds = time.monotonic() - began
        return seconds, Path(answer[2]["value"]).read_bytes(), answer[4]


def expected(photo: Path, seed: int, folder: Path) -> bytes:
    """What the command line writes."""
    command = [
        sys.executable,
        "-m",
        "dr2pipe",
        "restore",
        str(photo),
        str(folder),
        "--set",
        f"seed={seed}",
    ]
    subprocess.run(command, check=True, capture_output=True)
    return (folder / "restored" / photo.name).read_bytes()


def first_paint(url: str) -> None:
    """Print when a browser with an empty cache shows something, and when it shows text."""
    script = "return performance.getEntriesByType('paint').map(e => [e.name, e.startTime])"
    times: dict[str, list[float]] = {}
    for _ in range(5):
        window = Window(url, 1280, is_dark=False)
        for name, milliseconds in window.run(script):
            times.setdefault(name, []).append(milliseconds / 1000)
        window.driver.quit()
    for name, seconds in times.items():
        print(f"{name} of five new browsers, seconds:", " ".join(f"{s:.2f}" for s in seconds))


def measure(url: str, process: int, folder: Path, visitors: int, requests: int) -> None:
    """Print the table."""
    photos = [folder / f"photo{number}.png" for number in range(visitors)]
    for number, photo in enumerate(photos):
        make_photo(photo, number)
    # Two seeds for each visitor: a result that were another's, or an earlier one, would be seen.
    known = {
        (photo, seed): expected(photo, seed, folder / f"out_{photo.stem}_{seed}")
        for photo in photos
        for seed in (0, 1)
    }
    sessions = [Visitor(url, folder / f"down{number}") for number in range(visitors)]
    sessions[0].restore(photos[0], 0)
    used = cpu_seconds(process)
    alone = [sessions[0].restore(photos[0], 0)[0] for _ in range(5)]
    used = (cpu_seconds(process) - used) / len(alone)
    began = time.monotonic()
    sessions[0].find(photos[0])
    uploaded = time.monotonic() - began
    print("one visitor, one face, 1,000 x 1,000 pixels, from upload to result:")
    print("  seconds:", " ".join(f"{seconds:.2f}" for seconds in alone))
    print(f"  CPU seconds of the server for each: {used:.2f}")
    print(f"  to upload and to find the face: {uploaded:.2f}")

    def visit(number: int) -> list[tuple[float, bool]]:
        found = []
        for turn in range(requests // visitors):
            seed = turn % 2
            seconds, data, status = sessions[number].restore(photos[number], seed)
            is_own = data == known[photos[number], seed] and status.startswith("Faces restored: 1")
            found.append((seconds, is_own))
        return found

    for round_number in range(1, 4):
        began = time.monotonic()
        with ThreadPoolExecutor(visitors) as pool:
            answers = [answer for one in pool.map(visit, range(visitors)) for answer in one]
        took = time.monotonic() - began
        own = sum(is_own for _, is_own in answers)
        slowest = max(seconds for seconds, _ in answers)
        print(
            f"round {round_number}: {len(answers)} requests of {visitors} visitors at once, all answered, "
            f"{own} equal to the command line; {took:.1f} s, the slowest {slowest:.1f} s; "
            f"memory of the server {resident_mb(process):.0f} MB"
        )


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--visitors", type=int, default=4)
    parser.add_argument("--requests", type=int, default=20, help="of all visitors together")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, "-m", "dr2pipe", "web", "--port", "0"]
        print("$", shlex.join(["dr2pipe", *command[3:]]))
        server = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            assert server.stdout is not None
            url = server.stdout.readline().partition("the page is at ")[2].split()[0]
            first_paint(url)
            measure(url, server.pid, folder, options.visitors, options.requests)
        finally:
            server.terminate()
            server.wait(60)
    return 0


if __name__ == "__main__":
    sys.exit(report_errors(_main))
