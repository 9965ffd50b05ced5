"""Degradations by name, all seeded by their argument ``rng``.

``blind`` chains stand for what enhancers are trained on, ``unseen`` families for what nobody
trained on. Pictures are (H,W,3) uint8 RGB in and out.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dr2pipe.core.errors import ConfigError
from dr2pipe.degradations.blind import chain_names, describe_chain, find_chain
from dr2pipe.degradations.unseen import SEVERITIES, UNSEEN, degrade_unseen

__all__ = [
    "SEVERITIES",
    "UNSEEN",
    "chain_names",
    "check_degradation",
    "degrade",
    "describe_chain",
]


def check_degradation(name: str, severity: int | None = None) -> None:
    """Raise ValueError for a name or severity that :func:`degrade` would refuse."""
    if name in UNSEEN:
        if severity not in SEVERITIES:
            raise ValueError(f"'{name}' takes a severity of 1..5, not {severity}")
        return
    try:
        find_chain(name)
    except ConfigError:
        raise
    except ValueError as error:
        raise ValueError(f"{error}; unseen families: {', '.join(UNSEEN)}") from None
    if severity is not None:
        raise ValueError(f"'{name}' draws its strength itself and takes no severity")


def degrade(
    pixels: np.ndarray,
    name: str,
    rng: np.random.Generator,
    *,
    severity: int | None = None,
    noise_rng: np.random.Generator | None = None,
) -> tuple[np.ndarray, dict[str, Any]]:
    """A degraded copy and the parameters drawn for it.

    Args:
        pixels: (H,W,3) uint8 RGB.
        name: a chain of ``chain_names()`` or the path of a YAML file with ranges (no
            severity), or a family of ``UNSEEN``.
        severity: 1..5, of the unseen families.
        noise_rng: draws the noise of a chain in place of ``rng``, so that pictures can share
            all else that is drawn.

    Raises:
        ValueError: unknown name, or a severity that is missing, misplaced or out of range.
    """
    check_degradation(name, severity)
    if name in UNSEEN:
        return degrade_unseen(pixels, name, severity, rng)
    return find_chain(name)(pixels, rng, noise_rng=noise_rng)
