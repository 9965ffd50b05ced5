"""Identity-preserving losses."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def identity_loss(embeddings: torch.Tensor, target_embeddings: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of ArcFace embeddings (B,C), not normalised; targets are constants.

    GFP-GAN (Wang et al. 2021, §3.4, eq. 7).
    """
    return F.l1_loss(embeddings, target_embeddings.detach())


def identity_angle_loss(vectors: torch.Tensor, target_vectors: torch.Tensor) -> torch.Tensor:
    """Mean |1 - cos| of identity vectors (B,C); targets are constants. EXE-GAN's."""
    cosine = F.cosine_similarity(vectors, target_vectors.detach(), dim=1)
    return (1 - cosine).abs().mean()
