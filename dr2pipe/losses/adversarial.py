"""Adversarial losses on the scores of one or more discriminators.

Scores are tensors of any shape, higher for real. The hinge losses take one tensor per
discriminator (scale), the others the scores of one discriminator.
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
        torch.stack(
            [F.l1_loss(f, r.detach()) for r, f in zip(layers_r, layers_f, strict=True)]
        ).sum()
        for layers_r, layers_f in zip(real, fake, strict=True)
    ]
    return torch.stack(losses).mean()


def logistic_discriminator_loss(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """E[softplus(-D(x))] + E[softplus(D(G))] (Goodfellow et al. 2014, eq. 1, negated).

    The same as binary cross entropy with logits, targets 1 and 0.
    """
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def logistic_generator_loss(fake: torch.Tensor) -> torch.Tensor:
    """E[softplus(-D(G))], the non-saturating form (Goodfellow et al. 2014, §3)."""
    return F.softplus(-fake).mean()


def r1_penalty(scores: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
    """E[|∇D(x)|²] of real pictures, without a factor.

    Mescheder et al., "Which Training Methods for GANs do actually Converge?", ICML 2018, eq. 9.

    Args:
        scores: of ``pictures``.
        pictures: (B,...); they must require gradients.
    """
    (gradient,) = torch.autograd.grad(scores.sum(), pictures, create_graph=True)
    return gradient.square().flatten(1).sum(dim=1).mean()


def path_lengths(
    pictures: torch.Tensor, latents: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """(B,): |Jᵀy| of each picture for a random image y (Karras et al. 2020, §3.2).

    Args:
        pictures: (B,3,S,S), made from ``latents``; y has unit variance, divided by S.
        latents: W+ (B,rows,C), which require gradients; squares are averaged over the rows.
        generator: of y.
    """
    side = pictures.shape[-1]
    noise = torch.randn(pictures.shape, generator=generator, device=generator.device)
    noise = noise.to(pictures) / side
    (gradient,) = torch.autograd.grad((pictures * noise).sum(), latents, create_graph=True)
    return gradient.square().sum(dim=2).mean(dim=1).sqrt()


def path_length_penalty(lengths: torch.Tensor, mean_length: torch.Tensor) -> torch.Tensor:
    """E[(|Jᵀy| - a)²], ``mean_length`` a the running mean (Karras et al. 2020, eq. 4)."""
    return (lengths - mean_length).square().mean()
