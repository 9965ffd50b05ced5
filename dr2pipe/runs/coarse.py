"""``dr2pipe make-coarse``: DR2 augmentation, coarse faces for training an enhancer."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from omegaconf import MISSING

from dr2pipe.core import files, images
from dr2pipe.core.config import stable_seed, to_dict, to_yaml
from dr2pipe.core.errors import ConfigError
from dr2pipe.core.markers import MARKER, marked
from dr2pipe.core.precision import resolve_precision
from dr2pipe.core.processes import process_state
from dr2pipe.core.records import check_output
from dr2pipe.data.coarse import CLEAN, PLAN
from dr2pipe.data.folders import write_pictures
from dr2pipe.degradations import check_degradation, degrade, describe_chain
from dr2pipe.diffusion.stage1 import DR2Config, Remover
from dr2pipe.restoration.restorer import EnhancerConfig, Restorer, build_restorer
from dr2pipe.runs.batches import BatchResult, ProcessBatch, RunSummary
from dr2pipe.runs.folder_run import FolderRun
from dr2pipe.runs.result_folders import RESTORED
from dr2pipe.runs.steps import Steps

_KIND = "coarse faces"  # in the marker


@dataclass
class CoarseConfig:
    """Settings of ``make_coarse``.

    Each variant has every face once, with settings of stage 1 drawn from the lists below.
    """

    input: str = MISSING  # folder of clean faces, or .npz with images and files
    output: str = MISSING
    sources: list[int] | None = None  # of an .npz
    seed: int = 0
    variants: int = 4
    dr2: DR2Config = field(default_factory=DR2Config)  # its tau, omega and factor are drawn
    factors: list[int] = field(default_factory=lambda: [2, 4])
    taus: list[int] = field(default_factory=lambda: [6, 10])
    omegas: list[int | None] = field(default_factory=lambda: [None])  # null: by the table of N
    degradations: dict[str, float] = field(default_factory=dict)  # chain: share of the pictures
    batch_size: int = 16
    # fp32 | bf16 | fp16 | auto: bf16 where the device multiplies it, else fp32
    precision: str = "fp32"


def make_coarse(config: CoarseConfig) -> list[RunSummary]:
    """Fill ``output/variant_00`` and on; pictures that are done already are kept.

    Raises:
        Dr2pipeError: an invalid setting, before anything is written.
    """
    _check(config)
    precision = resolve_precision(config.precision, process_state().device)
    config = dataclasses.replace(config, precision=precision)
    variants = [_build_variant(config, variant) for variant in range(config.variants)]
    source = Path(config.input)
    if source.suffix == ".npz":
        source = Path(config.output) / CLEAN
        if process_state().is_main_process:
            write_pictures(config.input, source, sources=config.sources)
        process_state().wait_for_everyone()
    if process_state().is_main_process:
        marker = marked({"kind": _KIND, "config": to_dict(config)}, [CLEAN])
        files.write_bytes(Path(config.output) / MARKER, to_yaml(marker).encode())
        plan = json.dumps({"variants": config.variants}).encode()
        files.write_bytes(Path(config.output) / PLAN, plan)
    summaries = []
    for variant, (restorer, settings) in enumerate(variants):
        run = FolderRun(
            source,
            Path(config.output) / _folder_of(variant),
            Steps(
                process=_degrade_and_remove(restorer, config.degradations),
                size=restorer.input_size,
                output_size=restorer.output_size,
                settings=settings,
                outputs=[RESTORED],
                seed=stable_seed(config.seed, "variant", variant),
                batch_size=config.batch_size,
                png_text={"settings": settings},
            ),
            run_description={"config": to_dict(config), "settings": settings},
        )
        summaries.append(run.run())
        if summaries[-1].interrupted:
            break
    return summaries


def _check(config: CoarseConfig) -> None:
    if config.variants < 1 or not (config.factors and config.taus and config.omegas):
        raise ConfigError("variants must be at least 1, and factors, taus, omegas not empty")
    if config.dr2.mode != "fixed":
        raise ConfigError("coarse faces are made with drawn settings, not dr2.mode=auto")
    if not config.dr2.enabled:
        raise ConfigError("coarse faces are made by stage 1, and dr2.enabled is false")
    if sum(config.degradations.values()) > 1:
        raise ConfigError("the shares of degradations sum to more than 1")
    for name in config.degradations:
        check_degradation(name)
    if config.sources is not None and Path(config.input).suffix != ".npz":
        raise ConfigError("sources selects inside an .npz file; for a folder set sources=null")
    if not Path(config.input).exists():
        raise ConfigError(f"no file or folder at {config.input}")
    variants = {_folder_of(variant) for variant in range(config.variants)}
    check_output(config.output, [MARKER, PLAN], kind=_KIND)
    other = [p.name for p in Path(config.output).glob("variant_*") if p.name not in variants]
    if other:
        raise ConfigError(
            f"{config.output} holds {', '.join(sorted(other))} of another configuration, which "
            f"training would use too; remove it or choose another output"
        )


def _folder_of(variant: int) -> str:
    return f"variant_{variant:02d}"


def _build_variant(config: CoarseConfig, variant: int) -> tuple[Restorer, dict[str, Any]]:
    """Stage 1 of a variant, and the settings that its run records."""
    drawn = draw_settings(config, variant)
    restorer, hashes = build_restorer(
        drawn,
        EnhancerConfig("none"),
        device=process_state().device,
        precision=config.precision,
    )
    omega = restorer.remover.omega if isinstance(restorer.remover, Remover) else None
    return restorer, {
        "dr2": dataclasses.asdict(drawn) | {"omega": omega},
        "degradations": config.degradations,
        "ranges": {name: describe_chain(name) for name in config.degradations},
        "seed": [config.seed, variant],
        "weights_sha256": hashes,
    } | ({} if config.precision == "fp32" else {"precision": config.precision})


def draw_settings(config: CoarseConfig, variant: int) -> DR2Config:
    """Settings of stage 1 for a variant: N, τ and ω drawn from the lists."""
    rng = np.random.default_rng(stable_seed(config.seed, "settings", variant))
    factor = config.factors[int(rng.integers(len(config.factors)))]
    tau = config.taus[int(rng.integers(len(config.taus)))]
    omega = config.omegas[int(rng.integers(len(config.omegas)))]
    return dataclasses.replace(config.dr2, factor=factor, tau=tau, omega=omega)


def _degrade_and_remove(restorer: Restorer, degradations: dict[str, float]) -> ProcessBatch:
    def process(pictures: torch.Tensor, seeds: list[int], _: list[images.Picture]) -> BatchResult:
        degraded: list[npt.NDArray[np.uint8]] = []
        notes: list[dict[str, Any]] = []
        for picture, seed in zip(images.to_uint8(pictures), seeds, strict=True):
            rng = np.random.default_rng(seed)
            chain = _draw_chain(degradations, rng)
            pixels, parameters = (picture, {}) if chain is None else degrade(picture, chain, rng)
            degraded.append(pixels)
            notes.append({"degraded_by": chain, **parameters})
        coarse = restorer(images.to_tensor(np.stack(degraded)), seeds).coarse
        return BatchResult([{RESTORED: p} for p in images.to_uint8(coarse)], notes)

    return process


def _draw_chain(shares: dict[str, float], rng: np.random.Generator) -> str | None:
    """A degradation by its share; None for the rest, which keeps the picture clean."""
    chance = rng.random()
    for name, share in shares.items():
        if chance < share:
            return name
        chance -= share
    return None
