"""The results of a sweep as arrays, read back from its output folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dr2pipe.core.errors import ConfigError
from dr2pipe.core.foreign import read_csv, read_object
from dr2pipe.diffusion.auto import FloatArray
from dr2pipe.diffusion.degradation_features import FEATURES

# What a setting is chosen by, in dB: 0.05 of SSIM or of LPIPS counts as much as 1 dB. Without LPIPS,
# smooth faces that keep some noise would win over clean ones.
SCORE_WEIGHTS = {"psnr": 1.0, "ssim": 20.0, "lpips_alex": -20.0}


@dataclass(frozen=True)
class SweepTable:
    """The results of a sweep as arrays. A row R is a face under one degradation.

    Attributes:
        features: (R,F) of the degraded pictures.
        values: ``psnr``, ``ssim``, ``network_calls``, and ``lpips_alex`` if the sweep measured it,
            each (R,candidates).
        faces: (R,) names of the faces.
        candidates: the settings that were tried.
        model_sha256: of the DDPM.
        sweep: hash of the sweep.
        rows: (degradation, picture) of each row.
    """

    features: FloatArray
    values: dict[str, FloatArray]
    faces: npt.NDArray[np.str_]
    candidates: list[dict[str, Any]]
    model_sha256: str
    sweep: str
    rows: list[tuple[str, str]] = field(default_factory=list)

    @property
    def scores(self) -> FloatArray:
        """(R,candidates), what the automatic setting maximises, in dB: see ``score_text``."""
        return sum((w * self.values[m] for m, w in self._weights().items()), start=np.zeros(()))

    @property
    def score_text(self) -> str:
        """The formula of the scores, such as ``+1 psnr +20 ssim -20 lpips_alex``."""
        terms = (f"{w:+g} {metric}" for metric, w in self._weights().items())
        return " ".join(terms)

    def _weights(self) -> dict[str, float]:
        return {metric: w for metric, w in SCORE_WEIGHTS.items() if metric in self.values}


def read_sweeps(folders: Sequence[str | Path]) -> SweepTable:
    """The rows of several sweeps of the same settings, for instance with other seeds, as of one.

    Raises:
        ConfigError: as of :func:`read_sweep`, or sweeps of other models, settings or metrics.
    """
    tables = [read_sweep(folder) for folder in folders]
    first = tables[0]
    for folder, table in zip(folders, tables, strict=True):
        same = (table.model_sha256, table.candidates, set(table.values))
        if same != (first.model_sha256, first.candidates, set(first.values)):
            raise ConfigError(f"{folder} has another model, settings or metrics than {folders[0]}")
    if len(tables) == 1:
        return first
    return dataclasses.replace(
        first,
        features=np.concatenate([table.features for table in tables]),
        values={k: np.concatenate([table.values[k] for table in tables]) for k in first.values},
        faces=np.concatenate([table.faces for table in tables]),
        sweep=" ".join(table.sweep for table in tables),
        rows=[row for table in tables for row in table.rows],
    )


def read_sweep(folder: str | Path) -> SweepTable:
    """Read what ``sweep`` left in a folder.

    Raises:
        ConfigError: a missing file or column, or a sweep of several models.
    """
    folder = Path(folder)
    for name in ("summary.json", "results.csv", "features.csv"):
        if not (folder / name).is_file():
            raise ConfigError(
                f"{folder} holds no finished sweep: {name} is missing. "
                f"Run 'dr2pipe sweep' to its end first"
            )
    try:
        summary = read_object(folder / "summary.json", max_bytes=1 << 28)
        results, features = (read_csv(folder / n) for n in ("results.csv", "features.csv"))
        points = {point["id"]: point["settings"] for point in summary["points"]}
        described = summary["settings"]["methods"].values()
        first_stages = [m["dr2"] for m in described if "dr2" in m]
        models = {dr2["weights_sha256"]["dr2"] for dr2 in first_stages}
        places = {(row["degradation"], row["picture"]): i for i, row in enumerate(features)}
        columns = {name: i for i, name in enumerate(points)}
        measured = [name for name in SCORE_WEIGHTS if name in (results or [{}])[0]]
        values = {
            name: np.full((len(places), len(columns)), np.nan)
            for name in dict.fromkeys(["psnr", "ssim", "network_calls", *measured])
        }
        for row in results:
            place = places[row["degradation"], row["picture"]], columns[row["point"]]
            for name, array in values.items():
                array[place] = float(row[name])
        table = np.array([[float(row[name]) for name in FEATURES] for row in features])
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{folder} holds no finished sweep to fit on: {error!r}") from None
    if len(models) != 1 or any(np.isnan(array).any() for array in values.values()):
        raise ConfigError(f"{folder}: every face must have met every setting of one model")
    num_steps = first_stages[0]["num_steps"]
    return SweepTable(
        features=table,
        values=values,
        faces=np.array([row["picture"] for row in features]),
        candidates=[settings | {"num_steps": num_steps} for settings in points.values()],
        model_sha256=models.pop(),
        sweep=summary["hash"],
        rows=list(places),
    )
