"""Several restorations of one face: what they agree on, and where they do not.

DR2 starts from noise, so every seed gives another plausible face. Where samples differ, the
picture did not tell what was there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dr2pipe.core.config import stable_seed
from dr2pipe.restoration.restorer import Restored, Restorer

COMBINE = ("mean", "medoid")


@dataclass
class Samples:
    """Of K samples of a batch.

    Attributes:
        mean: (B,3,H,W) around [-1,1]; softer than any sample, closest to the truth on average.
        medoid: (B,3,H,W), the sample nearest to the others (least sum of squared distances).
        spread: (B,1,H,W), the standard deviation over samples, root mean square over channels,
            in units of [-1,1].
        coarse_mean, coarse_medoid: the same of the coarse faces; the medoid's own coarse face.
        first: everything about the first sample, whose seeds are the pictures' own.
        in_fp32: of every picture, whether any sample was computed again in float32.
        varies: of every picture, whether stage 1 ran: without its noise all samples are equal,
            and a spread of 0 says nothing.
    """

    mean: torch.Tensor
    medoid: torch.Tensor
    spread: torch.Tensor
    coarse_mean: torch.Tensor
    coarse_medoid: torch.Tensor
    first: Restored
    in_fp32: list[bool]
    varies: list[bool]


def sample_restorer(
    restorer: Restorer, pictures: torch.Tensor, seeds: Sequence[int], count: int
) -> Samples:
    """Restore (B,3,S,S) in [-1,1] ``count`` ≥ 2 times; seeds as in :class:`Restorer`."""
    if count < 2:
        raise ValueError(f"{count} samples have no spread; take 2 or more")
    found = [
        restorer(pictures, [stable_seed(seed, k) if k else seed for seed in seeds])
        for k in range(count)
    ]
    faces = torch.stack([result.restored for result in found])  # (K,B,3,H,W)
    coarse = torch.stack([result.coarse for result in found])
    mean = faces.mean(dim=0)
    # The sum of squared distances to all others is least where that to the mean is.
    chosen = (faces - mean).square().sum(dim=(2, 3, 4)).argmin(dim=0)
    each = torch.arange(len(pictures), device=faces.device)
    return Samples(
        mean=mean,
        medoid=faces[chosen, each],
        spread=faces.var(dim=0, correction=0).mean(dim=1, keepdim=True).sqrt(),
        coarse_mean=coarse.mean(dim=0),
        coarse_medoid=coarse[chosen, each],
        first=found[0],
        in_fp32=[any(parts) for parts in zip(*(r.in_fp32 for r in found), strict=True)],
        varies=[calls > 0 for calls in found[0].calls],
    )


def rank_correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Spearman's rank correlation over all values, -1 to 1; equal values share their rank.

    0 where one of them is constant.
    """
    ranks = torch.stack([_ranks(x.flatten()) for x in (a, b)])
    if bool((ranks.std(dim=1) == 0).any()):
        return 0.0
    return float(torch.corrcoef(ranks)[0, 1])


def _ranks(values: torch.Tensor) -> torch.Tensor:
    _, place, count = values.unique(return_inverse=True, return_counts=True)
    last = count.cumsum(0).double()
    return (last - (count - 1) / 2)[place]
