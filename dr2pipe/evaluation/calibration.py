"""Check whether the spread of several samples of a face tells where their mean is wrong."""

from __future__ import annotations

from typing import Any

import torch

# Spreads, in levels of 255, by which pixels are put together; the last bin is open.
_EDGES = torch.tensor([0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 30], dtype=torch.float64)
_LEVELS = 127.5  # per unit of [-1,1]


def calibration(spread: torch.Tensor, error: torch.Tensor) -> dict[str, Any]:
    """Compare spread and error of one face.

    Args:
        spread: (1,H,W), standard deviation over samples, in units of [-1,1].
        error: (1,H,W), true absolute error of their mean, in the same units.

    Returns:
        ``correlation``, the rank correlation over pixels; and by bins of spread, lists of
        ``count`` of pixels and of sums of ``spread`` and ``error`` in levels of 255.
    """
    spread, error = spread.double().flatten() * _LEVELS, error.double().flatten() * _LEVELS
    places = torch.bucketize(spread, _EDGES, right=True) - 1
    count = torch.bincount(places, minlength=len(_EDGES))
    sums = {
        name: torch.zeros(len(_EDGES), dtype=torch.float64).index_add_(0, places, values).tolist()
        for name, values in (("spread", spread), ("error", error))
    }
    correlation = rank_correlation(spread, error)
    return {"correlation": correlation, "count": count.tolist()} | sums


def pooled_bins(found: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Pool the bins of :func:`calibration` over all faces.

    Returns:
        For each bin with pixels, their number and their mean spread and mean error, in levels
        of 255.
    """
    total = {
        name: torch.tensor([face[name] for face in found], dtype=torch.float64).sum(dim=0)
        for name in ("count", "spread", "error")
    }
    return [
        {"spread": float(s / n), "error": float(e / n), "count": int(n)}
        for n, s, e in zip(total["count"], total["spread"], total["error"], strict=True)
        if n > 0
    ]


def rank_correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return Spearman's rank correlation of all values, -1 to 1; 0 where one tensor is constant.

    Equal values share their mean rank. torchmetrics adds up the ranks of equal values in 32
    bits: its result is wrong for a picture of 512 pixels with 65 536 equal ones.
    """
    ranks = torch.stack([_ranks(x.flatten()) for x in (a, b)])
    if bool((ranks.std(dim=1) == 0).any()):
        return 0.0
    return float(torch.corrcoef(ranks)[0, 1])


def _ranks(values: torch.Tensor) -> torch.Tensor:
    place: torch.Tensor
    _, place, count = torch.unique(values, return_inverse=True, return_counts=True)
    last = count.cumsum(0).double()
    ranks: torch.Tensor = (last - (count - 1) / 2)[place]
    return ranks
