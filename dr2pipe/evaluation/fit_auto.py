"""Fit the automatic setting on the results of a sweep, where every face met every candidate."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dr2pipe.core import files
from dr2pipe.core.errors import ConfigError
from dr2pipe.core.foreign import read_csv, read_object
from dr2pipe.diffusion.auto import SCORE, AutoSetting, FloatArray, regression_inputs
from dr2pipe.diffusion.degradation_features import FEATURES

_STRENGTHS = tuple(10.0**k for k in range(-1, 5))  # of the ridge, to choose from
_FOLDS = 5
_MARGIN = 0.1  # of the range of a feature, by which a familiar picture may lie outside


@dataclass(frozen=True)
class SweepTable:
    """The results of a sweep as arrays. A row R is a face under one degradation.

    Attributes:
        features: (R,F) of the degraded pictures.
        values: ``psnr``, ``ssim`` and ``network_calls``, each (R,candidates).
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
        """(R,candidates), what the automatic setting maximises, see ``SCORE``."""
        return self.values["psnr"] + 20 * self.values["ssim"]


def fit_from_sweep(folder: str | Path, path: str | Path) -> str:
    """Fit the automatic setting on what ``sweep`` left in ``folder``, and write it to ``path``.

    Returns:
        How it does on faces left out, as text.

    Raises:
        ConfigError: the folder holds no finished sweep, or too few faces.
    """
    table = read_sweep(folder)
    setting, means = fit_auto(table)
    save_auto(setting, path)
    faces = len(set(table.faces))
    lines = [f"{faces} faces, {len(table.candidates)} settings, score {SCORE}"]
    for how, values in means.items():
        text = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        lines.append(f"{how}, on faces left out: {text}")
    return "\n".join(lines)


def fit_auto(table: SweepTable) -> tuple[AutoSetting, dict[str, dict[str, float]]]:
    """Fit the regression that predicts each candidate's score from features.

    Returns:
        The setting, and the cross-validated means of ``values`` by ``auto`` and by the best
        ``fixed`` candidate. Both are chosen on the other faces of each fold, so neither has
        seen the face it is judged by.

    Raises:
        ConfigError: fewer than 5 faces.
    """
    scores = table.scores
    # Only differences between candidates matter: how good a face is, is no choice.
    relative = scores - scores.mean(axis=1, keepdims=True)
    fold = _folds(table.faces)
    errors = {}
    for strength in _STRENGTHS:
        predicted = _cross_predict(table.features, relative, fold, strength)
        errors[strength] = float(((predicted - relative) ** 2).mean())
    strength = min(errors, key=lambda strength: errors[strength])
    predicted = _cross_predict(table.features, relative, fold, strength)
    fixed = int(scores.mean(axis=0).argmax())
    lead_error = (predicted - predicted[:, [fixed]]) - (relative - relative[:, [fixed]])
    mean, scale = _standard(table.features)
    weights = _ridge(regression_inputs(table.features, mean, scale), relative, strength)
    low, high = table.features.min(axis=0), table.features.max(axis=0)
    margin = _MARGIN * (high - low)
    worst = scores.mean(axis=1).argsort()[: max(len(scores) // 3, 1)]
    setting = AutoSetting(
        model_sha256=table.model_sha256,
        sweep=table.sweep,
        candidates=table.candidates,
        fixed=fixed,
        fallback=int(scores[worst].mean(axis=0).argmax()),
        mean=mean.tolist(),
        scale=scale.tolist(),
        low=(low - margin).tolist(),
        high=(high + margin).tolist(),
        weights=weights.tolist(),
        deviation=np.sqrt((lead_error**2).mean(axis=0)).tolist(),
    )
    rows = np.arange(len(scores))
    by_fold = [scores[fold != k].mean(axis=0).argmax() for k in range(_FOLDS)]
    picks = {"auto": predicted.argmax(axis=1), "fixed": np.array(by_fold)[fold]}
    means = {
        how: {name: float(v[rows, pick].mean()) for name, v in table.values.items()}
        for how, pick in picks.items()
    }
    return setting, means


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
        values = {
            name: np.full((len(places), len(columns)), np.nan)
            for name in ("psnr", "ssim", "network_calls")
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


def save_auto(setting: AutoSetting, path: str | Path) -> None:
    """Write a setting as JSON, for :func:`dr2pipe.diffusion.auto.load_auto`."""
    content = {"score": SCORE, "features": list(FEATURES)} | dataclasses.asdict(setting)
    files.write_bytes(path, (json.dumps(content, indent=1) + "\n").encode())


def _standard(features: FloatArray) -> tuple[FloatArray, FloatArray]:
    return features.mean(axis=0), features.std(axis=0) + 1e-9


def _ridge(x: FloatArray, y: FloatArray, strength: float) -> FloatArray:
    penalty = strength * np.eye(x.shape[1])
    penalty[-1, -1] = 0  # the constant is free
    return np.linalg.solve(x.T @ x + penalty, x.T @ y).astype(np.float64)


def _folds(faces: npt.NDArray[np.str_]) -> npt.NDArray[np.intp]:
    """Return (R,) numbers of folds; all rows of a face are in one."""
    _, number = np.unique(faces, return_inverse=True)
    if number.max() + 1 < _FOLDS:
        raise ConfigError(f"fitting takes {_FOLDS} faces or more, not {number.max() + 1}")
    return number % _FOLDS


def _cross_predict(
    features: FloatArray, y: FloatArray, fold: npt.NDArray[np.intp], strength: float
) -> FloatArray:
    predicted = np.empty_like(y)
    for k in range(_FOLDS):
        seen = fold != k
        mean, scale = _standard(features[seen])
        weights = _ridge(regression_inputs(features[seen], mean, scale), y[seen], strength)
        predicted[~seen] = regression_inputs(features[~seen], mean, scale) @ weights
    return predicted
