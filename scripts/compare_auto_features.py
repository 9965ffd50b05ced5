"""Would dr2.mode=auto choose better by an encoder's vectors? Cross-validated on a sweep.

python scripts/compare_auto_features.py SWEEP ENCODER
"""

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from dr2pipe import images
from dr2pipe.auto_setting import fit_auto, read_sweep
from dr2pipe.cli import report_errors
from dr2pipe.config import load_config
from dr2pipe.embed_folder import embed, load_encoder
from dr2pipe.evaluation.evaluate import Study
from dr2pipe.evaluation.protocol import Protocol


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep", help="folder that scripts/sweep.py left, with_off=true")
    parser.add_argument("encoder", help="folder of a degradation encoder")
    options = parser.parse_args()
    table, encoder = read_sweep(options.sweep), load_encoder(options.encoder)
    vectors = degraded_vectors(Path(options.sweep), encoder)
    by_encoder = np.stack([vectors[row] for row in table.rows])
    for name, features in (
        ("formula", table.features),
        ("encoder", by_encoder),
        ("both", np.concatenate([table.features, by_encoder], axis=1)),
    ):
        _, means = fit_auto(dataclasses.replace(table, features=features))
        stated = ", ".join(f"{key} {value:.4f}" for key, value in means["auto"].items())
        print(f"{name:8} {features.shape[1]:4} features: {stated}")
    stated = ", ".join(f"{key} {value:.4f}" for key, value in means["fixed"].items())
    print(f"best fixed setting:     {stated}")
    return 0


def degraded_vectors(sweep: Path, encoder) -> dict[tuple[str, str], np.ndarray]:
    """By degradation and picture; the degraded pictures are made again as the sweep made them."""
    stored = OmegaConf.load(sweep / "run.yaml").config
    stored.methods = {"input": {}}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "protocol.yaml"
        OmegaConf.save(stored, path)
        study = Study(load_config(Protocol, path, []))
    found = {}
    for unit in study.units():
        pixels = images.to_uint8(study.degraded(unit))
        rows = study.rows_of(unit)
        found |= dict(zip(rows, embed(encoder, pixels), strict=True))
    return found


if __name__ == "__main__":
    sys.exit(report_errors(main))
