"""Measure the mean absolute error inside holes: EXE-GAN against simple fillings.

Usage: ``python scripts/research/measure_inpainting.py exegan_64 FACES.npz``
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import cv2
import numpy as np
import torch

from dr2pipe.cli import report_errors
from dr2pipe.core import images
from dr2pipe.core.config import stable_seed
from dr2pipe.core.errors import Dr2pipeError
from dr2pipe.degradations.masks import MASKS, draw_mask
from dr2pipe.restoration.inpainter import Inpainter, InpainterConfig, load_inpainter

_RADIUS_PX = 3  # of OpenCV's methods


def measure_inpainting(
    inpainter: Inpainter, faces: np.ndarray, *, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Return the mean absolute error inside holes, in levels of 255, by kind of mask and method.

    Args:
        inpainter: the EXE-GAN.
        faces: (N,S,S,3) uint8 RGB, two or more; each has another one as its exemplar.
        seed: of the masks and of the fillings.

    Raises:
        Dr2pipeError: fewer than two faces.
    """
    if len(faces) < 2:
        raise Dr2pipeError("each face needs another one as its exemplar, and there is one")

    def exegan(exemplars: np.ndarray) -> Callable[[np.ndarray, np.ndarray, int], np.ndarray]:
        styles = inpainter.styles(images.to_tensor(exemplars))

        def fill(face: np.ndarray, hole: np.ndarray, i: int) -> np.ndarray:
            holes = torch.from_numpy(hole).float()[None, None]
            filled = inpainter(
                images.to_tensor(face), holes, styles[i : i + 1], [stable_seed(seed, i)]
            )
            return images.to_uint8(filled)[0]

        return fill

    methods = {
        "mean colour": _fill_with_mean,
        "cv2 Telea": _opencv(cv2.INPAINT_TELEA),
        "cv2 Navier-Stokes": _opencv(cv2.INPAINT_NS),
        "EXE-GAN, another face": exegan(np.roll(faces, -1, axis=0)),
        "EXE-GAN, the face itself": exegan(faces),
    }
    table = {}
    for kind in MASKS:
        errors: dict[str, list[float]] = {name: [] for name in methods}
        for i, face in enumerate(faces):
            hole = draw_mask(kind, len(face), np.random.default_rng(stable_seed(seed, kind, i)))
            given = np.where(hole[..., None], 0, face).astype(np.uint8)
            for name, fill in methods.items():
                filled = fill(given, hole, i)
                errors[name].append(np.abs(filled[hole].astype(float) - face[hole]).mean())
        table[kind] = {name: float(np.mean(values)) for name, values in errors.items()}
    return table


def as_markdown(table: dict[str, dict[str, float]]) -> str:
    """Return a table whose rows are kinds of masks, and their mean."""
    methods = list(next(iter(table.values())))
    mean = {name: float(np.mean([row[name] for row in table.values()])) for name in methods}
    lines = [f"| mask | {' | '.join(methods)} |", "|---" * (len(methods) + 1) + "|"]
    for kind, row in (table | {"mean": mean}).items():
        lines.append(f"| {kind} | {' | '.join(f'{row[name]:.1f}' for name in methods)} |")
    return "\n".join(lines)


def _fill_with_mean(face: np.ndarray, hole: np.ndarray, _: int) -> np.ndarray:
    filled = face.copy()
    filled[hole] = images.round_to_uint8(face[~hole].mean(axis=0))
    return filled


def _opencv(method: int) -> Callable[[np.ndarray, np.ndarray, int], np.ndarray]:
    def fill(face: np.ndarray, hole: np.ndarray, _: int) -> np.ndarray:
        # OpenCV does not fill the outermost pixels of a picture, so it gets a margin.
        margin = [(1, 1), (1, 1)]
        wide = np.pad(face, [*margin, (0, 0)], mode="edge")
        holes = np.pad(hole, margin, mode="edge").astype(np.uint8)
        return cv2.inpaint(wide, holes, _RADIUS_PX, method)[1:-1, 1:-1]

    return fill


def main() -> int:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder of an EXE-GAN, or a name in checkpoints/")
    parser.add_argument("faces", help=".npz with images (N,S,S,3) uint8 that no training saw")
    options = parser.parse_args()
    inpainter, _ = load_inpainter(InpainterConfig(options.model))
    with np.load(options.faces, allow_pickle=False) as archive:
        print(as_markdown(measure_inpainting(inpainter, archive["images"])))
    return 0


if __name__ == "__main__":
    sys.exit(report_errors(main))
