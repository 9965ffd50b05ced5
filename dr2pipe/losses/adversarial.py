"""Adversarial losses on the scores of one or more discriminators.

Scores are lists of tensors of any shape, one per discriminator (scale).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

Scores = Sequence[torch.Tensor]


def hinge_discriminator_loss(real: Scores, fake: Scores) -> torch.Tensor:
    """½(E[max(0, 1 - D(x))] + E[max(0, 1 + D(G))]), averaged over the discriminators.

    Lim and Ye, "Geometric GAN", 2017, eq. 14; SPARNet halves it.
    """
    losses = [F.relu(1 - r).mean() + F.relu(1 + f).mean() for r, f in zip(real, fake, strict=True)]
    return 0.5 * torch.stack(losses).mean()


def hinge_generator_loss(fake: Scores) -> torch.Tensor:
    """-E[D(G)], averaged over the discriminators."""
    return -torch.stack([f.mean() for f in fake]).mean()


def feature_matching_loss(
    real: Sequence[Sequence[torch.Tensor]], fake: Sequence[Sequence[torch.Tensor]]
) -> torch.Tensor:
    """L1 between features, summed over the layers, averaged over the discriminators.

    Wang et al., "pix2pixHD", CVPR 2018, eq. 3. The features of real pictures are constants.
    """
    losses = [
        sum(F.l1_loss(f, r.detach()) for r, f in zip(layers_r, layers_f, strict=True))
        for layers_r, layers_f in zip(real, fake, strict=True)
    ]
    return torch.stack(losses).mean()
