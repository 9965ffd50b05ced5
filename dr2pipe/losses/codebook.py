"""The loss of vector quantisation (van den Oord et al., "Neural Discrete Representation Learning", 2017)."""

from __future__ import annotations

import torch


def codebook_loss(
    vectors: torch.Tensor, codes: torch.Tensor, *, commitment: float = 0.25
) -> torch.Tensor:
    """Mean squared difference, drawing the codes to the vectors and the vectors to the codes.

    Equation 3 of the paper without the first term.

    Args:
        vectors: (...,K) of an encoder.
        codes: (...,K), the code chosen for each.
        commitment: weight of the part that draws the vectors.
    """
    to_vectors = (codes - vectors.detach()).square().mean()
    to_codes = (vectors - codes.detach()).square().mean()
    return to_vectors + commitment * to_codes
