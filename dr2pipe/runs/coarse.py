"""``scripts/make_coarse.py``: DR2 augmentation, the coarse faces an enhancer is trained on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import MISSING

from dr2pipe.core import files, images
from dr2pipe.core.config import stable_seed, to_dict
from dr2pipe.core.errors import ConfigError
from dr2pipe.core.processes import process_state
from dr2pipe.data.coarse import PLAN
from dr2pipe.data.folders import write_pictures
from dr2pipe.degradations import check_degradation, degrade, describe_chain
from dr2pipe.restoration.restorer import DR2Config, EnhancerConfig, Restorer, build_restorer
from dr2pipe.runs.folder_run import BatchResult, FolderRun, RunSummary


@dataclass
class CoarseConfig:
    """Each variant shows every face once, with settings drawn from the sets below."""

    input: str = MISSING  # folder of clean faces, or .npz with images and files
    output: str = MISSING
    sources: list[int] | None = None  # of an .npz
    seed: int = 0
    variants: int = 4
    dr2: DR2Config = field(default_factory=DR2Config)  # tau, omega and factor are drawn
    factors: list[int] = field(default_factory=lambda: [2, 4])
    taus: list[int] = field(default_factory=lambda: [6, 10])
    omegas: list[int | None] = field(default_factory=lambda: [None])  # null: by the table of N
    degradations: dict[str, float] = field(default_factory=dict)  # chain: share of the pictures
    batch_size: int = 16
    precision: str = "fp32"


def make_coarse(config: CoarseConfig) -> list[RunSummary]:
    """Fill ``output/variant_00`` and on; what is there already is kept.

    Raises:
        ConfigError, ValueError: an invalid setting, before anything is written.
    """
    if config.variants < 1 or not (config.factors and config.taus and config.omegas):
        raise ConfigError("variants must be at least 1, and factors, taus, omegas not empty")
    if config.dr2.mode != "fixed":
        raise ConfigError("coarse faces are made with drawn settings, not dr2.mode=auto")
    if sum(config.degradations.values()) > 1:
        raise ConfigError("the shares of degradations sum to more than 1")
    for name in config.degradations:
        check_degradation(name)
    drawn = [draw_settings(config, variant) for variant in range(config.variants)]
    restorers = [
        build_restorer(
            settings,
            EnhancerConfig("none"),
            device=process_state().device,
            precision=config.precision,
        )
        for settings in drawn
    ]
    source = Path(config.input)
    if source.suffix == ".npz":
        source = Path(config.output) / "clean"
        if process_state().is_main_process:
            write_pictures(config.input, source, sources=config.sources)
        process_state().wait_for_everyone()
    elif config.sources is not None:
        raise ConfigError("sources selects inside an .npz file; for a folder set sources=null")
    kept = {f"variant_{variant:02d}" for variant in range(config.variants)}
    other = [p.name for p in Path(config.output).glob("variant_*") if p.name not in kept]
    if other:
        raise ConfigError(
            f"{config.output} holds {', '.join(sorted(other))} of another configuration, which "
            f"training would use too; remove it or choose another output"
        )
    if process_state().is_main_process:
        plan = json.dumps({"variants": config.variants}).encode()
        files.write_bytes(Path(config.output) / PLAN, plan)
    summaries = []
    for variant, (settings, (restorer, hashes)) in enumerate(zip(drawn, restorers, strict=True)):
        recorded: dict[str, Any] = {
            "dr2": dataclasses.asdict(settings) | {"omega": restorer.remover.omega},
            "degradations": config.degradations,
            "ranges": {name: describe_chain(name) for name in config.degradations},
            "seed": [config.seed, variant],
            "weights_sha256": hashes,
        }
        run = FolderRun(
            source,
            Path(config.output) / f"variant_{variant:02d}",
            process=_coarse_of(restorer, config.degradations),
            size=restorer.input_size,
            output_size=restorer.output_size,
            settings=recorded,
            outputs=["restored"],
            seed=stable_seed(config.seed, "variant", variant),
            batch_size=config.batch_size,
            run_description={"config": to_dict(config), "settings": recorded},
            png_text={"settings": recorded},
        )
        summaries.append(run.run())
        if summaries[-1].interrupted:
            break
    return summaries


def draw_settings(config: CoarseConfig, variant: int) -> DR2Config:
    """N, τ and ω of a variant."""
    rng = np.random.default_rng(stable_seed(config.seed, "settings", variant))
    factor, tau, omega = (
        values[int(rng.integers(len(values)))]
        for values in (config.factors, config.taus, config.omegas)
    )
    return dataclasses.replace(config.dr2, factor=factor, tau=tau, omega=omega)


def _coarse_of(
    restorer: Restorer, degradations: dict[str, float]
) -> Callable[[torch.Tensor, list[int]], BatchResult]:
    def process(pictures: torch.Tensor, seeds: list[int]) -> BatchResult:
        pixels, drawn = [], []
        for picture, seed in zip(images.to_uint8(pictures), seeds, strict=True):
            rng = np.random.default_rng(seed)
            name = _drawn_chain(degradations, rng)
            drawn.append({"degraded_by": name})
            pixels.append(degrade(picture, name, rng)[0] if name else picture)
        coarse = restorer(images.to_tensor(np.stack(pixels)), seeds).coarse
        made = [{"restored": p} for p in images.to_uint8(coarse)]
        return BatchResult(made, [[]] * len(made), drawn)

    return process


def _drawn_chain(shares: dict[str, float], rng: np.random.Generator) -> str | None:
    chance = rng.random()
    for name, share in shares.items():
        if chance < share:
            return name
        chance -= share
    return None
