"""``dr2pipe restore --aligned``: faces that are aligned already, in and out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy.typing as npt
import torch

from dr2pipe.core import images
from dr2pipe.core.sheets import side_by_side
from dr2pipe.restoration.batch_size import resolve_batch_size
from dr2pipe.restoration.face_notes import LEVELS_PER_UNIT, describe_faces
from dr2pipe.restoration.inpainter import (
    Inpainter,
    load_inpainter,
    read_mask,
    resize_mask,
)
from dr2pipe.restoration.restored import Restored
from dr2pipe.restoration.restorer import Restorer
from dr2pipe.restoration.samples import Samples, sample_restorer
from dr2pipe.restoration.settings import load_restorer
from dr2pipe.runs.batches import BatchResult, Result
from dr2pipe.runs.jobs import PairedFiles
from dr2pipe.runs.restore_config import RepairConfig, RestoreConfig
from dr2pipe.runs.restore_notes import describe_repair, describe_settings, text_of_result
from dr2pipe.runs.result_folders import COARSE, COMPARE, REPAIRED, RESTORED, SPREAD
from dr2pipe.runs.steps import Steps

# A spread map is this many times brighter than the standard deviation in levels of 255.
SPREAD_BRIGHTNESS = 4


def aligned_steps(config: RestoreConfig, device: torch.device | str) -> Steps:
    """What a run does with every aligned face.

    Raises:
        Dr2pipeError: an invalid setting, or missing weights.
    """
    restorer, weight_hashes = load_restorer(config, device)
    repair, paired = None, {}
    if config.repair.mask is not None:
        repair, repair_hashes = load_inpainter(config.repair, device=device)
        weight_hashes |= repair_hashes
        paired = _masks_and_exemplars(config.repair, repair, restorer.input_size)
    settings = describe_settings(config, restorer, weight_hashes)
    if repair is not None:
        settings["repair"] = describe_repair(repair)
    optional = {
        REPAIRED: repair is not None,
        COARSE: config.save_coarse,
        COMPARE: config.save_compare,
        SPREAD: config.samples > 1,
    }
    outputs = [RESTORED, *(name for name, wanted in optional.items() if wanted)]

    def begin(
        pictures: torch.Tensor, seeds: list[int], decoded: list[images.Picture], **paired: Any
    ) -> Callable[[], BatchResult]:
        return begin_batch(
            restorer,
            repair_batch(repair, pictures, seeds, **paired) if repair is not None else pictures,
            seeds,
            outputs,
            decoded=decoded if config.bits == "keep" else _with_8_bits(decoded),
            samples=config.samples,
            combine=config.combine,
            inputs=pictures,
        )

    on_gpu = restorer.device.type == "cuda"
    return Steps(
        process=lambda *batch, **paired: begin(*batch, **paired)(),
        size=restorer.input_size,
        output_size=restorer.output_size,
        settings=settings,
        outputs=outputs,
        seed=config.seed,
        batch_size=resolve_batch_size(config.batch_size, restorer),
        max_pixels=config.max_pixels,
        options=config.run_options(),
        keep_tint=config.colour == "keep",
        stretch_contrast=config.contrast == "stretch",
        png_text=text_of_result(config, settings, device),
        paired=paired,
        on_gpu=on_gpu,
        begin=begin if on_gpu else None,
    )


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


def begin_batch(
    restorer: Restorer,
    pictures: torch.Tensor,
    seeds: list[int],
    outputs: list[str],
    *,
    decoded: list[images.Picture] | None = None,
    samples: int = 1,
    combine: str = "mean",
    inputs: torch.Tensor | None = None,
) -> Callable[[], BatchResult]:
    """Give the networks a batch; returns what waits for it and fetches the results.

    They are results by result folder, with the bits and the tint of the pictures. A GPU may be given
    another batch before they are fetched.

    Args:
        restorer: both stages.
        pictures: (B,3,S,S) RGB in [-1,1].
        seeds: one per picture.
        outputs: the result folders that are wanted.
        decoded: the pictures' bits and tints; None for 8-bit colour pictures.
        samples: restorations of each picture with different noise; several are taken when the results
            are fetched.
        combine: ``mean`` or ``medoid`` of the samples.
        inputs: the pictures before they were repaired, for ``compare``.
    """
    fetch = partial(_fetch, restorer, pictures, outputs, decoded=decoded, inputs=inputs)
    begun = restorer.begin(pictures, seeds) if samples == 1 else None

    def finish() -> BatchResult:
        if begun is None:
            found = sample_restorer(restorer, pictures, seeds, samples)
            return fetch(found.combined(combine), found)
        with restorer.beside_the_next(begun):
            return fetch(restorer.finish(begun))

    return finish


def _fetch(
    restorer: Restorer,
    pictures: torch.Tensor,
    outputs: list[str],
    result: Restored,
    found: Samples | None = None,
    *,
    decoded: list[images.Picture] | None,
    inputs: torch.Tensor | None,
) -> BatchResult:
    """What is written of a batch; ``found`` are the samples that the result was combined of."""
    notes, warnings = describe_faces(restorer, result, found)
    results: dict[str, list[npt.NDArray[Any]]] = {}  # (H,W,3) of each picture by result folder
    if found is not None:
        levels = found.spread.cpu().double() * LEVELS_PER_UNIT  # (B,1,H,W)
        grey = images.round_to_uint8((levels * SPREAD_BRIGHTNESS).permute(0, 2, 3, 1).numpy())
        results[SPREAD] = list(grey.repeat(3, axis=3))
    wanted = {*outputs, *((COARSE, RESTORED) if COMPARE in outputs else ())}
    tensors = ((COARSE, result.coarse), (RESTORED, result.restored), (REPAIRED, pictures))
    for name, tensor in tensors:
        if name in wanted:
            results[name] = _levels(tensor, decoded)
    if COMPARE in outputs:
        columns = [_as_given(_levels(pictures if inputs is None else inputs, decoded), decoded)]
        columns += [results[REPAIRED]] if REPAIRED in outputs else []
        columns += [results[COARSE], results[RESTORED]]
        rows = zip(*columns, strict=True)
        results[COMPARE] = [side_by_side([images.reduced(p) for p in row]) for row in rows]
    pixels: list[dict[str, Result | None]] = [
        {name: results[name][i] for name in outputs} for i in range(len(pictures))
    ]
    return BatchResult(pixels, notes, warnings)


def _levels(tensor: torch.Tensor, decoded: list[images.Picture] | None) -> list[npt.NDArray[Any]]:
    """(B,3,H,W) in [-1,1] as (H,W,3) of every picture, with its bits and its tint."""
    levels: list[npt.NDArray[Any]] = list(images.to_uint8(tensor))
    for i, picture in enumerate(decoded or []):
        if picture.bits == 16:
            levels[i] = images.to_uint16(tensor[i : i + 1])[0]
        if picture.tint is not None:
            levels[i] = picture.tint.apply(levels[i])
    return levels


def _as_given(
    levels: list[npt.NDArray[Any]], decoded: list[images.Picture] | None
) -> list[npt.NDArray[Any]]:
    """The pictures before their contrast was stretched."""
    stretches = [picture.stretch for picture in decoded or []] or [None] * len(levels)
    return [
        one if stretch is None else stretch.undo(one)
        for one, stretch in zip(levels, stretches, strict=True)
    ]


def _with_8_bits(pictures: list[images.Picture]) -> list[images.Picture]:
    return [dataclasses.replace(picture, bits=8) for picture in pictures]


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
