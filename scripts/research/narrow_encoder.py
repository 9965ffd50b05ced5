"""Keep what an encoder's projected vectors tell about degradations, and drop the rest.

Linear discriminant analysis (Fisher, "The use of multiple measurements in taxonomic problems",
1936; Rao 1948 for many classes), without labels of faces or of kinds of damage. On a grid of faces and
degradations, vectors of different faces with the same degradation should be equal. The directions
in which degradations differ most, measured by how much such vectors differ, are kept. They become
the last layer of the projection, so the result is an encoder like any other.

Usage: ``python scripts/research/narrow_encoder.py MODEL OUTPUT CONFIG [data.path=FACES.npz] [...]``,
with the config that trained MODEL, and faces of its training.
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from dr2pipe.cli import report_errors
from dr2pipe.core import files
from dr2pipe.core.config import load_config
from dr2pipe.core.errors import ConfigError
from dr2pipe.enhancers.degradation_encoder import DegradationEncoder
from dr2pipe.runs.embed import embed, load_encoder
from dr2pipe.training.recipes import degradation_grid
from dr2pipe.training.recipes.degradation_grid import DegradationGridConfig

_FLOOR = 1e-3  # added to the scatter of faces, relative to its mean: unused directions have none
Array = npt.NDArray[np.float64]


def discriminant(vectors: Array, width: int) -> tuple[Array, Array]:
    """The directions that tell most about columns, in units of the scatter of rows.

    Args:
        vectors: (N,F,K,C), of N grids of F rows (faces) and K columns (degradations).
        width: number of directions.

    Returns:
        ``directions`` (C,width), most telling first, and the mean (C,).

    Raises:
        ConfigError: more directions than vectors have.
    """
    _, rows, _, channels = vectors.shape
    if not 1 <= width <= channels:
        raise ConfigError(f"width={width} must lie in 1..{channels}")
    mean = vectors.mean(axis=(0, 1, 2))
    of_column = vectors.mean(axis=1, keepdims=True)
    within = _scatter(vectors - of_column) * rows / (rows - 1)
    # The mean of a column still holds a part of the scatter of its rows.
    between = _scatter(of_column - mean) - within / rows
    floor = _FLOOR * np.trace(within) / channels * np.eye(channels)
    # Symmetric, since it is of two symmetric matrices: whiten by one, then turn to the other.
    values, axes = np.linalg.eigh(within + floor)
    whiten = axes / np.sqrt(values)
    _, turned = np.linalg.eigh(whiten.T @ between @ whiten)
    return whiten @ turned[:, ::-1][:, :width], mean


def narrowed(encoder: DegradationEncoder, directions: Array, mean: Array) -> DegradationEncoder:
    """An encoder whose projected vectors are ``(v - mean) @ directions`` of ``encoder``'s v.

    Args:
        encoder: stays as it is.
        directions: (C,width).
        mean: (C,).
    """
    network = DegradationEncoder(
        encoder.config.width, encoder.config.max_size, projection_width=directions.shape[1]
    )
    state = copy.deepcopy(encoder.state_dict())
    turn = torch.from_numpy(directions.T)
    weight, bias = (state[f"projection.1.{leaf}"].double() for leaf in ("weight", "bias"))
    state["projection.1.weight"] = (turn @ weight).float()
    state["projection.1.bias"] = (turn @ (bias - torch.from_numpy(mean))).float()
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


def vectors_of(encoder: DegradationEncoder, config: DegradationGridConfig, grids: int) -> Array:
    """Projected vectors (grids,F,K,C) of training faces."""
    data = degradation_grid(config)
    order = np.random.default_rng(config.seed).permutation(len(data))
    vectors = []
    for grid in range(grids):
        positions = range(grid * config.batch_size, (grid + 1) * config.batch_size)
        rows = [data[int(order[p % len(data)]), p]["row"] for p in positions]
        vectors.append(np.stack([embed(encoder, row) for row in rows]))
    return np.stack(vectors).astype(np.float64)


def _scatter(vectors: Array) -> Array:
    """The mean product (C,C) of centred (...,C)."""
    flat = vectors.reshape(-1, vectors.shape[-1])
    scatter: Array = flat.T @ flat / len(flat)
    return scatter


def main() -> int:
    """Parse the command line and write the narrowed encoder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder of the encoder")
    parser.add_argument("output", help="folder for the narrowed one")
    parser.add_argument("config", help="of the recipe degradation_grid")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="other settings")
    parser.add_argument("--width", type=int, default=20, help="of the projected vector (20)")
    parser.add_argument("--grids", type=int, default=30, help="grids of faces to measure (30)")
    options = parser.parse_args()
    encoder = load_encoder(options.model)
    # Whole faces: vectors of parts differ more, as they are means over fewer pixels.
    given = ["output=.", "batch_size=16", *options.overrides, "crop=null"]
    config = load_config(DegradationGridConfig, options.config, given)
    directions, mean = discriminant(vectors_of(encoder, config, options.grids), options.width)
    network = narrowed(encoder, directions, mean)
    files.write_folder(Path(options.output), network.save_pretrained)
    return 0


if __name__ == "__main__":
    sys.exit(report_errors(main))
