"""Would ``dr2.mode=auto`` choose better by an encoder's vectors than by features of formula?"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf

from dr2pipe import images
from dr2pipe.auto_setting import fit_auto, read_sweep
from dr2pipe.config import load_config
from dr2pipe.embed_folder import embed, load_encoder
from dr2pipe.evaluation.evaluate import Study
from dr2pipe.evaluation.protocol import Protocol


def compare_features(sweep: str | Path, encoder: str) -> dict[str, dict[str, float]]:
    """Cross-validated means of psnr, ssim and network_calls by what is chosen by.

    ``formula``, ``encoder``, ``both``, and ``fixed``, the best fixed setting.

    Raises:
        ConfigError, ValueError: no finished sweep, or no degradation encoder.
    """
    table, network = read_sweep(sweep), load_encoder(encoder)
    vectors = {}
    for rows, pictures in degraded_pictures(sweep):
        vectors |= dict(zip(rows, embed(network, pictures), strict=True))
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


def degraded_pictures(
    sweep: str | Path,
) -> Iterator[tuple[list[tuple[str, str]], torch.Tensor]]:
    """(degradation, picture) of each row, and (B,3,S,S) in [-1,1], made again as the sweep did.

    They have the size at which the first stage sees them, as those had whose features the sweep
    noted.
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
