"""Contrastive losses: with a queue of negatives, and on a grid of faces and degradations."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def contrastive_logits(
    queries: torch.Tensor, keys: torch.Tensor, queue: torch.Tensor, temperature: float
) -> torch.Tensor:
    """(B,1+K): how similar queries are to their keys (first column) and to all of the queue.

    Args:
        queries: (B,C) of unit length.
        keys: (B,C) of unit length; one of each query.
        queue: (C,K), columns of unit length.
        temperature: divides the cosines, above 0.
    """
    positive = (queries * keys).sum(dim=1, keepdim=True)
    return torch.cat([positive, queries @ queue], dim=1) / temperature


def info_nce_loss(logits: torch.Tensor) -> torch.Tensor:
    """InfoNCE (van den Oord et al. 2018; He et al. 2020, MoCo, eq. 1), the positive comes first."""
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


def grid_contrast_loss(
    vectors: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """How well degradations are told apart, whatever the face.

    Every face has every degradation. Pictures with the same one belong together (Khosla et al.,
    "Supervised Contrastive Learning", NeurIPS 2020, eq. 2); all others are negatives, also those
    of the same face. So the face tells nothing about what belongs together.

    Args:
        vectors: (F,K,C) of unit length, of F faces with K degradations each.
        temperature: divides the cosines, above 0.

    Returns:
        The loss, and the share of pictures whose nearest picture has the same degradation.
    """
    faces, degradations, _ = vectors.shape
    flat = vectors.flatten(0, 1)  # (F·K,C)
    label = torch.arange(degradations, device=flat.device).repeat(faces)
    itself = torch.eye(len(flat), dtype=torch.bool, device=flat.device)
    logits = (flat @ flat.T / temperature).masked_fill(itself, -torch.inf)
    positive = (label[:, None] == label) & ~itself
    # Where the mask is, the logarithm is -inf, which times zero is no number.
    chance = logits.log_softmax(dim=1).masked_fill(~positive, 0.0)
    nearest = label[logits.argmax(dim=1)] == label
    return -chance.sum(dim=1).mean() / (faces - 1), nearest.float().mean()
