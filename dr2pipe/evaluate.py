"""Study a restorer on degraded copies of clean faces: a table, every value, and pictures.

Each degradation is compared in six versions: the input, the coarse face, a baseline enhancer
and the enhancer, each of the two with and without DR2 before it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from omegaconf import MISSING
from tqdm import tqdm

import dr2pipe
from dr2pipe import files, images
from dr2pipe.config import ConfigError, stable_seed, to_dict, to_yaml
from dr2pipe.data.folders import FaceDataset
from dr2pipe.degradations import UNSEEN, check_degradation, degrade, describe_chain
from dr2pipe.metrics import check_metrics, measure
from dr2pipe.processes import process_state
from dr2pipe.restore import DR2Config, EnhancerConfig, Restorer, build_restorer
from dr2pipe.sheets import contact_sheet

METHODS = ("input", "coarse", "baseline", "enhancer", "DR2 + baseline", "DR2 + enhancer")
_DECIMALS = {"psnr": 2, "psnr_luma": 2}  # three for all others
_FACES_ON_A_SHEET = 8


@dataclass
class EvaluateConfig:
    """``degradations``: chains by name or YAML file, unseen families as ``name:severity``."""

    input: str = MISSING  # folder of clean faces, or .npz with images and files
    output: str = MISSING
    sources: list[int] | None = None  # of an .npz
    limit: int | None = None  # only the first faces
    size: int = MISSING  # side in pixels at which faces are compared
    degraded_size: int = MISSING  # side in pixels at which they are degraded
    degradations: list[str] = MISSING
    dr2: DR2Config = field(default_factory=DR2Config)
    enhancer: EnhancerConfig = field(default_factory=EnhancerConfig)  # for coarse faces
    baseline: EnhancerConfig = field(default_factory=EnhancerConfig)  # for degraded faces
    metrics: list[str] = field(default_factory=lambda: ["psnr", "ssim", "ms_ssim"])
    seed: int = 0
    batch_size: int = 16
    precision: str = "fp32"


@dataclass(frozen=True)
class Degradation:
    """``severity`` of the unseen families; None of the chains."""

    name: str
    severity: int | None = None

    @property
    def label(self) -> str:
        return Path(self.name).stem + (f" {self.severity}" if self.severity else "")


@dataclass(frozen=True)
class Row:
    """What one method made of one degraded face."""

    degradation: str
    method: str
    picture: str
    values: dict[str, float]


def parse_degradation(text: str) -> Degradation:
    """``name`` or ``name:severity``; ValueError where there is no such thing."""
    name, colon, severity = text.rpartition(":")
    if not colon or not severity.isdigit():
        name, severity = text, ""
    degradation = Degradation(name, int(severity) if severity else None)
    check_degradation(degradation.name, degradation.severity)
    return degradation


def evaluate(config: EvaluateConfig) -> str:
    """Fill ``config.output`` with results.csv, table.md, sheets/ and run.yaml; returns the table.

    Raises:
        ConfigError, ValueError: an invalid setting or unusable data, before any work.
    """
    if process_state().num_processes > 1:
        raise ConfigError("evaluate runs on one process")
    for name in ("size", "degraded_size", "batch_size", "limit"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ConfigError(f"{name}={value} must be at least 1")
    if not config.metrics:
        raise ConfigError("metrics must name at least one")
    check_metrics(config.metrics, config.size)
    degradations = [parse_degradation(text) for text in config.degradations]
    if not degradations:
        raise ConfigError("degradations must name at least one")
    labels = [degradation.label for degradation in degradations]
    if len(set(labels)) < len(labels):
        raise ConfigError(f"degradations must differ in their names: {', '.join(labels)}")
    faces = FaceDataset(config.input, size=config.size, sources=config.sources, flip=False)
    count = min(len(faces), config.limit or len(faces))
    shared = {"device": process_state().device, "precision": config.precision}
    restorer, hashes = build_restorer(config.dr2, config.enhancer, **shared)
    baseline, baseline_hashes = build_restorer(DR2Config(enabled=False), config.baseline, **shared)
    output = Path(config.output)
    described = {
        "config": to_dict(config),
        "ranges": {d.name: describe_chain(d.name) for d in degradations},
        "weights_sha256": hashes | {"baseline": baseline_hashes.get("enhancer")},
        "versions": {"dr2pipe": dr2pipe.__version__, "torch": str(torch.__version__)},
    }
    files.write_bytes(output / "run.yaml", to_yaml(described).encode())
    rows: list[Row] = []
    progress = tqdm(total=count * len(degradations), unit="picture")
    for degradation in degradations:
        shown: list[list[np.ndarray]] = []
        for names, versions, originals in _batches(
            config, faces, count, degradation, restorer, baseline
        ):
            rows += _measured(config, degradation, names, versions, originals)
            pictures = [images.to_uint8(v) for v in (originals, *versions.values())]
            shown += [list(face) for face in zip(*pictures, strict=True)]
            progress.update(len(names))
        sheet = output / "sheets" / f"{degradation.label.replace(' ', '_')}.png"
        images.write_png(sheet, contact_sheet(shown[:_FACES_ON_A_SHEET]))
    progress.close()
    places = {label: i for i, label in enumerate([*METHODS, *(d.label for d in degradations)])}
    rows.sort(key=lambda row: (places[row.degradation], places[row.method], row.picture))
    files.write_bytes(output / "results.csv", _csv_of(rows, config.metrics).encode())
    table = _tables(rows, config.metrics, degradations, count)
    files.write_bytes(output / "table.md", table.encode())
    return table


def _batches(
    config: EvaluateConfig,
    faces: FaceDataset,
    count: int,
    degradation: Degradation,
    restorer: Restorer,
    baseline: Restorer,
) -> Iterator[tuple[list[str], dict[str, torch.Tensor], torch.Tensor]]:
    """Names, every method's pictures (B,3,size,size), and the originals."""
    for first in range(0, count, config.batch_size):
        items = [faces[i, i] for i in range(first, min(first + config.batch_size, count))]
        names = [_relative(item["name"], config.input) for item in items]
        seeds = [stable_seed(config.seed, degradation.label, name) for name in names]
        originals = torch.stack([item["image"] for item in items])
        degraded = []
        for pixels, seed in zip(images.to_uint8(originals), seeds, strict=True):
            small = images.resize_pixels(pixels, (config.degraded_size, config.degraded_size))
            rng = np.random.default_rng(seed)
            pixels, _ = degrade(small, degradation.name, rng, severity=degradation.severity)
            degraded.append(pixels)
        degraded = images.to_tensor(np.stack(degraded))
        result = restorer(images.resize_tensor(degraded, restorer.input_size), seeds)
        versions = {
            "input": degraded,
            "coarse": result.coarse,
            "baseline": baseline.enhance(degraded.to(baseline.device)),
            "enhancer": restorer.enhance(degraded.to(restorer.device)),
            "DR2 + baseline": baseline.enhance(result.coarse),
            "DR2 + enhancer": result.restored,
        }
        for method, pictures in versions.items():
            if not pictures.isfinite().all():
                raise FloatingPointError(
                    f"'{method}' of {degradation.label} is not finite; try precision=fp32"
                )
        compared = {
            method: images.resize_tensor(v.cpu().clamp(-1, 1), config.size)
            for method, v in versions.items()
        }
        yield names, compared, originals


def _relative(name: str, source: str) -> str:
    """The name of a face below ``source``, or as it is where that is an .npz file."""
    path = Path(name)
    return path.relative_to(source).as_posix() if path.is_relative_to(source) else name


def _measured(
    config: EvaluateConfig,
    degradation: Degradation,
    names: list[str],
    versions: dict[str, torch.Tensor],
    originals: torch.Tensor,
) -> Iterator[Row]:
    for method, pictures in versions.items():
        values = measure(pictures, originals, config.metrics)
        for i, name in enumerate(names):
            picture_values = {metric: values[metric][i] for metric in config.metrics}
            yield Row(degradation.label, method, name, picture_values)


def _csv_of(rows: list[Row], metrics: list[str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["degradation", "method", "picture", *metrics])
    for row in rows:
        values = [f"{row.values[metric]:.6f}" for metric in metrics]
        writer.writerow([row.degradation, row.method, row.picture, *values])
    return text.getvalue()


def _tables(
    rows: list[Row], metrics: list[str], degradations: list[Degradation], count: int
) -> str:
    """A table for each metric: means over the pictures, and over chains and unseen families."""
    groups = {d.label: [d.label] for d in degradations}
    for title, unseen in (("mean of chains", False), ("mean of unseen families", True)):
        labels = [d.label for d in degradations if (d.name in UNSEEN) == unseen]
        if len(labels) > 1:
            groups[title] = labels
    lines = []
    for metric in metrics:
        lines += [
            "",
            f"{metric}, mean of {count} faces",
            "",
            f"| degradation | {' | '.join(METHODS)} |",
            "|---" * (len(METHODS) + 1) + "|",
        ]
        for title, labels in groups.items():
            means = [
                np.mean(
                    [r.values[metric] for r in rows if r.degradation in labels and r.method == m]
                )
                for m in METHODS
            ]
            cells = " | ".join(f"{mean:.{_DECIMALS.get(metric, 3)}f}" for mean in means)
            lines.append(f"| {title} | {cells} |")
    return "\n".join(lines[1:]) + "\n"
