"""What restoring does to pictures that have no clean original: likeness, sharpness, and colour.

python scripts/research/measure_portraits.py INPUT RUN [--niqe FILE] [--sheet PNG]

INPUT is the folder of aligned faces and RUN what ``dr2pipe restore INPUT RUN --aligned`` left.
Prints, for each picture and in the mean:

* identity: the distance (dlib) of input and result, 0 for one picture, below 0.6 for one person;
* chroma of the input and of the result, in levels of 255: the distance of (Cb, Cr) (BT.601) from
  grey; by how much the result's largest exceeds the input's; and the mean chroma that is added in
  CIE Lab units;
* with the statistics of ``dr2pipe fit-niqe``, NIQE of the input and of the result.

The sheet has the inputs and below each its result.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from dr2pipe.cli import report_errors
from dr2pipe.core import images
from dr2pipe.core.errors import ConfigError
from dr2pipe.core.images import Pixels
from dr2pipe.core.records import MANIFEST, read_jsonl
from dr2pipe.core.sheets import contact_sheet
from dr2pipe.features.dlib_identity import load_identity
from dr2pipe.metrics.niqe import load_pristine, niqe

_SHEET_COLUMNS = 10


def chroma(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """(H,W) distance from grey of (H,W,3) RGB."""
    red, green, blue = np.moveaxis(pixels.astype(float), -1, 0)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    distance: npt.NDArray[np.float64] = np.hypot(0.564 * (blue - luma), 0.713 * (red - luma))
    return distance


def lab_chroma(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """(H,W) distance from grey of (H,W,3) sRGB, in CIE Lab units."""
    lab = cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    distance: npt.NDArray[np.float64] = np.hypot(lab[..., 1], lab[..., 2]).astype(float)
    return distance


def read_pairs(given: Path, run: Path) -> dict[str, tuple[Pixels, Pixels]]:
    """Input, at the result's size, and result of each finished picture."""
    pairs = {}
    latest = {record["path"]: record for record in read_jsonl(run / MANIFEST).records}
    for path, record in sorted(latest.items()):
        result = images.read_image(run / record["output"]).pixels
        before = images.read_image(given / path).pixels
        pairs[path] = images.resize_pixels(before, result.shape[:2]), result
    if not pairs:
        raise ConfigError(f"{run} holds no finished picture")
    return pairs


def sheet(pairs: list[tuple[Pixels, Pixels]]) -> Pixels:
    rows: list[list[Pixels]] = []
    for start in range(0, len(pairs), _SHEET_COLUMNS):
        part = pairs[start : start + _SHEET_COLUMNS]
        rows += [[before for before, _ in part], [after for _, after in part]]
    return contact_sheet(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("input", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--niqe", type=Path, help="statistics of dr2pipe fit-niqe")
    parser.add_argument("--sheet", type=Path, help="write inputs and results into one picture")
    options = parser.parse_args()
    pairs = read_pairs(options.input, options.run)
    embed = load_identity().embed_aligned
    befores, afters = zip(*pairs.values(), strict=True)
    columns = {
        "identity": np.linalg.norm(embed(befores) - embed(afters), axis=1),
        "chroma in": np.array([chroma(p).mean() for p in befores]),
        "chroma out": np.array([chroma(p).mean() for p in afters]),
        "largest +": np.array(
            [chroma(a).max() - chroma(b).max() for b, a in zip(befores, afters, strict=True)]
        ),
        "CIE +": np.array(
            [
                lab_chroma(a).mean() - lab_chroma(b).mean()
                for b, a in zip(befores, afters, strict=True)
            ]
        ),
    }
    if options.niqe:
        pristine = load_pristine(options.niqe)
        for name, pictures in (("NIQE in", befores), ("NIQE out", afters)):
            tensors = [images.to_tensor(picture) for picture in pictures]
            columns[name] = np.array([float(niqe(tensor, pristine)) for tensor in tensors])
    print(f"{'picture':20}" + "".join(f"{name:>12}" for name in columns))
    for row, path in enumerate(pairs):
        print(f"{path[:20]:20}" + "".join(f"{c[row]:12.2f}" for c in columns.values()))
    for word, of in (("mean", np.mean), ("largest", np.max)):
        print(
            f"{word + f' of {len(pairs)}':20}" + "".join(f"{of(c):12.2f}" for c in columns.values())
        )
    if options.sheet:
        images.write_png(options.sheet, sheet(list(pairs.values())))
    return 0


if __name__ == "__main__":
    sys.exit(report_errors(main))
