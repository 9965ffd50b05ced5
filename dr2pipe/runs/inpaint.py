"""``dr2pipe inpaint``: holes of a folder's faces filled in the style of exemplars."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

import dr2pipe
from dr2pipe.core import images
from dr2pipe.core.errors import ConfigError
from dr2pipe.core.processes import process_state
from dr2pipe.core.records import versions
from dr2pipe.core.sheets import contact_sheet
from dr2pipe.diffusion.stage1 import plain_config
from dr2pipe.enhancers.exegan import mix_rows
from dr2pipe.restoration.inpainter import Inpainter, InpainterConfig, load_inpainter, read_hole
from dr2pipe.runs.folder_run import BatchResult, FolderRun, RunSummary
from dr2pipe.runs.jobs import Partners


@dataclass
class InpaintConfig:
    """Files in ``mask``, ``exemplar`` and ``mix_with`` are for all pictures, those in folders
    for the pictures of their names.
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


def inpaint_folder(config: InpaintConfig) -> RunSummary:
    """Fill ``output/inpainted``, and ``inpainted_2`` and on with ``samples``.

    With a second exemplar, ``mixtures`` shows the styles of both mixed at every row. Results have
    their pictures' sizes, and what is no hole stays as it is.

    Raises:
        ConfigError, ValueError: an invalid setting; nothing has been written then.
    """
    if config.samples < 1:
        raise ConfigError(f"samples={config.samples} must be at least 1")
    if config.mix_at is not None and config.mix_with is None:
        raise ConfigError("mixing at a row takes a second exemplar to mix with")
    inpainter, hashes = load_inpainter(config.inpainter, device=process_state().device)
    rows = inpainter.num_exemplar_rows
    if config.mix_at is not None and not 0 <= config.mix_at <= rows:
        raise ConfigError(f"mix_at={config.mix_at} must lie in 0..{rows}")

    def exemplar(found: images.Picture, _: images.Picture) -> torch.Tensor:
        return found.resized(inpainter.exemplar_size)

    partners = {
        "mask": Partners(config.mask, read_hole),
        "exemplar": Partners(config.exemplar, exemplar),
    }
    outputs = ["inpainted", *(f"inpainted_{k}" for k in range(2, config.samples + 1))]
    if config.mix_with is not None:
        partners["second"] = Partners(config.mix_with, exemplar)
        outputs.append("mixtures")
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
        process=_filled_by(inpainter, config),
        size=None,  # results have their pictures' sizes, so they go one by one
        output_size=None,
        settings=settings,
        outputs=outputs,
        seed=config.seed,
        batch_size=1,
        max_pixels=config.max_pixels,
        run_description={
            "config": dataclasses.asdict(config),
            "settings": settings,
            "versions": versions(),
        },
        png_text={"version": dr2pipe.__version__, "settings": settings},
        partners=partners,
    )
    return run.run()


def _filled_by(inpainter: Inpainter, config: InpaintConfig):
    def process(
        pictures: torch.Tensor,
        seeds: list[int],
        *,
        mask: list[torch.Tensor],
        exemplar: list[torch.Tensor],
        second: list[torch.Tensor] | None = None,
    ) -> BatchResult:
        hole, (seed,) = mask[0], seeds
        first = styles = inpainter.styles(exemplar[0])
        made = {}
        if second is not None:
            other = inpainter.styles(second[0])
            sheet = inpainter.mixtures(pictures, hole, first, other, seed)
            made["mixtures"] = contact_sheet([list(images.to_uint8(row)) for row in sheet])
            if config.mix_at is not None:
                styles = mix_rows(first, other, config.mix_at)
        for k in range(config.samples):
            filled = inpainter(pictures, hole, styles, [seed + k])
            made[f"inpainted_{k + 1}" if k else "inpainted"] = images.to_uint8(filled)[0]
        drawn = {"hole_share": round(hole.mean().item(), 4)}
        return BatchResult([made], [[]], [drawn])

    return process
