"""Compare what ``dr2.mode=auto`` may choose by: computed features, an encoder's vectors, or both.

Usage: ``python scripts/research/compare_auto_features.py SWEEP ENCODER``
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf

from dr2pipe.cli import report_errors
from dr2pipe.core import images
from dr2pipe.core.config import load_config
from dr2pipe.diffusion.auto import STRUCTURE
from dr2pipe.evaluation.fit_auto import fit_auto
from dr2pipe.evaluation.protocol import Protocol
from dr2pipe.evaluation.study import Study
from dr2pipe.evaluation.sweep_table import read_sweep
from dr2pipe.runs.embed import embed, load_encoder


def compare_features(sweep: str | Path, encoder: str) -> dict[str, dict[str, float]]:
    """Return cross-validated means of psnr, ssim and network_calls for each choice of features.

    The keys are ``formula``, ``encoder``, ``both``, and ``fixed`` for the best fixed setting.

    Raises:
        ConfigError: no finished sweep, or no degradation encoder.
    """
    table, network = read_sweep(sweep), load_encoder(encoder)
    vectors = {}
    for rows, pictures in degraded_pictures(sweep):
        vectors |= dict(zip(rows, embed(network, pictures), strict=True))
    by_encoder = np.stack([vectors[row] for row in table.rows])
    of_encoder = list(range(by_encoder.shape[1]))
    after = table.features.shape[1]
    found = {}
    for name, features, columns in (
        ("formula", table.features, STRUCTURE),
        ("encoder", by_encoder, of_encoder),
        (
            "both",
            np.concatenate([table.features, by_encoder], axis=1),
            [*STRUCTURE, *(after + i for i in of_encoder)],
        ),
    ):
        _, means = fit_auto(dataclasses.replace(table, features=features), columns)
        found[name] = means["auto"]
    return found | {"fixed": means["fixed"]}


def degraded_pictures(
    sweep: str | Path,
) -> Iterator[tuple[list[tuple[str, str]], torch.Tensor]]:
    """Make the degraded pictures of a sweep again.

    Yields:
        (degradation, picture) of each row, and (B,3,S,S) in [-1,1] at the size at which the
        first stage sees them. The features of the sweep were computed at this size.
    """
    stored = OmegaConf.load(Path(sweep) / "run.yaml").config
    first_stages = [method.dr2 for method in stored.methods.values() if method.dr2 is not None]
    stored.methods = {"coarse": {"dr2": first_stages[0]}}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "protocol.yaml"
        OmegaConf.save(stored, path)
        study = Study(load_config(Protocol, path, []))
    side = study.methods.first_stage_size
    for unit in study.units():
        yield study.rows_of(unit), images.resize_tensor(study.degraded(unit), side)


def main() -> int:
    """Parse the command line and print a line per choice of features."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep", help="folder that scripts/sweep.py left, with_off=true")
    parser.add_argument("encoder", help="folder of a degradation encoder")
    options = parser.parse_args()
    for name, means in compare_features(options.sweep, options.encoder).items():
        text = ", ".join(f"{key} {value:.4f}" for key, value in means.items())
        print(f"{name:8} {text}")
    return 0


if __name__ == "__main__":
    sys.exit(report_errors(main))
