"""Means with bootstrap intervals, over faces (Efron and Tibshirani 1993, percentile interval)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean of ``count`` faces and its 95 % interval; NaN where there is none."""

    mean: float
    low: float
    high: float
    count: int


def estimate(values: np.ndarray, *, seed: int = 0) -> Estimate:
    """Mean and interval of one value per face, (N,); NaNs (a face without a value) are left out.

    A paired difference is the estimate of the differences.
    """
    values = np.asarray(values, dtype=np.float64)
    values = values[~np.isnan(values)]
    count = len(values)
    if not np.isfinite(values).all() or not count:  # the PSNR of an untouched picture is infinite
        return Estimate(float(values.mean()) if count else np.nan, np.nan, np.nan, count)
    draws = np.random.default_rng(seed).integers(0, count, (RESAMPLES, count))
    means = values[draws].mean(axis=1)
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(float(values.mean()), float(low), float(high), count)
