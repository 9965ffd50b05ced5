"""Several restorations of one face: their mean, and where they differ.

DR2 starts from noise, so every seed gives another plausible face. Where these samples differ, the
input does not determine the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dr2pipe.core.config import stable_seed
from dr2pipe.core.errors import ConfigError
from dr2pipe.restoration.restored import Restored
from dr2pipe.restoration.restorer import Restorer

COMBINE = ("mean", "medoid")


@dataclass
class Samples:
    """K samples of a batch, combined.

    Attributes:
        mean: (B,3,H,W) around [-1,1]; softer than any sample, closest to the truth on average.
        medoid: (B,3,H,W), the sample nearest to the others (least sum of squared distances).
        spread: (B,1,H,W), the standard deviation over samples, root mean square over channels,
            in units of [-1,1].
        coarse_mean: (B,3,H,W), the mean of the coarse faces.
        coarse_medoid: (B,3,H,W), the coarse face of the medoid.
        faces: (K,B,3,H,W), all samples.
        coarse: (K,B,3,H,W), their coarse faces.
        first: the first sample as it is; its seeds are the pictures' own.
        in_fp32: for each picture, whether any sample was computed again in float32.
        varies: for each picture, whether stage 1 ran. Without its noise all samples are equal,
            and a spread of 0 does not mean certainty.
    """

    mean: torch.Tensor
    medoid: torch.Tensor
    spread: torch.Tensor
    coarse_mean: torch.Tensor
    coarse_medoid: torch.Tensor
    faces: torch.Tensor
    coarse: torch.Tensor
    first: Restored
    in_fp32: list[bool]
    varies: list[bool]

    def combined(self, combine: str) -> Restored:
        """Their ``mean`` or ``medoid`` as one result."""
        faces = (self.coarse_mean, self.mean)
        if combine == "medoid":
            faces = (self.coarse_medoid, self.medoid)
        return Restored(*faces, self.in_fp32, self.first.choices)


def sample_restorer(
    restorer: Restorer, pictures: torch.Tensor, seeds: Sequence[int], count: int
) -> Samples:
    """Restore (B,3,S,S) RGB in [-1,1] ``count`` times, each time from another noise.

    ``seeds``: one per picture, as a :class:`Restorer` takes them.

    Raises:
        ConfigError: fewer than 2 samples.
    """
    if count < 2:
        raise ConfigError(f"{count} samples have no spread; take 2 or more")
    # From a noise and its negative, the spread would nearly vanish.
    restorer = restorer.with_single_noise()
    samples = [
        restorer(pictures, [stable_seed(seed, k) if k else seed for seed in seeds])
        for k in range(count)
    ]
    faces = torch.stack([result.restored for result in samples])  # (K,B,3,H,W)
    coarse = torch.stack([result.coarse for result in samples])
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
        faces=faces,
        coarse=coarse,
        first=samples[0],
        in_fp32=[any(parts) for parts in zip(*(r.in_fp32 for r in samples), strict=True)],
        varies=[calls > 0 for calls in samples[0].calls],
    )
