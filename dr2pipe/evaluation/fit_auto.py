"""Fit the automatic setting on the results of a sweep, where every face met every candidate."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dr2pipe.core import files
from dr2pipe.core.errors import ConfigError
from dr2pipe.diffusion.auto import (
    STRUCTURE,
    AutoSetting,
    FloatArray,
    distances_between,
    predict,
    regression_inputs,
    structure_of,
)
from dr2pipe.diffusion.degradation_features import FEATURES
from dr2pipe.evaluation.sweep_table import SweepTable, read_sweeps

_STRENGTHS = tuple(10.0**k for k in range(-1, 5))  # of the ridge, to choose from
_FOLDS = 5
_FAMILIAR = 0.95  # of the faces of the sweep, by the nearest one of another face


def fit_from_sweeps(folders: Sequence[str | Path], path: str | Path) -> str:
    """Fit the automatic setting on what ``sweep`` left in the folders, and write it to ``path``.

    Returns:
        How it does on faces left out, as text.

    Raises:
        ConfigError: a folder holds no finished sweep, they do not belong together, or hold too few
            faces.
    """
    table = read_sweeps(folders)
    setting, means = fit_auto(table)
    save_auto(setting, path, table.score_text)
    faces = len(set(table.faces))
    lines = [
        f"{faces} faces, {len(table.rows)} rows, {len(table.candidates)} settings, "
        f"score {table.score_text}"
    ]
    for how, values in means.items():
        text = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        lines.append(f"{how}, on faces left out: {text}")
    return "\n".join(lines)


def fit_auto(
    table: SweepTable, columns: Sequence[int] = STRUCTURE
) -> tuple[AutoSetting, dict[str, dict[str, float]]]:
    """Fit what predicts each candidate's score from features.

    Args:
        table: of one sweep or several.
        columns: of the features, by which faces are near each other, and whose products count.

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
    fold, rows = _folds(table.faces), np.arange(len(scores))
    reached = []  # by each strength, on faces left out
    for strength in _STRENGTHS:
        predicted = _cross_predict(table.features, relative, fold, strength, columns)
        reached.append(scores[rows, predicted.argmax(axis=1)])
    strength = _STRENGTHS[_strongest_good(reached)]
    predicted = _cross_predict(table.features, relative, fold, strength, columns)
    fixed = int(scores.mean(axis=0).argmax())
    mean, scale = _standard(table.features)
    weights = _ridge(regression_inputs(table.features, mean, scale, columns), relative, strength)
    structure = structure_of(table.features, mean, scale, columns)
    inverse, known = _inverse_covariance(structure), structure.round(2)
    distances = distances_between(known, known, inverse)
    distances[table.faces[:, None] == table.faces] = np.inf
    worst = scores.mean(axis=1).argsort()[: max(len(scores) // 3, 1)]
    setting = AutoSetting(
        model_sha256=table.model_sha256,
        sweep=table.sweep,
        candidates=table.candidates,
        fixed=fixed,
        fallback=int(scores[worst].mean(axis=0).argmax()),
        mean=mean.tolist(),
        scale=scale.tolist(),
        inverse=inverse.tolist(),
        known=known.tolist(),
        known_scores=relative.round(1).tolist(),
        farthest=float(np.quantile(distances.min(axis=1), _FAMILIAR)),
        weights=weights.tolist(),
        deviation=_deviations(
            predicted - predicted[:, [fixed]], relative - relative[:, [fixed]]
        ).tolist(),
    )
    by_fold = [scores[fold != k].mean(axis=0).argmax() for k in range(_FOLDS)]
    picks = {"auto": predicted.argmax(axis=1), "fixed": np.array(by_fold)[fold]}
    means = {
        how: {name: float(v[rows, pick].mean()) for name, v in table.values.items()}
        for how, pick in picks.items()
    }
    return setting, means


def save_auto(setting: AutoSetting, path: str | Path, score: str) -> None:
    """Write a setting as JSON, for :func:`dr2pipe.diffusion.auto.load_auto`.

    ``score`` tells readers by what it was fitted.
    """
    content = {"score": score, "features": list(FEATURES)} | dataclasses.asdict(setting)
    lines = [f"{json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in content.items()]
    files.write_bytes(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def _deviations(predicted: FloatArray, true: FloatArray) -> FloatArray:
    """(candidates,) of the error of predicted leads (R,candidates), in their own unit.

    Neighbours see less of a lead than there is. So the predictions are stretched first, by least
    squares, and the error is squeezed by as much.
    """
    stretch = (predicted * true).sum(axis=0) / np.maximum((predicted**2).sum(axis=0), 1e-9)
    stretch = np.maximum(stretch, 0.1)
    deviations: FloatArray = np.sqrt(((stretch * predicted - true) ** 2).mean(axis=0)) / stretch
    return deviations


def _standard(features: FloatArray) -> tuple[FloatArray, FloatArray]:
    return features.mean(axis=0), features.std(axis=0) + 1e-9


def _inverse_covariance(x: FloatArray) -> FloatArray:
    covariance = np.cov(x.T) + 1e-3 * np.eye(x.shape[1])  # features may depend on each other
    return np.linalg.inv(covariance).astype(np.float64)


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


def _strongest_good(reached: list[FloatArray]) -> int:
    """The last of the lists of scores that is within a standard error of the best.

    The one standard error rule (Breiman et al., 1984): a strong penalty does better on other damage.
    """
    best = max(reached, key=lambda scores: float(scores.mean()))
    losses = [best - scores for scores in reached]
    good = [loss.mean() <= loss.std() / math.sqrt(len(loss)) for loss in losses]
    return max(i for i, is_good in enumerate(good) if is_good)


def _cross_predict(
    features: FloatArray,
    y: FloatArray,
    fold: npt.NDArray[np.intp],
    strength: float,
    columns: Sequence[int],
) -> FloatArray:
    predicted = np.empty_like(y)
    for k in range(_FOLDS):
        seen = fold != k
        mean, scale = _standard(features[seen])
        weights = _ridge(regression_inputs(features[seen], mean, scale, columns), y[seen], strength)
        x = structure_of(features, mean, scale, columns)
        predicted[~seen] = predict(
            regression_inputs(features[~seen], mean, scale, columns) @ weights,
            distances_between(x[~seen], x[seen], _inverse_covariance(x[seen])),
            y[seen],
        )
    return predicted
