"""Degradations by name, all seeded by their argument ``rng``.

``blind`` chains stand for what enhancers are trained on, ``unseen`` families for what nobody
trained on. Pictures are (H,W,3) uint8 RGB in and out.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dr2pipe.degradations.blind import CHAINS, degrade_with_chain
from dr2pipe.degradations.unseen import SEVERITIES, UNSEEN, degrade_unseen

__all__ = ["CHAINS", "SEVERITIES", "UNSEEN", "degrade"]


def degrade(
    pixels: np.ndarray, name: str, rng: np.random.Generator, *, severity: int | None = None
) -> tuple[np.ndarray, dict[str, Any]]:
    """A degraded copy and the parameters drawn for it.

    Args:
        pixels: (H,W,3) uint8 RGB.
        name: a chain of ``CHAINS`` (no severity) or a family of ``UNSEEN``.
        severity: 1..5, of the unseen families.

    Raises:
        ValueError: unknown name, or a severity that is missing, misplaced or out of range.
    """
    if name in CHAINS:
        if severity is not None:
            raise ValueError(f"'{name}' draws its strength itself and takes no severity")
        return degrade_with_chain(pixels, rng, CHAINS[name])
    if name in UNSEEN:
        if severity not in SEVERITIES:
            raise ValueError(f"'{name}' takes a severity of 1..5, not {severity}")
        return degrade_unseen(pixels, name, severity, rng)
    raise ValueError(
        f"unknown degradation '{name}'; chains: {', '.join(CHAINS)}; "
        f"unseen families: {', '.join(UNSEEN)}"
    )
