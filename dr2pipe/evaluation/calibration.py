"""Whether the spread of several samples of a face tells where they are wrong."""

from __future__ import annotations

from typing import Any

import torch
from torchmetrics.functional import spearman_corrcoef

# Spreads, in levels of 255, by which pixels are put together; the last bin is open.
_EDGES = torch.tensor([0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 30], dtype=torch.float64)
_LEVELS = 127.5  # per unit of [-1,1]


def calibration(spread: torch.Tensor, error: torch.Tensor) -> dict[str, Any]:
    """Of one face: the rank correlation over its pixels, and sums by bins of spread.

    Args:
        spread: (1,H,W), standard deviation over samples, and
        error: (1,H,W), true absolute error, both in units of [-1,1].
    """
    spread, error = spread.double().flatten() * _LEVELS, error.double().flatten() * _LEVELS
    places = torch.bucketize(spread, _EDGES, right=True) - 1
    count = torch.bincount(places, minlength=len(_EDGES))
    sums = {
        name: torch.zeros(len(_EDGES), dtype=torch.float64).index_add_(0, places, values).tolist()
        for name, values in (("spread", spread), ("error", error))
    }
    correlation = float(spearman_corrcoef(spread, error))
    return {"correlation": correlation, "count": count.tolist()} | sums


def pooled_bins(found: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Mean spread and mean error, in levels of 255, of the pixels of all faces by bins."""
    total = {
        name: torch.tensor([face[name] for face in found], dtype=torch.float64).sum(dim=0)
        for name in ("count", "spread", "error")
    }
    return [
        {"spread": float(s / n), "error": float(e / n), "count": int(n)}
        for n, s, e in zip(total["count"], total["spread"], total["error"], strict=True)
        if n > 0
    ]
