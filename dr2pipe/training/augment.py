"""Adaptive augmentation of what a discriminator sees, for small data sets.

Karras et al., "Training Generative Adversarial Networks with Limited Data", NeurIPS 2020 (§2-3):
every transformation has the same probability p < 1, so that the generator does not learn it. p
grows while the discriminator overfits, and becomes smaller otherwise.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

# With a larger p, transformations appear in generated pictures.
_LARGEST_PROBABILITY = 0.8


def augment(pictures: torch.Tensor, probability: float, generator: torch.Generator) -> torch.Tensor:
    """Shift, scale, turn and recolour pictures at random.

    Args:
        pictures: (B,3,S,S) in [-1,1].
        probability: of each transformation, for each picture by itself.
        generator: on the CPU.

    Returns:
        (B,3,S,S), around [-1,1].
    """
    if probability <= 0:
        return pictures
    batch, draw = len(pictures), _Draws(len(pictures), probability, generator)
    scale = draw.normal(0.2).exp2()
    angle = draw.uniform(math.pi)
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    shift_x, shift_y = draw.uniform(0.25), draw.uniform(0.25)  # of half the side
    rows = [torch.stack([cosine, -sine, shift_x], 1), torch.stack([sine, cosine, shift_y], 1)]
    grid = F.affine_grid(
        torch.stack(rows, 1).to(pictures), list(pictures.shape), align_corners=False
    )
    pictures = F.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)

    def per_picture(values: torch.Tensor) -> torch.Tensor:
        return values.to(pictures).view(batch, 1, 1, 1)

    pictures = pictures + per_picture(draw.normal(0.2))
    pictures = pictures * per_picture(draw.normal(0.5).exp2())
    grey = pictures.mean(dim=1, keepdim=True)
    return grey + (pictures - grey) * per_picture(draw.normal(1.0).exp2())


def updated_probability(
    probability: float, overfitting: float, *, target: float, step: float
) -> float:
    """Adapt p to how much the discriminator overfits (§3.1).

    Args:
        probability: p so far.
        overfitting: E[sign D(real)], -1..1.
        target: p grows while ``overfitting`` is above it.
        step: size of the change.
    """
    probability += math.copysign(step, overfitting - target)
    return min(max(probability, 0.0), _LARGEST_PROBABILITY)


class _Draws:
    """Draws one number per picture: with ``probability`` a random one, else 0 for no change."""

    def __init__(self, count: int, probability: float, generator: torch.Generator):
        self.count, self.probability, self.generator = count, probability, generator

    def uniform(self, largest: float) -> torch.Tensor:
        values = torch.rand(self.count, generator=self.generator) * 2 - 1
        return self._sometimes(values * largest)

    def normal(self, deviation: float) -> torch.Tensor:
        return self._sometimes(torch.randn(self.count, generator=self.generator) * deviation)

    def _sometimes(self, values: torch.Tensor) -> torch.Tensor:
        coins = torch.rand(self.count, generator=self.generator)
        return values * (coins < self.probability)
