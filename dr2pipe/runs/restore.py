"""``dr2pipe restore``: a configuration, a folder run, both stages."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import MISSING

import dr2pipe
from dr2pipe.core import images
from dr2pipe.core.config import to_dict
from dr2pipe.core.errors import ConfigError
from dr2pipe.core.processes import process_state
from dr2pipe.core.records import versions
from dr2pipe.core.sheets import side_by_side
from dr2pipe.diffusion.stage1 import DR2Config, describe_dr2, plain_config
from dr2pipe.restoration.inpainter import (
    Inpainter,
    InpainterConfig,
    cover,
    load_inpainter,
    read_hole,
)
from dr2pipe.restoration.restorer import EnhancerConfig, Restorer, build_restorer, describe_enhancer
from dr2pipe.restoration.samples import COMBINE, sample_restorer
from dr2pipe.runs.folder_run import BatchResult, FolderRun, RunSummary
from dr2pipe.runs.jobs import Partners

_LEVELS_PER_UNIT = 127.5
# A spread map is this many times brighter than the standard deviation in levels of 255.
SPREAD_BRIGHTNESS = 4
_NO_SPREAD = (
    "the automatic setting left stage 1 out, whose noise samples differ by: the spread is unknown, "
    "and the black spread map does not mean certainty"
)


@dataclass
class RepairConfig(InpainterConfig):
    """Holes, such as scratches, that are filled before the first stage."""

    mask: str | None = None  # a picture for all, or a folder with one for each; null: no repair
    exemplar: str | None = None  # likewise; null: the picture itself


@dataclass
class RestoreConfig:
    input: str = MISSING  # a picture or a folder of pictures (recursive)
    output: str = MISSING  # a folder
    seed: int = 0
    dr2: DR2Config = field(default_factory=DR2Config)
    enhancer: EnhancerConfig = field(default_factory=EnhancerConfig)
    batch_size: int = 8  # pictures per process
    precision: str = "fp32"  # fp32 | bf16 | fp16
    attention: str = "auto"  # auto | sdpa | xformers
    channels_last: bool | None = None  # null: in bf16 and fp16, where it is faster
    compile: bool = False
    save_coarse: bool = False
    save_compare: bool = False  # input | coarse | restored, side by side
    samples: int = 1  # restorations of each picture with different noise
    combine: str = "mean"  # mean | medoid of the samples
    repair: RepairConfig = field(default_factory=RepairConfig)
    loader_threads: int = 2
    max_pixels: int = images.MAX_PIXELS


def restore_folder(config: RestoreConfig) -> RunSummary:
    """Restore ``config.input`` into ``config.output``; see the README for what a run leaves.

    Raises:
        ConfigError, ValueError: an invalid setting; nothing has been written then.
    """
    if not config.input or not config.output:
        raise ConfigError("input and output must not be empty")
    _check_samples(config)
    if config.repair.mask is None and config.repair.exemplar is not None:
        raise ConfigError("an exemplar guides the repair of holes; give a mask (repair.mask) too")
    if "" in (config.repair.mask, config.repair.exemplar):
        raise ConfigError("repair.mask and repair.exemplar must not be empty")
    restorer, weight_hashes = build_restorer(
        config.dr2,
        config.enhancer,
        device=process_state().device,
        precision=config.precision,
        attention=config.attention,
        channels_last=config.channels_last,
        compile=config.compile,
    )
    repair, partners = None, {}
    if config.repair.mask is not None:
        repair, found = load_inpainter(config.repair, device=process_state().device)
        weight_hashes |= found
        partners = _partners(config.repair, repair, restorer.input_size)
    settings = _settings(config, restorer, weight_hashes)
    if repair is not None:
        networks = (repair.network, repair.encoder)
        settings["repair"] = [plain_config(network.config) for network in networks]
    outputs = ["restored"]
    outputs += ["repaired"] if repair is not None else []
    outputs += ["coarse"] if config.save_coarse else []
    outputs += ["compare"] if config.save_compare else []
    outputs += ["spread"] if config.samples > 1 else []
    run = FolderRun(
        config.input,
        config.output,
        process=lambda pictures, seeds, **given: restore_batch(
            restorer,
            repair_batch(repair, pictures, seeds, **given) if repair is not None else pictures,
            seeds,
            outputs,
            samples=config.samples,
            combine=config.combine,
            given=pictures,
        ),
        size=restorer.input_size,
        output_size=restorer.output_size,
        settings=settings,
        outputs=outputs,
        seed=config.seed,
        batch_size=config.batch_size,
        loader_threads=config.loader_threads,
        max_pixels=config.max_pixels,
        run_description={
            "config": to_dict(config),
            "settings": settings,
            "versions": versions(),
        },
        png_text={"version": dr2pipe.__version__, "settings": settings},
        partners=partners,
    )
    return run.run()


def repair_batch(
    inpainter: Inpainter,
    pictures: torch.Tensor,
    seeds: list[int],
    *,
    mask: list[torch.Tensor],
    exemplar: list[torch.Tensor] | None = None,
) -> torch.Tensor:
    """Pictures (B,3,S,S) in [-1,1] with the holes of ``mask`` filled; lists of (1,...,S,S)."""
    exemplars = pictures if exemplar is None else torch.cat(exemplar)
    return inpainter(pictures, torch.cat(mask), inpainter.styles(exemplars), seeds).clamp(-1, 1)


def restore_batch(
    restorer: Restorer,
    pictures: torch.Tensor,
    seeds: list[int],
    outputs: list[str],
    *,
    samples: int = 1,
    combine: str = "mean",
    given: torch.Tensor | None = None,
) -> BatchResult:
    """Pictures (B,3,S,S) in [-1,1] as 8-bit results by output subfolder.

    ``given``: what the pictures were before they were repaired, for ``compare``.
    """
    drawn: list[dict[str, Any]] = [{} for _ in seeds]
    warnings: list[list[str]] = [[] for _ in seeds]
    made: dict[str, np.ndarray] = {}
    if samples == 1:
        result = restorer(pictures, seeds)
        faces = result.coarse, result.restored
        in_fp32, choices = result.in_fp32, result.choices
    else:
        found = sample_restorer(restorer, pictures, seeds, samples)
        by_mean = combine == "mean"
        faces = (found.coarse_mean, found.mean) if by_mean else (found.coarse_medoid, found.medoid)
        in_fp32, choices = found.in_fp32, found.first.choices
        levels = found.spread.cpu().double() * _LEVELS_PER_UNIT
        grey = images.round_to_uint8((levels * SPREAD_BRIGHTNESS).permute(0, 2, 3, 1).numpy())
        made["spread"] = grey.repeat(3, axis=3)
        for i, spread in enumerate(levels.mean(dim=(1, 2, 3)).tolist()):
            drawn[i]["spread"] = round(spread, 3) if found.varies[i] else None
            if not found.varies[i]:
                warnings[i].append(_NO_SPREAD)
    for record, choice in zip(drawn, choices, strict=bool(choices)):
        if choice.note is not None:
            record["auto"] = choice.note
    if getattr(restorer.enhancer.config, "interpolate", False):  # of Panini-Net
        sides = restorer.enhancer.fused_sides
        for record, shares in zip(drawn, restorer.prior_shares(faces[0]).tolist(), strict=True):
            levels = zip(sides, shares, strict=True)
            record["prior_share"] = {f"{side} px": round(share, 4) for side, share in levels}
    made |= zip(("coarse", "restored"), map(images.to_uint8, faces), strict=True)
    made["repaired"] = images.to_uint8(pictures)
    if "compare" in outputs:
        parts = [images.to_uint8(pictures if given is None else given)]
        parts += [made["repaired"]] if "repaired" in outputs else []
        parts += [made["coarse"], made["restored"]]
        made["compare"] = [side_by_side(list(row)) for row in zip(*parts, strict=True)]
    for of_picture, retried in zip(warnings, in_fp32, strict=True):
        of_picture += ["not finite in low precision, restored again in float32"] * retried
    pixels = [{name: made[name][i] for name in outputs} for i in range(len(pictures))]
    return BatchResult(pixels, warnings, drawn)


def describe_shares(output: str | Path) -> str | None:
    """How much was taken from the prior in all pictures of a run, by level; None without one."""
    lines = (Path(output) / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    latest = {record["path"]: record.get("drawn", {}) for record in map(json.loads, lines)}
    found = [drawn["prior_share"] for drawn in latest.values() if "prior_share" in drawn]
    if not found:
        return None
    levels = []
    for side in found[0]:
        low, median, high = np.quantile([shares[side] for shares in found], [0.1, 0.5, 0.9])
        levels.append(f"{side} {median:.3f} ({low:.3f}..{high:.3f})")
    return f"share of the prior, median (and 80 % of the pictures): {', '.join(levels)}"


def _partners(config: RepairConfig, inpainter: Inpainter, size: int) -> dict[str, Partners]:
    """Masks at the restorer's size, and exemplars where they are given."""

    def hole(mask: images.Picture, picture: images.Picture) -> torch.Tensor:
        return cover(read_hole(mask, picture), size)

    def exemplar(found: images.Picture, _: images.Picture) -> torch.Tensor:
        return found.resized(inpainter.exemplar_size)

    partners = {"mask": Partners(config.mask, hole)}
    if config.exemplar is not None:
        partners["exemplar"] = Partners(config.exemplar, exemplar)
    return partners


def _check_samples(config: RestoreConfig) -> None:
    if config.samples < 1:
        raise ConfigError(f"samples={config.samples} must be at least 1")
    if config.combine not in COMBINE:
        raise ConfigError(f"combine '{config.combine}': choose {', '.join(COMBINE)}")
    if config.samples > 1 and not config.dr2.enabled:
        raise ConfigError("samples differ by the noise of stage 1 alone, and dr2.enabled is false")


def _settings(
    config: RestoreConfig, restorer: Restorer, weight_hashes: dict[str, str]
) -> dict[str, Any]:
    """Everything that decides a picture's result, with ω as a number."""
    dr2: dict[str, Any] = {"enabled": False}
    if restorer.remover is not None:
        dr2 = describe_dr2(config.dr2, restorer.remover)
    several = {}
    if config.samples > 1:
        several = {"samples": config.samples, "combine": config.combine}
    return several | {
        "seed": config.seed,
        "dr2": dr2,
        "enhancer": describe_enhancer(config.enhancer, restorer.enhancer),
        "precision": config.precision,
        "weights_sha256": weight_hashes,
    }
