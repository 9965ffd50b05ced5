"""The metrics of a study, loaded once; those that lack something are left out and say why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from dr2pipe.core import files, images
from dr2pipe.core.extras import needs_extra
from dr2pipe.metrics import FILES, METRICS, check_metrics, measure

with needs_extra("evaluate"):
    import torchmetrics

_SET_BATCH = 16
_BY_TORCHMETRICS = ("ssim", "ms_ssim", "kid")  # all others are computed here


class Meter:
    """Measures restored faces against their originals.

    Args:
        names: of ``METRICS``; their files must be there.
        paths: of weights, by the names of ``FILES``.
        size: side of the pictures in pixels.

    Raises:
        ValueError: an unknown metric or file, a missing file, one that holds something else,
            or pictures that are too small; the message names it.
    """

    def __init__(self, names: list[str], paths: Mapping[str, str], size: int):
        check_metrics(names, size)
        _check_paths(paths)
        self.paths = dict(paths)
        self.metrics, self.set_metrics = {}, {}
        for name in names:
            missing = missing_for(name, paths)
            if missing:
                raise ValueError(f"{name} {missing}")
            metric = METRICS[name]
            place = self.set_metrics if metric.of_sets else self.metrics
            try:
                place[name] = metric.load(*(paths[need] for need in metric.needs))
            except ImportError as error:
                raise ValueError(f"{name} cannot import {metric.package}: {error}") from None

    @property
    def set_names(self) -> tuple[str, ...]:
        """Metrics of whole sets, which have no value for one picture."""
        return tuple(self.set_metrics)

    def measure(
        self, restored: torch.Tensor, original: torch.Tensor, mask: torch.Tensor | None = None
    ) -> dict[str, list[float]]:
        """Values by name, one per picture: see :func:`dr2pipe.metrics.measure`."""
        return measure(restored, original, self.metrics, mask)

    @torch.no_grad()
    def set_features(self, pictures: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
        """(N,F) of pictures (1,3,H,W) in [-1,1] by metric of whole sets.

        No more than a batch of pictures is held; metrics of the same files share features.
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
        """FID and KID from what :meth:`set_features` returns."""
        return {
            name: distance(restored[name], originals[name])
            for name, (_, distance) in self.set_metrics.items()
        }

    def versions(self) -> dict[str, Any]:
        """By metric, what its values depend on: its files' sha256, and torchmetrics' version."""
        described: dict[str, Any] = {}
        for name in [*self.metrics, *self.set_metrics]:
            described[name] = {n: files.sha256(self.paths[n]) for n in METRICS[name].needs}
            if name in _BY_TORCHMETRICS:
                described[name]["torchmetrics"] = torchmetrics.__version__
        return described


def available(
    names: list[str] | None, paths: Mapping[str, str], size: int
) -> tuple[list[str], dict[str, str]]:
    """The metrics to compute; with None, all that can be, and why the others cannot.

    Raises:
        ValueError: an empty list, an unknown name, or something missing for a named metric.
    """
    _check_paths(paths)
    if names is not None:
        if not names:
            raise ValueError(f"metrics must name at least one of {', '.join(METRICS)}")
        check_metrics(names, size)
        lacking = {name: missing_for(name, paths) for name in names}
        for name, missing in lacking.items():
            if missing:
                raise ValueError(f"{name} {missing}")
        return list(dict.fromkeys(names)), {}
    reasons = {}
    for name, metric in METRICS.items():
        if size < metric.least_side_px:
            reasons[name] = f"needs pictures of {metric.least_side_px} pixels or more"
        else:
            reasons[name] = missing_for(name, paths)
    left_out = {name: reason for name, reason in reasons.items() if reason}
    return [name for name in METRICS if name not in left_out], left_out


def missing_for(name: str, paths: Mapping[str, str]) -> str | None:
    """What a metric lacks, in words that tell how to get it; None for nothing."""
    metric = METRICS[name]
    for need in metric.needs:
        path = paths.get(need)
        if path is None:
            return f"needs metric_files.{need}: {FILES[need]}"
        if not Path(path).exists():
            return f"finds nothing at {path} (metric_files.{need}): {FILES[need]}"
    if metric.package and find_spec(metric.package.replace("-", "_")) is None:
        return f"needs {metric.package}: pip install 'dr2pipe[metrics]'"
    return None


def _check_paths(paths: Mapping[str, str]) -> None:
    unknown = [name for name in paths if name not in FILES]
    if unknown:
        raise ValueError(f"unknown metric_files.{unknown[0]}; choose from {', '.join(FILES)}")
