"""``dr2pipe inpaint``: fill holes in the faces of a folder in the style of exemplars."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt
import torch

import dr2pipe
from dr2pipe.core import images
from dr2pipe.core.errors import ConfigError
from dr2pipe.core.processes import process_state
from dr2pipe.core.records import versions
from dr2pipe.core.sheets import contact_sheet
from dr2pipe.diffusion.stage1 import plain_config
from dr2pipe.enhancers.exegan import mix_rows
from dr2pipe.restoration.inpainter import Inpainter, InpainterConfig, load_inpainter, read_mask
from dr2pipe.runs.batches import BatchResult, ProcessBatch, RunSummary
from dr2pipe.runs.folder_run import FolderRun
from dr2pipe.runs.jobs import PairedFiles
from dr2pipe.runs.options import RunOptions
from dr2pipe.runs.result_folders import MIXTURES, sample_folder
from dr2pipe.runs.steps import Steps


@dataclass
class InpaintConfig:
    """Settings of ``dr2pipe inpaint``.

    ``mask``, ``exemplar`` and ``mix_with`` are each a file for all pictures, or a folder with a
    file for each, of the same name.
    """

    input: str
    mask: str
    exemplar: str
    output: str
    inpainter: InpainterConfig = dataclasses.field(default_factory=InpainterConfig)
    mix_with: str | None = None  # a second exemplar
    mix_at: int | None = None  # styles from this row on are the second exemplar's
    samples: int = 1  # results of each picture with other seeds
    seed: int = 0
    max_pixels: int = images.MAX_PIXELS
    options: RunOptions = field(default_factory=RunOptions)


def inpaint_folder(config: InpaintConfig) -> RunSummary:
    """Fill ``output/inpainted``, and ``inpainted_2`` and on with ``samples``.

    With a second exemplar, ``mixtures`` shows the styles of both mixed at every row. Results are
    as large as their pictures, and pixels outside the masks are unchanged.

    Raises:
        Dr2pipeError: an invalid setting, or missing weights; nothing has been written then.
    """
    if config.samples < 1:
        raise ConfigError(f"samples={config.samples} must be at least 1")
    if config.mix_at is not None and config.mix_with is None:
        raise ConfigError("mixing at a row takes a second exemplar to mix with")
    inpainter, hashes = load_inpainter(config.inpainter, device=process_state().device)
    rows = inpainter.num_exemplar_rows
    if config.mix_at is not None and not 0 <= config.mix_at <= rows:
        raise ConfigError(f"mix_at={config.mix_at} must lie in 0..{rows}")

    def prepare_exemplar(exemplar: images.Picture, _: images.Picture) -> torch.Tensor:
        return exemplar.resized(inpainter.exemplar_size)

    paired = {
        "mask": PairedFiles(config.mask, read_mask),
        "exemplar": PairedFiles(config.exemplar, prepare_exemplar),
    }
    outputs = [sample_folder(number) for number in range(1, config.samples + 1)]
    if config.mix_with is not None:
        paired["second"] = PairedFiles(config.mix_with, prepare_exemplar)
        outputs.append(MIXTURES)
    settings = {
        "seed": config.seed,
        "samples": config.samples,
        "mix_at": config.mix_at,
        "weights_sha256": hashes,
        "networks": [plain_config(n.config) for n in (inpainter.network, inpainter.encoder)],
    }
    run = FolderRun(
        config.input,
        config.output,
        Steps(
            process=_inpaint_with(inpainter, config),
            size=None,
            output_size=None,
            settings=settings,
            outputs=outputs,
            seed=config.seed,
            batch_size=1,
            max_pixels=config.max_pixels,
            options=config.options,
            keep_tint=True,
            keep_own=True,
            png_text={"version": dr2pipe.__version__, "settings": settings},
            paired=paired,
        ),
        run_description={
            "config": dataclasses.asdict(config),
            "settings": settings,
            "versions": versions(),
        },
    )
    return run.run()


def _inpaint_with(inpainter: Inpainter, config: InpaintConfig) -> ProcessBatch:
    def process(
        pictures: torch.Tensor,
        seeds: list[int],
        decoded: list[images.Picture],
        *,
        mask: list[torch.Tensor],
        exemplar: list[torch.Tensor],
        second: list[torch.Tensor] | None = None,
    ) -> BatchResult:
        (seed,) = seeds  # the batch size is 1
        styles = inpainter.styles(exemplar[0])
        results: dict[str, npt.NDArray[Any]] = {}
        if second is not None:
            other = inpainter.styles(second[0])
            rows = inpainter.mixtures(pictures, mask[0], styles, other, seed)
            results[MIXTURES] = contact_sheet([list(images.to_uint8(row)) for row in rows])
            if config.mix_at is not None:
                styles = mix_rows(styles, other, config.mix_at)
        for k in range(config.samples):
            filled = inpainter(pictures, mask[0], styles, [seed + k])
            results[sample_folder(k + 1)] = _into_own_space(filled, mask[0], decoded[0])
        notes = {"hole_share": round(mask[0].mean().item(), 4)}
        samples = frozenset(results.keys() - {MIXTURES})
        return BatchResult([results], [notes], in_own_space=samples)

    return process


def _into_own_space(
    filled: torch.Tensor, mask: torch.Tensor, picture: images.Picture
) -> npt.NDArray[Any]:
    """The file's own samples, with those in the holes of ``mask`` (1,1,H,W) replaced.

    Args:
        filled: (1,3,H,W) sRGB in [-1,1].
        mask: 1 in the holes.
        picture: with ``own``.
    """
    assert picture.own is not None
    pixels = images.to_uint16(filled)[0] if picture.bits == 16 else images.to_uint8(filled)[0]
    if picture.tint is not None:
        pixels = picture.tint.apply(pixels)
    return picture.own.changed(pixels, (mask[0, 0] > 0).numpy())
