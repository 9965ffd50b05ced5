"""Contrastive loss with a queue of negatives."""

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
