"""Means over faces with bootstrap intervals (Efron and Tibshirani 1993, percentile interval)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over ``count`` faces and its 95 % interval, ``low`` to ``high``; NaN if there is none."""

    mean: float
    low: float
    high: float
    count: int


def estimate(values: npt.ArrayLike, *, seed: int = 0) -> Estimate:
    """Estimate the mean of one value per face, (N,).

    Faces without a value (NaN) are left out. For a paired difference, pass the differences.
    """
    array = np.asarray(values, dtype=np.float64)
    array = array[~np.isnan(array)]
    count = len(array)
    if not np.isfinite(array).all() or not count:  # the PSNR of an untouched picture is infinite
        return Estimate(float(array.mean()) if count else np.nan, np.nan, np.nan, count)
    draws = np.random.default_rng(seed).integers(0, count, (RESAMPLES, count))
    means = array[draws].mean(axis=1)
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(float(array.mean()), float(low), float(high), count)
