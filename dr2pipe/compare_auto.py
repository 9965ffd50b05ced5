"""Would ``dr2.mode=auto`` choose better by an encoder's vectors than by features of formula?"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from dr2pipe import images
from dr2pipe.auto_setting import fit_auto, read_sweep
from dr2pipe.config import load_config
from dr2pipe.embed_folder import embed, load_encoder
from dr2pipe.enhancers.degradation_encoder import DegradationEncoder
from dr2pipe.evaluation.evaluate import Study
from dr2pipe.evaluation.protocol import Protocol


def compare_features(sweep: str | Path, encoder: str) -> dict[str, dict[str, float]]:
    """Cross-validated means of psnr, ssim and network_calls by what is chosen by.

    ``formula``, ``encoder``, ``both``, and ``fixed``, the best fixed setting.

    Raises:
        ConfigError, ValueError: no finished sweep, or no degradation encoder.
    """
    table, network = read_sweep(sweep), load_encoder(encoder)
    vectors = degraded_vectors(Path(sweep), network)
    by_encoder = np.stack([vectors[row] for row in table.rows])
    found = {}
    for name, features in (
        ("formula", table.features),
        ("encoder", by_encoder),
        ("both", np.concatenate([table.features, by_encoder], axis=1)),
    ):
        _, means = fit_auto(dataclasses.replace(table, features=features))
        found[name] = means["auto"]
    return found | {"fixed": means["fixed"]}


def degraded_vectors(sweep: Path, encoder: DegradationEncoder) -> dict[tuple[str, str], np.ndarray]:
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
        found |= dict(zip(study.rows_of(unit), embed(encoder, pixels), strict=True))
    return found
