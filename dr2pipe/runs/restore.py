"""``dr2pipe restore``: a configuration, a folder run, both stages."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from omegaconf import MISSING

import dr2pipe
from dr2pipe.core import images
from dr2pipe.core.config import to_dict
from dr2pipe.core.errors import ConfigError
from dr2pipe.core.processes import process_state
from dr2pipe.core.records import RunRecords, versions
from dr2pipe.core.sheets import side_by_side
from dr2pipe.diffusion.stage1 import DR2Config, describe_dr2, plain_config
from dr2pipe.restoration.inpainter import (
    Inpainter,
    InpainterConfig,
    load_inpainter,
    read_mask,
    resize_mask,
)
from dr2pipe.restoration.restorer import EnhancerConfig, Restorer, build_restorer, describe_enhancer
from dr2pipe.restoration.samples import COMBINE, sample_restorer
from dr2pipe.runs.folder_run import BatchResult, FolderRun, RunSummary
from dr2pipe.runs.jobs import PairedFiles
from dr2pipe.runs.options import RunOptions
from dr2pipe.runs.result_folders import COARSE, COMPARE, REPAIRED, RESTORED, SPREAD

_LEVELS_PER_UNIT = 127.5
# A spread map is this many times brighter than the standard deviation in levels of 255.
SPREAD_BRIGHTNESS = 4
_NO_SPREAD = (
    "the automatic setting left out stage 1, whose noise makes samples differ: the spread is "
    "unknown, and the black spread map does not mean certainty"
)


@dataclass
class RepairConfig(InpainterConfig):
    """How holes, such as scratches, are filled before stage 1."""

    mask: str | None = None  # a picture for all, or a folder with one for each; null: no repair
    exemplar: str | None = None  # face whose style is used, likewise; null: the picture itself


@dataclass
class RestoreConfig:
    """Settings of ``dr2pipe restore``, as in ``configs/restore``."""

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
    colour: str = "keep"  # keep: monochrome pictures keep their tint | free
    bits: str = "keep"  # keep: results have the bits of their pictures, 8 or 16 | 8
    pages: str = "first"  # first | all: pages or frames of a file
    merge: bool = False  # let the results of another input join those in the output
    verify: bool = False  # compare the hashes of finished results, not only their sizes
    loader_threads: int = 2
    max_pixels: int = images.MAX_PIXELS


def restore_folder(config: RestoreConfig) -> RunSummary:
    """Restore ``config.input`` into ``config.output``; see docs/restore.md for what it leaves.

    Raises:
        Dr2pipeError: an invalid setting, or missing weights; nothing has been written then.
    """
    _check(config)
    restorer, weight_hashes = build_restorer(
        config.dr2,
        config.enhancer,
        device=process_state().device,
        precision=config.precision,
        attention=config.attention,
        channels_last=config.channels_last,
        compile=config.compile,
    )
    repair, paired = None, {}
    if config.repair.mask is not None:
        repair, repair_hashes = load_inpainter(config.repair, device=process_state().device)
        weight_hashes |= repair_hashes
        paired = _masks_and_exemplars(config.repair, repair, restorer.input_size)
    settings = _settings(config, restorer, weight_hashes)
    if repair is not None:
        networks = (repair.network, repair.encoder)
        settings["repair"] = [plain_config(network.config) for network in networks]
    optional = {
        REPAIRED: repair is not None,
        COARSE: config.save_coarse,
        COMPARE: config.save_compare,
        SPREAD: config.samples > 1,
    }
    outputs = [RESTORED, *(name for name, wanted in optional.items() if wanted)]
    run = FolderRun(
        config.input,
        config.output,
        process=lambda pictures, seeds, decoded, **paired: restore_batch(
            restorer,
            repair_batch(repair, pictures, seeds, **paired) if repair is not None else pictures,
            seeds,
            outputs,
            decoded=decoded if config.bits == "keep" else _with_8_bits(decoded),
            samples=config.samples,
            combine=config.combine,
            inputs=pictures,
        ),
        size=restorer.input_size,
        output_size=restorer.output_size,
        settings=settings,
        outputs=outputs,
        seed=config.seed,
        batch_size=config.batch_size,
        loader_threads=config.loader_threads,
        max_pixels=config.max_pixels,
        options=RunOptions(config.pages, config.merge, config.verify),
        keep_tint=config.colour == "keep",
        run_description={
            "config": to_dict(config),
            "settings": settings,
            "versions": versions(),
        },
        png_text={"version": dr2pipe.__version__, "settings": settings},
        paired=paired,
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
    """Fill holes before stage 1.

    Args:
        inpainter: fills them.
        pictures: (B,3,S,S) RGB in [-1,1].
        seeds: one per picture.
        mask: (1,1,S,S) for each picture, 1 in its holes.
        exemplar: (1,3,E,E) for each picture; None: the picture itself.

    Returns:
        (B,3,S,S) in [-1,1].
    """
    exemplars = pictures if exemplar is None else torch.cat(exemplar)
    return inpainter(pictures, torch.cat(mask), inpainter.styles(exemplars), seeds).clamp(-1, 1)


def restore_batch(
    restorer: Restorer,
    pictures: torch.Tensor,
    seeds: list[int],
    outputs: list[str],
    *,
    decoded: list[images.Picture] | None = None,
    samples: int = 1,
    combine: str = "mean",
    inputs: torch.Tensor | None = None,
) -> BatchResult:
    """Restore a batch, as results by result folder, with the bits and the tint of its pictures.

    Args:
        restorer: both stages.
        pictures: (B,3,S,S) RGB in [-1,1].
        seeds: one per picture.
        outputs: the result folders that are wanted.
        decoded: the pictures' bits and tints; None for 8-bit colour pictures.
        samples: restorations of each picture with different noise.
        combine: ``mean`` or ``medoid`` of the samples.
        inputs: the pictures before they were repaired, for ``compare``.
    """
    notes: list[dict[str, Any]] = [{} for _ in seeds]
    warnings: list[list[str]] = [[] for _ in seeds]
    results: dict[str, list[npt.NDArray[Any]]] = {}  # (H,W,3) of each picture by result folder
    if samples == 1:
        result = restorer(pictures, seeds)
        coarse, restored, in_fp32 = result.coarse, result.restored, result.in_fp32
        choices = result.choices
    else:
        found = sample_restorer(restorer, pictures, seeds, samples)
        by_mean = combine == "mean"
        coarse = found.coarse_mean if by_mean else found.coarse_medoid
        restored = found.mean if by_mean else found.medoid
        in_fp32, choices = found.in_fp32, found.first.choices
        levels = found.spread.cpu().double() * _LEVELS_PER_UNIT  # (B,1,H,W)
        grey = images.round_to_uint8((levels * SPREAD_BRIGHTNESS).permute(0, 2, 3, 1).numpy())
        results[SPREAD] = list(grey.repeat(3, axis=3))
        for i, spread in enumerate(levels.mean(dim=(1, 2, 3)).tolist()):
            notes[i]["spread"] = round(spread, 3) if found.varies[i] else None
            if not found.varies[i]:
                warnings[i].append(_NO_SPREAD)
    for i, choice in enumerate(choices):
        if choice.note is not None:
            notes[i]["auto"] = choice.note
    for note, by_enhancer in zip(notes, restorer.notes(coarse), strict=True):
        note.update(by_enhancer)
    for name, tensor in ((COARSE, coarse), (RESTORED, restored), (REPAIRED, pictures)):
        results[name] = _levels(tensor, decoded)
    if COMPARE in outputs:
        columns = [_levels(pictures if inputs is None else inputs, decoded)]
        columns += [results[REPAIRED]] if REPAIRED in outputs else []
        columns += [results[COARSE], results[RESTORED]]
        rows = zip(*columns, strict=True)
        results[COMPARE] = [side_by_side([images.reduced(p) for p in row]) for row in rows]
    for i, retried in enumerate(in_fp32):
        if retried:
            warnings[i].append("not finite in low precision, restored again in float32")
    pixels = [{name: results[name][i] for name in outputs} for i in range(len(pictures))]
    return BatchResult(pixels, notes, warnings)


def _levels(tensor: torch.Tensor, decoded: list[images.Picture] | None) -> list[npt.NDArray[Any]]:
    """(B,3,H,W) in [-1,1] as (H,W,3) of every picture, with its bits and its tint."""
    if decoded is None:
        return list(images.to_uint8(tensor))
    levels: list[npt.NDArray[Any]] = []
    for one, picture in zip(tensor, decoded, strict=True):
        deep = picture.bits == 16
        pixels = images.to_uint16(one[None])[0] if deep else images.to_uint8(one[None])[0]
        levels.append(pixels if picture.tint is None else picture.tint.apply(pixels))
    return levels


def _with_8_bits(pictures: list[images.Picture]) -> list[images.Picture]:
    return [dataclasses.replace(picture, bits=8) for picture in pictures]


def describe_notes(output: str | Path) -> list[str]:
    """Medians of the measures that the manifest notes for the pictures of a run.

    A line for each measure, such as the spread of samples or an enhancer's own; whole numbers
    are settings, not measures.
    """
    values: dict[str, dict[str, list[float]]] = {}
    for record in RunRecords(output).finished().values():
        for name, note in record.get("notes", {}).items():
            for part, value in note.items() if isinstance(note, dict) else [("", note)]:
                if isinstance(value, float):
                    values.setdefault(name, {}).setdefault(part, []).append(value)
    lines = []
    for name, parts in values.items():
        described = []
        for part, numbers in parts.items():
            low, median, high = np.quantile(numbers, [0.1, 0.5, 0.9])
            described.append(f"{part} {median:.3f} ({low:.3f}..{high:.3f})".strip())
        listed = ", ".join(described)
        lines.append(f"{name.replace('_', ' ')}, median (and 80 % of the pictures): {listed}")
    return lines


def _masks_and_exemplars(
    config: RepairConfig, inpainter: Inpainter, size: int
) -> dict[str, PairedFiles]:
    """Masks at the restorer's size, and exemplars where they are given."""

    def prepare_mask(mask: images.Picture, picture: images.Picture) -> torch.Tensor:
        return resize_mask(read_mask(mask, picture), size)

    def prepare_exemplar(exemplar: images.Picture, _: images.Picture) -> torch.Tensor:
        return exemplar.resized(inpainter.exemplar_size)

    paired = {}
    if config.mask is not None:
        paired["mask"] = PairedFiles(config.mask, prepare_mask)
    if config.exemplar is not None:
        paired["exemplar"] = PairedFiles(config.exemplar, prepare_exemplar)
    return paired


def _check(config: RestoreConfig) -> None:
    if not config.input or not config.output:
        raise ConfigError("input and output must not be empty")
    for name, valid in (("colour", ("keep", "free")), ("bits", ("keep", "8"))):
        if getattr(config, name) not in valid:
            raise ConfigError(f"{name} '{getattr(config, name)}': choose {' or '.join(valid)}")
    if config.repair.mask is None and config.repair.exemplar is not None:
        raise ConfigError("an exemplar guides the repair of holes; give a mask (repair.mask) too")
    if "" in (config.repair.mask, config.repair.exemplar):
        raise ConfigError("repair.mask and repair.exemplar must not be empty")
    if config.samples < 1:
        raise ConfigError(f"samples={config.samples} must be at least 1")
    if config.combine not in COMBINE:
        raise ConfigError(f"combine '{config.combine}': choose {', '.join(COMBINE)}")
    if config.samples > 1 and not config.dr2.enabled:
        raise ConfigError("samples differ by the noise of stage 1 alone, and dr2.enabled is false")


def _settings(
    config: RestoreConfig, restorer: Restorer, weight_hashes: dict[str, str]
) -> dict[str, Any]:
    """Everything besides the picture that decides a result, with ω as a number."""
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
        "colour": config.colour,
        "bits": config.bits,
        "weights_sha256": weight_hashes,
    }
