"""A study: degrade clean faces, restore them by every method, and measure the results.

The unit of work is a batch of faces under one degradation. Batches depend neither on what was
done before nor on the number of processes, so every run of a protocol gives the same numbers,
and a run that was stopped can be resumed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from dr2pipe.core import files, images
from dr2pipe.core.config import stable_hash, stable_seed, to_dict, to_yaml
from dr2pipe.core.errors import ConfigError
from dr2pipe.core.markers import MARKER, marked
from dr2pipe.core.processes import process_state, stop_signals_caught
from dr2pipe.core.records import append_jsonl, set_damaged_aside, to_jsonl, versions
from dr2pipe.degradations import degrade, describe_chain
from dr2pipe.diffusion.degradation_features import degradation_features
from dr2pipe.evaluation.calibration import calibration
from dr2pipe.evaluation.methods import MethodResult, Methods, stretched
from dr2pipe.evaluation.protocol import (
    GIVEN,
    CleanSet,
    Degradation,
    PartnerFolder,
    Protocol,
    kept_name,
    parse_degradations,
    png_name,
    read_groups,
    write_hashes,
)
from dr2pipe.evaluation.records import KIND, RESULT_FOLDERS, ROWS, read_hash, read_rows
from dr2pipe.metrics import psnr
from dr2pipe.metrics.meter import Meter, available
from dr2pipe.restoration.restorer import Restorer
from dr2pipe.restoration.samples import sample_restorer

logger = logging.getLogger(__name__)

DEGRADED = "degraded"  # name of the methods' inputs among the saved pictures

Row = dict[str, Any]  # values of one face under one degradation, a line of rows.jsonl
WriteResults = Callable[["Study", list[Row], Path], str]


@dataclass(frozen=True)
class Unit:
    """A batch of faces under one degradation; ``faces`` are indices into the clean set."""

    degradation: Degradation
    faces: tuple[int, ...]


class Study:
    """Everything a protocol names, loaded and checked before any work starts.

    Args:
        protocol: the settings.
        compare_clean: rows also get ``fidelity`` (how much of a clean face each first stage
            keeps) and ``removal`` (how little of the degradation it leaves), both in dB; and
            features of the degraded faces.

    Raises:
        Dr2pipeError: an invalid setting, unusable pictures, missing weights.
    """

    def __init__(self, protocol: Protocol, *, compare_clean: bool = False):
        for name in ("size", "degraded_size", "batch_size"):
            if getattr(protocol, name) < 1:
                raise ConfigError(f"{name}={getattr(protocol, name)} must be at least 1")
        self.protocol, self.compare_clean = protocol, compare_clean
        self._of_clean: tuple[tuple[int, ...], dict[str, tuple[torch.Tensor, list[float]]]]
        self._of_clean = ((), {})  # faces, and what the first stages made of them when clean
        self.degradations = parse_degradations(protocol)
        self.metrics, self.left_out = available(
            protocol.metrics, protocol.metric_files, protocol.size
        )
        self.meter = Meter(self.metrics, protocol.metric_files, protocol.size)
        if protocol.merge and self.keeps_pictures:
            keeping = ", ".join(["save_pictures", *self.meter.set_names])
            raise ConfigError(f"merge takes over values and no pictures: leave out {keeping}")
        if DEGRADED in protocol.methods:
            raise ConfigError(f"no method can be called '{DEGRADED}': kept pictures have it")
        self.methods = Methods(protocol)
        self.main = self._method(protocol.main, -1)
        self.baseline = self._method(protocol.baseline, 0)
        self.sampled: Restorer | None = None
        if protocol.uncertainty_samples is not None:
            if protocol.uncertainty_samples < 2:
                raise ConfigError("uncertainty_samples must be at least 2, or null")
            self.sampled = self.methods.restorer(self.main)
        self.clean = CleanSet(protocol.clean, protocol.size)
        self.groups = read_groups(protocol.clean, self.clean.names)
        if self.keeps_pictures:
            self._check_names()
        self.given = self._given()
        self.methods.find_made(self.clean.names, self.degradations, self._inputs)
        self.made_elsewhere = self._check_partners()
        self.description = self._describe()
        self.hash = stable_hash(self.description)

    @property
    def keeps_pictures(self) -> bool:
        """Whether results are saved: if asked for, or if a metric needs whole sets."""
        return self.protocol.save_pictures or bool(self.meter.set_names)

    def units(self) -> list[Unit]:
        """Return all work; the list is the same in every process."""
        size = self.protocol.batch_size
        starts = range(0, len(self.clean), size)
        faces = [tuple(range(s, min(s + size, len(self.clean)))) for s in starts]
        return [Unit(d, f) for f in faces for d in self.degradations]

    def rows_of(self, unit: Unit) -> list[tuple[str, str]]:
        """Return (degradation, picture) of each of its rows."""
        return [(unit.degradation.label, self.clean.names[i]) for i in unit.faces]

    def originals(self, faces: tuple[int, ...]) -> torch.Tensor:
        """Return clean faces, (B,3,S,S) in [-1,1]."""
        return images.to_tensor(np.stack([self.clean.face(i) for i in faces]))

    def degraded(self, unit: Unit) -> torch.Tensor:
        """Return degraded faces, (B,3,D,D) in [-1,1]; they depend on the protocol alone."""
        label, side = unit.degradation.label, self.protocol.degraded_size
        pixels = []
        for index in unit.faces:
            name = self.clean.names[index]
            if label == GIVEN and self.given is not None:
                pixels.append(self.given.read(name, side))
                continue
            small = images.resize_pixels(self.clean.face(index), (side, side))
            rng = np.random.default_rng(stable_seed(self.protocol.seed, label, name))
            kind, severity = unit.degradation.name, unit.degradation.severity
            pixels.append(degrade(small, kind, rng, severity=severity)[0])
        return images.to_tensor(np.stack(pixels))

    def seeds(self, faces: tuple[int, ...]) -> list[int]:
        """Return the seeds of the restorations, which are the same under every degradation."""
        return [stable_seed(self.protocol.seed, self.clean.names[i]) for i in faces]

    def restore(self, unit: Unit, degraded: torch.Tensor) -> dict[str, MethodResult]:
        """Return what every method makes of degraded faces (B,3,D,D), by method."""
        names = [self.clean.names[i] for i in unit.faces]
        return self.methods(degraded, self.seeds(unit.faces), names, unit.degradation)

    def measure(self, unit: Unit) -> list[Row]:
        """Restore and measure a unit; return a row per face."""
        calls_before = self.methods.calls[1]
        originals, degraded = self.originals(unit.faces), self.degraded(unit)
        results = self.restore(unit, degraded)
        rows: list[Row] = [
            {"degradation": unit.degradation.label, "picture": self.clean.names[i]}
            | {"values": {}, "calls": {}}
            for i in unit.faces
        ]
        if self.protocol.save_pictures:
            self._keep(unit, DEGRADED, degraded)
        for method, result in results.items():
            if self.keeps_pictures:
                self._keep(unit, method, result.pictures)
            values = self.meter.measure(result.pictures, originals)
            for i, row in enumerate(rows):
                row["values"][method] = {name: values[name][i] for name in values}
                row["calls"][method] = result.calls[i]
        if self.compare_clean:
            self._compare_clean(unit.faces, results, rows)
            seen = images.resize_tensor(degraded, self.methods.first_stage_size)
            features = degradation_features(seen).tolist()
            made_calls = (self.methods.calls[1] - calls_before) / len(rows)
            for row, of_face in zip(rows, features, strict=True):
                row |= {"features": of_face, "made_calls": made_calls}
        if self.sampled is not None:
            found = self._calibrate(self.sampled, degraded, self.seeds(unit.faces), originals)
            for row, calibrated in zip(rows, found, strict=True):
                row["uncertainty"] = calibrated
        return rows

    def _compare_clean(
        self, faces: tuple[int, ...], results: dict[str, MethodResult], rows: list[Row]
    ) -> None:
        """Add fidelity and removal, both PSNR in dB: see :class:`Study`."""
        if self._of_clean[0] != faces:
            side = self.protocol.degraded_size
            pixels = [images.resize_pixels(self.clean.face(i), (side, side)) for i in faces]
            clean = images.to_tensor(np.stack(pixels))
            coarse = self.methods.coarse(clean, self.seeds(faces))
            of_clean = {
                name: (kept, psnr(kept, images.resize_tensor(clean, kept.shape[-1])).tolist())
                for name, (kept, _) in coarse.items()
            }
            self._of_clean = faces, of_clean
        for name, result in results.items():
            kept, fidelity = self._of_clean[1][name]
            removal = psnr(result.coarse.cpu(), kept).tolist()
            for i, row in enumerate(rows):
                row["values"][name] |= {"fidelity": fidelity[i], "removal": removal[i]}

    def picture_path(self, degradation: Degradation, method: str, picture: str) -> Path:
        """Return where a result is saved, or an input (the method ``DEGRADED``)."""
        folder = Path(self.protocol.output, "pictures")
        folder = files.safe_join(folder, method.replace("/", "_"))
        return files.safe_join(folder / degradation.folder, png_name(picture))

    def is_done(self, unit: Unit, done: set[tuple[str, str]]) -> bool:
        """Whether all its rows are there, and all its pictures if they are to be saved."""
        if not done.issuperset(self.rows_of(unit)):
            return False
        kept = list(self.methods.configs) if self.keeps_pictures else []
        kept += [DEGRADED] if self.protocol.save_pictures else []
        names = [self.clean.names[i] for i in unit.faces]
        paths = (self.picture_path(unit.degradation, m, name) for m in kept for name in names)
        return all(path.is_file() for path in paths)

    def _keep(self, unit: Unit, method: str, pictures: torch.Tensor) -> None:
        for i, pixels in zip(unit.faces, images.to_uint8(pictures), strict=True):
            path = self.picture_path(unit.degradation, method, self.clean.names[i])
            images.write_png(path, pixels)

    def _calibrate(
        self, restorer: Restorer, degraded: torch.Tensor, seeds: list[int], originals: torch.Tensor
    ) -> list[dict[str, Any] | None]:
        """Compare, for each face, the spread of its samples with their true error.

        None where the automatic setting left stage 1 out: equal samples have no spread.
        """
        if self.methods.configs[self.main].contrast is not None:
            degraded = stretched(degraded)
        inputs = images.resize_tensor(degraded, restorer.input_size)
        count = self.protocol.uncertainty_samples or 2
        samples = sample_restorer(restorer, inputs, seeds, count)
        mean = images.resize_tensor(samples.mean.cpu(), self.protocol.size)
        # Bicubic enlarging may go below 0 beside an edge.
        spread = images.resize_tensor(samples.spread.cpu(), self.protocol.size).clamp(min=0)
        error = (mean - originals).abs().mean(dim=1, keepdim=True)
        return [
            calibration(s, e) if varies else None
            for s, e, varies in zip(spread, error, samples.varies, strict=True)
        ]

    def _method(self, name: str | None, position: int) -> str:
        known = list(self.methods.configs)
        if name is not None and name not in known:
            raise ConfigError(f"no method '{name}'; the protocol has {', '.join(known)}")
        return name or known[position]

    def _check_partners(self) -> list[str]:
        """Return a hash of each folder of pictures of other tools; every picture is read once."""
        p = self.protocol
        wanted = [(self.given, p.degraded_size)] if self.given is not None else []
        wanted += [(made, p.size) for made in self.methods.made.values()]
        names = self.clean.names
        return [
            stable_hash([images.hash_bytes(folder.read(n, side).tobytes()) for n in names])
            for folder, side in wanted
        ]

    def _given(self) -> PartnerFolder | None:
        folder = self.protocol.clean.degraded
        return None if folder is None else PartnerFolder(folder, self.clean.names, self.clean.files)

    def _inputs(self, degradation: Degradation) -> dict[str, Path]:
        """The files of degraded faces by name, of which other tools made their results."""
        names = self.clean.names
        if degradation.label == GIVEN and self.given is not None:
            return {name: self.given.path(name) for name in names}
        folder = Path(self.protocol.output, "pictures", DEGRADED, degradation.folder)
        return {name: folder / kept_name(name) for name in names}

    def _check_names(self) -> None:
        """Raise Dr2pipeError unless every picture has a file of its own, below the output."""
        methods = [*self.methods.configs, DEGRADED]
        folders = {self.picture_path(self.degradations[0], m, "x").parent for m in methods}
        if len(folders) < len(methods):
            raise ConfigError(
                f"methods must differ in their names as folders: {', '.join(methods)}"
            )
        owners: dict[Path, str] = {}
        for name in self.clean.names:
            path = self.picture_path(self.degradations[0], DEGRADED, name)
            other = owners.setdefault(path, name)
            if other != name:
                raise ConfigError(f"{other} and {name} would both be kept as {path.name}")

    def _describe(self) -> dict[str, Any]:
        """Return everything that decides a value."""
        p = self.protocol
        return {
            "name": p.name,
            "clean": {"faces": self.clean.sha256, "crop": p.clean.crop},
            "made_elsewhere": self.made_elsewhere,
            "size": p.size,
            "degraded_size": p.degraded_size,
            "degradations": {
                d.label: {"severity": d.severity, "ranges": describe_chain(d.name)}
                for d in self.degradations
                if d.label != GIVEN
            },
            "seed": p.seed,
            "methods": self.methods.describe(),
            "metrics": self.meter.versions(),
            "uncertainty": {"samples": p.uncertainty_samples, "of": self.main},
            "precision": p.precision,
        }


def run_study(study: Study, write_results: WriteResults) -> str | None:
    """Do what is missing; then the main process writes the results from all rows.

    Args:
        study: what to do.
        write_results: called with the study, all rows and the output folder.

    Returns:
        What ``write_results`` returns ("" in other processes), or None when interrupted.

    Raises:
        ConfigError: the output folder or one of ``merge`` holds results of another protocol.
    """
    state = process_state()
    output = Path(study.protocol.output)
    with files.locked(output, wanted=state.is_main_process):
        if state.is_main_process:
            for name, reason in study.left_out.items():
                logger.warning("the metric %s is left out: it %s", name, reason)
            _prepare(study, output)
        state.wait_for_everyone()
        done = {(row["degradation"], row["picture"]) for row in read_rows(output / ROWS)}
        # By place among all units, so that processes agree, whatever each of them finds done.
        mine = study.units()[state.process_index :: state.num_processes]
        missing = [unit for unit in mine if not study.is_done(unit, done)]
        _work(study, missing, output / ROWS, show_progress=state.is_main_process)
        state.wait_for_everyone()
        rows = read_rows(output / ROWS)
        if len(rows) < len(study.clean) * len(study.degradations):
            return None
        result = write_results(study, rows, output) if state.is_main_process else ""
        state.wait_for_everyone()
    return result


def _work(study: Study, units: list[Unit], path: Path, *, show_progress: bool) -> None:
    stopped: list[bool] = []

    def stop() -> None:
        stopped.append(True)
        logger.warning("stopping after the batch in flight; the same command goes on later")

    total = sum(len(unit.faces) for unit in units)
    with (
        stop_signals_caught(stop),
        tqdm(total=total, unit="picture", disable=not show_progress) as progress,
    ):
        for unit in units:
            if stopped:
                break
            append_jsonl(path, study.measure(unit))
            progress.update(len(unit.faces))


def _prepare(study: Study, output: Path) -> None:
    """Refuse results of other protocols, copy the rows of ``merge``, and write ``run.yaml``."""
    for folder in [output, *map(Path, study.protocol.merge)]:
        found = read_hash(folder)
        if found is None and folder != output:
            raise ConfigError(f"{folder} holds no results of a protocol")
        if found not in (None, study.hash):
            raise ConfigError(
                f"{folder} holds results of another protocol ({found}, this one is {study.hash}): "
                f"its pictures, settings, weights or metrics differ; choose another output"
            )
    clean = {"crop": study.protocol.clean.crop, "faces": "see clean.sha256"}
    described = {
        "kind": KIND,
        "protocol_hash": study.hash,
        "config": to_dict(study.protocol),
        "protocol": study.description | {"clean": clean},
        "versions": versions(),
    }
    # First: without it, the rest would be another program's to the next run.
    content = to_yaml(marked(described, RESULT_FOLDERS)).encode()
    files.write_bytes(output / MARKER, content)
    set_damaged_aside(output / ROWS)
    rows = read_rows(output / ROWS)
    for merged in study.protocol.merge:
        rows += read_rows(Path(merged) / ROWS)
    # Written anew, because a killed run may have left half a line.
    files.write_bytes(output / ROWS, to_jsonl(rows))
    files.write_bytes(output / "clean.sha256", write_hashes(study.clean.sha256))
