"""Colour that restoring adds to pictures, which should be none for black-and-white ones.

python scripts/research/measure_chroma.py INPUT RUN

INPUT is the folder of pictures and RUN what ``dr2pipe restore INPUT RUN`` left. Chroma is the
distance of (Cb, Cr) (BT.601) from grey, in levels of 255. Prints, for each picture and in the
mean, the mean chroma of the input (brought to the result's size) and of the result, and by how
much the result's largest exceeds the input's.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dr2pipe.cli import report_errors
from dr2pipe.core import images
from dr2pipe.core.errors import ConfigError
from dr2pipe.core.records import MANIFEST, read_jsonl


def chroma(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """(H,W) distance from grey of (H,W,3) RGB."""
    red, green, blue = np.moveaxis(pixels.astype(float), -1, 0)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    return np.hypot(0.564 * (blue - luma), 0.713 * (red - luma))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("input", type=Path)
    parser.add_argument("run", type=Path)
    options = parser.parse_args()
    rows = []
    print(f"{'picture':24} {'input':>7} {'result':>7} {'largest added':>14}")
    latest = {r["path"]: r for r in read_jsonl(options.run / MANIFEST).records}
    for path, record in sorted(latest.items()):
        result = images.read_image(options.run / record["output"]).pixels
        given = images.read_image(options.input / path).pixels
        given = images.resize_pixels(given, result.shape[:2])
        before, after = chroma(given), chroma(result)
        rows.append((before.mean(), after.mean(), after.max() - before.max()))
        print(f"{path[:24]:24} {rows[-1][0]:7.2f} {rows[-1][1]:7.2f} {rows[-1][2]:14.2f}")
    if not rows:
        raise ConfigError(f"{options.run} holds no finished picture")
    table = np.array(rows)
    added = (table[:, 1] - table[:, 0]).mean()
    print(f"mean of {len(rows)}: {added:+.2f} levels; largest added {table[:, 2].max():.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(report_errors(main))
