"""``dr2pipe degrade``: degraded copies of a folder, and the parameters drawn for each."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dr2pipe.core import images
from dr2pipe.core.config import stable_seed
from dr2pipe.core.errors import ConfigError
from dr2pipe.core.records import versions
from dr2pipe.core.sheets import check_sheet, contact_sheet
from dr2pipe.core.sheets import write_sheet as save_sheet
from dr2pipe.degradations import SEVERITIES, UNSEEN, check_degradation, degrade, describe_chain
from dr2pipe.runs.batches import BatchResult, RunSummary
from dr2pipe.runs.folder_run import FolderRun
from dr2pipe.runs.options import RunOptions
from dr2pipe.runs.result_folders import DEGRADED
from dr2pipe.runs.steps import Steps

PARAMETERS = "parameters.csv"
_SHEET_SIDE_PX = 96


@dataclass
class DegradeConfig:
    """Settings of ``dr2pipe degrade``: one degradation for every picture below ``input``."""

    input: str
    output: str
    degradation: str  # chain, YAML file with ranges, or unseen family
    severity: int | None = None  # 1..5, of an unseen family
    size: int | None = None  # side in pixels to which pictures are resized first; None: as they are
    seed: int = 0
    options: RunOptions = field(default_factory=RunOptions)


def degrade_folder(config: DegradeConfig) -> RunSummary:
    """Fill ``output/degraded`` and write ``output/parameters.csv``.

    A picture's degradation depends on the seed and its relative path alone.

    Raises:
        ConfigError: an unknown degradation, a wrong severity or size, or a table of another
            program in the output, before anything is written.
    """
    check_degradation(config.degradation, config.severity)
    if config.size is not None and config.size < 1:
        raise ConfigError(f"size={config.size} must be at least 1")
    settings = {
        "degradation": config.degradation,
        "severity": config.severity,
        "ranges": describe_chain(config.degradation),
        "size": config.size,
        "seed": config.seed,
    }

    def process(pictures: torch.Tensor, seeds: list[int], _: list[images.Picture]) -> BatchResult:
        pixels, notes = [], []
        for picture, seed in zip(images.to_uint8(pictures), seeds, strict=True):
            rng = np.random.default_rng(seed)
            degraded, parameters = degrade(
                picture, config.degradation, rng, severity=config.severity
            )
            pixels.append({DEGRADED: degraded})
            notes.append(parameters)
        return BatchResult(pixels, notes)

    run = FolderRun(
        config.input,
        config.output,
        Steps(
            process=process,
            size=config.size,
            output_size=config.size,
            settings=settings,
            outputs=[DEGRADED],
            seed=config.seed,
            batch_size=1,
            options=config.options,
            png_text={"settings": settings},
        ),
        run_description={
            "config": dataclasses.asdict(config),
            "settings": settings,
            "versions": versions(),
        },
    )
    return run.run_with_table(PARAMETERS, lambda records: _table(records, settings))


def write_sheet(face: str | Path, output: str | Path, *, seed: int = 0) -> None:
    """Write a picture of one face under every unseen family, a row each, at severities 1..5.

    Raises:
        Dr2pipeError: the face cannot be read, or ``output`` is no place for a sheet.
    """
    pixels = images.read_image(face).pixels
    check_sheet(output, face)
    pixels = images.resize_pixels(pixels, (_SHEET_SIDE_PX, _SHEET_SIDE_PX))
    rows = []
    for name in UNSEEN:
        row = [pixels]
        for severity in SEVERITIES:
            rng = np.random.default_rng(stable_seed(seed, name))
            row.append(degrade(pixels, name, rng, severity=severity)[0])
        rows.append(row)
    half = (len(rows) + 1) // 2  # two halves side by side, to fit a screen
    right_half = [*rows[half:], []][:half]
    sheet = [left + right for left, right in zip(rows[:half], right_half, strict=True)]
    save_sheet(output, contact_sheet(sheet))


def _table(records: list[dict[str, Any]], settings: dict[str, Any]) -> list[list[Any]]:
    parameters = [record.get("notes", {}) for record in records]
    columns = list(dict.fromkeys(key for values in parameters for key in values))
    lines = [["path", "output", "seed", "degradation", "severity", *columns]]
    for record, values in zip(records, parameters, strict=True):
        fixed = [record["path"], record.get("output", ""), record.get("seed", "")]
        fixed += [settings["degradation"], settings["severity"]]
        lines.append([*fixed, *(values.get(column, "") for column in columns)])
    return lines
