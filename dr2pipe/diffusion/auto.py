"""The automatic setting: settings of DR2 chosen for each picture, by how it seems degraded.

The score that every candidate setting would reach is predicted from features of the degraded picture:
by a ridge regression, and by the nearest faces of a sweep, where every face met every candidate
(:mod:`dr2pipe.evaluation.fit_auto`). The mean of the two is better than each, above all for damage that
the sweep did not have. The candidate with the best prediction is taken.

Predictions mean nothing for a picture unlike all faces of the sweep, by the Mahalanobis distance to
the nearest one. It gets the fallback: the candidate that was best for the third of the faces with the
lowest scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dr2pipe.core.errors import ConfigError
from dr2pipe.core.foreign import read_object
from dr2pipe.core.models import find_file
from dr2pipe.diffusion.degradation_features import FEATURES, degradation_features

# Bright clothes or a colourful room are no damage.
_TONES = ("normalised_brightness", "normalised_contrast", "saturation", "dark", "bright")
STRUCTURE = [i for i, name in enumerate(FEATURES) if name not in _TONES]
INPUTS = 2 * len(FEATURES) + math.comb(len(STRUCTURE), 2) + 1  # of the regression

FloatArray = npt.NDArray[np.float64]
_NEAREST = 8
_LARGE_PART = 0.2  # of a distance, from which on a feature is named


@dataclass(frozen=True)
class AutoSetting:
    """What ``auto`` needs to choose. F is the number of features.

    Attributes:
        model_sha256: of the DDPM whose sweep it was fitted on.
        sweep: hash of the sweep.
        candidates: settings of :class:`dr2pipe.diffusion.stage1.DR2Config`; ``enabled`` false
            leaves stage 1 out.
        fixed: index of the candidate that is best on average.
        fallback: index of the candidate that is best for the third of pictures with the lowest
            scores.
        mean: (F,) mean of the features.
        scale: (F,) deviation of the features.
        inverse: (S,S) inverse covariance of the S standardised features that are not tones.
        known: (K,S) these features of the sweep's faces.
        known_scores: (K,candidates) what they reached, less the mean of the candidates.
        farthest: the largest familiar distance (Mahalanobis, squared) to the nearest of them.
        weights: (INPUTS, candidates) of the ridge, for the inputs of :func:`regression_inputs`.
        deviation: (candidates,) cross-validated deviation of the predicted lead over ``fixed``.
    """

    model_sha256: str
    sweep: str
    candidates: list[dict[str, Any]]
    fixed: int
    fallback: int
    mean: list[float]
    scale: list[float]
    inverse: list[list[float]]
    known: list[list[float]]
    known_scores: list[list[float]]
    farthest: float
    weights: list[list[float]]
    deviation: list[float]

    def choose(self, pictures: torch.Tensor) -> list[tuple[int, float]]:
        """Choose a candidate for each of (B,3,S,S) in [-1,1].

        Returns:
            For each picture, the index of the candidate and the confidence in it: the estimated
            probability, 0.5 to 1, that it scores higher than the best fixed candidate (for the
            best fixed one itself: than the runner-up). It is 0.5 for a picture whose features
            are unfamiliar.
        """
        features: FloatArray = degradation_features(pictures).numpy()
        mean, scale = np.array(self.mean), np.array(self.scale)
        distances = distances_between(
            structure_of(features, mean, scale), np.array(self.known), np.array(self.inverse)
        )
        scores = predict(
            regression_inputs(features, mean, scale) @ np.array(self.weights),
            distances,
            np.array(self.known_scores),
        )
        familiar = distances.min(axis=1) <= self.farthest
        chosen = []
        for row, is_familiar in zip(scores, familiar, strict=True):
            if not is_familiar:
                chosen.append((self.fallback, 0.5))
                continue
            best = int(row.argmax())
            if len(row) == 1:
                chosen.append((best, 0.5))
                continue
            other = self.fixed if best != self.fixed else int(row.argsort()[-2])
            deviation = self.deviation[best if best != self.fixed else other]
            lead = (row[best] - row[other]) / max(deviation, 1e-9)
            chosen.append((best, 0.5 * (1 + math.erf(lead / math.sqrt(2)))))
        return chosen


def regression_inputs(
    features: FloatArray, mean: FloatArray, scale: FloatArray, columns: Sequence[int] = STRUCTURE
) -> FloatArray:
    """Return (R,INPUTS): standardised features, their squares, products of ``columns``, and 1.

    The columns are all features but tones.

    Much detail means sharpness where noise is low, and grain where it is coarse: products tell them
    apart. Standardised features are limited to ±4, so that the regression does not extrapolate.
    """
    x = np.clip((features - mean) / scale, -4, 4)
    first, second = np.triu_indices(len(columns), k=1)
    structure = x[:, columns]
    products = structure[:, first] * structure[:, second]
    return np.concatenate([x, x**2, products, np.ones((len(x), 1))], axis=1)


def distances_between(x: FloatArray, known: FloatArray, inverse: FloatArray) -> FloatArray:
    """(R,K): squared Mahalanobis distances of (R,S) from (K,S)."""
    x_norm, known_norm = ((v @ inverse * v).sum(axis=1) for v in (x, known))
    found: FloatArray = x_norm[:, None] + known_norm - 2 * (x @ inverse @ known.T)
    return np.maximum(found, 0)


def predict(
    by_regression: FloatArray, distances: FloatArray, known_scores: FloatArray
) -> FloatArray:
    """(R,candidates): the mean of what the regression says, and of what the nearest faces reached."""
    nearest = distances.argsort(axis=1)[:, :_NEAREST]
    by_neighbours: FloatArray = known_scores[nearest].mean(axis=1)
    return (by_regression + by_neighbours) / 2


def structure_of(
    features: FloatArray, mean: FloatArray, scale: FloatArray, columns: Sequence[int] = STRUCTURE
) -> FloatArray:
    """(R,S): the standardised features of ``columns``, which are all that are no tones."""
    return ((features - mean) / scale)[:, columns]


def load_auto(name: str) -> tuple[AutoSetting, Path]:
    """Load a JSON file by its path, or by its name in ``checkpoints/`` without ``.json``.

    Raises:
        ConfigError: no such file, or one that ``dr2pipe fit-auto`` did not write.
    """
    path = find_file("checkpoints", name, what="automatic setting", suffix=".json")
    try:
        content = read_object(path)
        features, _ = content.pop("features"), content.pop("score")
        setting = AutoSetting(**content)
        shape = np.array(setting.weights, dtype=float).shape
        _check(setting)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{path} is no automatic setting: {error}") from None
    count = len(setting.candidates)
    if features != list(FEATURES) or shape != (INPUTS, count):
        raise ConfigError(f"{path} was fitted by another version; fit it again")
    return setting, path


def _check(setting: AutoSetting) -> None:
    """Raise ValueError or TypeError for lists of other lengths, or numbers that are none."""
    count = len(setting.candidates)
    for values in (setting.mean, setting.scale):
        if not np.isfinite(np.array(values, dtype=float)).all() or len(values) != len(FEATURES):
            raise ValueError(f"{len(FEATURES)} numbers are needed, one for each feature")
    inverse = np.array(setting.inverse, dtype=float)
    if inverse.shape != (len(STRUCTURE),) * 2 or not np.isfinite(inverse).all():
        raise ValueError(f"the inverse covariance is that of {len(STRUCTURE)} features")
    known, reached = (np.array(v, dtype=float) for v in (setting.known, setting.known_scores))
    if known.ndim != 2 or known.shape[1] != len(STRUCTURE) or not np.isfinite(known).all():
        raise ValueError(f"the faces of the sweep have {len(STRUCTURE)} features each")
    if reached.shape != (len(known), count) or not np.isfinite(reached).all() or not len(known):
        raise ValueError("every face of the sweep has a score for each candidate")
    if not float(setting.farthest) > 0:
        raise ValueError("the largest familiar distance is a number above 0")
    if not np.isfinite(np.array(setting.weights, dtype=float)).all() or not count:
        raise ValueError("the weights are no numbers")
    if np.array(setting.deviation, dtype=float).shape != (count,):
        raise ValueError("a deviation is needed for each candidate")
    for place in (setting.fixed, setting.fallback):
        if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < count:
            raise ValueError(f"there is no candidate {place!r}")
    if not all(isinstance(candidate, dict) for candidate in setting.candidates):
        raise TypeError("candidates must be settings")


def unusual_features(setting: AutoSetting, picture: torch.Tensor) -> dict[str, float]:
    """How far detail and damage of (1,3,S,S) are from the mean of the sweep's faces.

    In deviations, the farthest first.
    """
    features = degradation_features(picture).numpy()
    far = structure_of(features, np.array(setting.mean), np.array(setting.scale))[0]
    names = [FEATURES[i] for i in STRUCTURE]
    named = {name: float(value) for name, value in zip(names, far, strict=True)}
    return dict(sorted(named.items(), key=lambda item: -abs(item[1])))


def unfamiliar_damage(setting: AutoSetting, picture: torch.Tensor) -> list[str]:
    """Why the fallback is chosen for (1,3,S,S): the features that make it unfamiliar, or none."""
    features = degradation_features(picture).numpy()
    mean, scale, inverse = map(np.array, (setting.mean, setting.scale, setting.inverse))
    known, x = np.array(setting.known), structure_of(features, mean, scale)
    apart = x[0] - known[distances_between(x, known, inverse)[0].argmin()]
    parts = apart * (apart @ inverse)
    if parts.sum() <= setting.farthest:
        return []
    names = [FEATURES[i] for i in STRUCTURE]
    return [n for n, part in zip(names, parts, strict=True) if part > _LARGE_PART * parts.sum()]
