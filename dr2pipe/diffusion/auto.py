"""DR2's settings chosen for each picture, by how it seems to be degraded.

For every candidate setting, a ridge regression on features of the degraded picture predicts
the score it would reach; the candidate with the best prediction is taken. It is fitted on the
results of a sweep, where every face met every candidate. A picture unlike all of those gets the
candidate that was best for the worst of them: predictions mean nothing there, and DR2 is for
damage that nobody foresaw.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dr2pipe.core import files
from dr2pipe.core.errors import ConfigError
from dr2pipe.core.models import find_file
from dr2pipe.diffusion.degradation_features import FEATURES, degradation_features

SCORE = "psnr + 20 ssim"  # 0.05 of SSIM counts as much as 1 dB
_STRENGTHS = tuple(10.0**k for k in range(-1, 5))  # of the ridge, to choose from
_FOLDS = 5
# What tells damage from a subject: bright clothes or a colourful room are no strange damage.
_DAMAGE = ("noise", "colour_noise", "blockiness", "direction")
_MARGIN = 0.1  # of the range of a feature, by which a picture may lie outside


@dataclass(frozen=True)
class AutoSetting:
    """What ``auto`` needs to choose.

    Attributes:
        model_sha256: of the DDPM whose sweep it was fitted on.
        sweep: its hash.
        candidates: settings of :class:`dr2pipe.restoration.restorer.DR2Config`; ``enabled`` false leaves
            stage 1 out.
        fixed: place of the candidate that is best on average.
        fallback: place of the candidate that is best for the third of pictures with the lowest
            scores.
        mean, scale: (F,) of the features.
        low, high: (F,), between which a picture's features are familiar; not all are looked at.
        weights: (2F+1, candidates) of the ridge on standardised features, their squares and 1.
        deviation: (candidates,), cross-validated deviation of the predicted lead over ``fixed``.
    """

    model_sha256: str
    sweep: str
    candidates: list[dict[str, Any]]
    fixed: int
    fallback: int
    mean: list[float]
    scale: list[float]
    low: list[float]
    high: list[float]
    weights: list[list[float]]
    deviation: list[float]

    def choose(self, pictures: torch.Tensor) -> list[tuple[int, float]]:
        """For each of (B,3,S,S) in [-1,1], the place of a candidate and the confidence in it.

        The confidence, 0.5 to 1, is the estimated probability that the candidate scores
        higher than the best fixed one (the best fixed one itself: than the runner-up). It is
        0.5 for a picture whose features are unfamiliar.
        """
        features = degradation_features(pictures).numpy()
        scores = _inputs(features, np.array(self.mean), np.array(self.scale)) @ self.weights
        looked_at = np.array([name in _DAMAGE for name in FEATURES])
        outside = (features < self.low) | (features > self.high)
        familiar = ~(outside & looked_at).any(axis=1)
        chosen = []
        for row, is_familiar in zip(scores, familiar, strict=True):
            if not is_familiar:
                chosen.append((self.fallback, 0.5))
                continue
            best = int(row.argmax())
            other = self.fixed if best != self.fixed else int(row.argsort()[-2])
            deviation = self.deviation[best if best != self.fixed else other]
            lead = (row[best] - row[other]) / max(deviation, 1e-9)
            chosen.append((best, 0.5 * (1 + math.erf(lead / math.sqrt(2)))))
        return chosen


@dataclass(frozen=True)
class SweepTable:
    """A sweep as arrays: features (R,F), scores and other values (R,candidates), faces (R,)."""

    features: np.ndarray
    values: dict[str, np.ndarray]  # psnr, ssim, network_calls
    faces: np.ndarray
    candidates: list[dict[str, Any]]
    model_sha256: str
    sweep: str
    rows: list[tuple[str, str]] = field(default_factory=list)  # degradation, picture

    @property
    def scores(self) -> np.ndarray:
        return self.values["psnr"] + 20 * self.values["ssim"]


def fit_auto(table: SweepTable) -> tuple[AutoSetting, dict[str, dict[str, float]]]:
    """Also returns the cross-validated means of ``auto`` and of the best ``fixed`` candidate.

    Both are chosen on the other faces of each fold, so neither has seen the face it is judged by.
    """
    scores = table.scores
    relative = scores - scores.mean(axis=1, keepdims=True)  # how good a face is, is no choice
    fold = _folds(table.faces)
    errors = {}
    for strength in _STRENGTHS:
        predicted = _cross_predict(table.features, relative, fold, strength)
        errors[strength] = float(((predicted - relative) ** 2).mean())
    strength = min(errors, key=errors.get)
    predicted = _cross_predict(table.features, relative, fold, strength)
    fixed = int(scores.mean(axis=0).argmax())
    lead_error = (predicted - predicted[:, [fixed]]) - (relative - relative[:, [fixed]])
    mean, scale = table.features.mean(axis=0), table.features.std(axis=0) + 1e-9
    weights = _ridge(_inputs(table.features, mean, scale), relative, strength)
    low, high = table.features.min(axis=0), table.features.max(axis=0)
    margin = _MARGIN * (high - low)
    worst = scores.mean(axis=1).argsort()[: max(len(scores) // 3, 1)]
    setting = AutoSetting(
        table.model_sha256,
        table.sweep,
        table.candidates,
        fixed,
        int(scores[worst].mean(axis=0).argmax()),
        mean.tolist(),
        scale.tolist(),
        (low - margin).tolist(),
        (high + margin).tolist(),
        weights.tolist(),
        np.sqrt((lead_error**2).mean(axis=0)).tolist(),
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
    """What ``sweep`` left in a folder.

    Raises:
        ConfigError: a missing file or column, or a sweep of several models.
    """
    folder = Path(folder)
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        results, features = (_rows(folder / n) for n in ("results.csv", "features.csv"))
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
    except (OSError, KeyError, ValueError) as error:
        raise ConfigError(f"{folder} holds no finished sweep to fit on: {error!r}") from None
    if len(models) != 1 or any(np.isnan(array).any() for array in values.values()):
        raise ConfigError(f"{folder}: every face must have met every setting of one model")
    num_steps = first_stages[0]["num_steps"]
    candidates = [settings | {"num_steps": num_steps} for settings in points.values()]
    faces = np.array([row["picture"] for row in features])
    sources = models.pop(), summary["hash"]
    return SweepTable(table, values, faces, candidates, *sources, rows=list(places))


def save_auto(setting: AutoSetting, path: str | Path) -> None:
    content = {"score": SCORE, "features": list(FEATURES)} | dataclasses.asdict(setting)
    files.write_bytes(path, (json.dumps(content, indent=1) + "\n").encode())


def load_auto(name: str) -> tuple[AutoSetting, Path]:
    """From a JSON file by path, or by its name in ``checkpoints/`` without ``.json``.

    Raises:
        ConfigError: no such file, or one that was not written by :func:`save_auto`.
    """
    path = find_file("checkpoints", name, what="automatic setting", suffix=".json")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        features, score = content.pop("features"), content.pop("score")
        setting = AutoSetting(**content)
        shape = np.array(setting.weights, dtype=float).shape
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{path} is no automatic setting: {error}") from None
    count = len(setting.candidates)
    if (features, score) != (list(FEATURES), SCORE) or shape != (2 * len(FEATURES) + 1, count):
        raise ConfigError(f"{path} was fitted by another version; fit it again")
    return setting, path


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _inputs(features: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    x = np.clip((features - mean) / scale, -4, 4)  # unheard-of pictures must not extrapolate
    return np.concatenate([x, x**2, np.ones((len(x), 1))], axis=1)


def _ridge(x: np.ndarray, y: np.ndarray, strength: float) -> np.ndarray:
    penalty = strength * np.eye(x.shape[1])
    penalty[-1, -1] = 0  # not the constant
    return np.linalg.solve(x.T @ x + penalty, x.T @ y)


def _folds(faces: np.ndarray) -> np.ndarray:
    """(R,), all rows of a face in one fold."""
    _, number = np.unique(faces, return_inverse=True)
    if number.max() + 1 < _FOLDS:
        raise ConfigError(f"fitting takes {_FOLDS} faces or more, not {number.max() + 1}")
    return number % _FOLDS


def _cross_predict(
    features: np.ndarray, y: np.ndarray, fold: np.ndarray, strength: float
) -> np.ndarray:
    predicted = np.empty_like(y)
    for k in range(_FOLDS):
        seen = fold != k
        mean, scale = features[seen].mean(axis=0), features[seen].std(axis=0) + 1e-9
        weights = _ridge(_inputs(features[seen], mean, scale), y[seen], strength)
        predicted[~seen] = _inputs(features[~seen], mean, scale) @ weights
    return predicted
