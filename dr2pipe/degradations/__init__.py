"""Degradations by name, all seeded by their argument ``rng``.

Enhancers are trained on the chains of ``blind``; the families of ``unseen`` are kept for
evaluation. Both work on (H,W,3) uint8 RGB and report the parameters that they drew. Other rooms
use the names below, and ``masks`` for holes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dr2pipe.core.errors import ConfigError, PictureError
from dr2pipe.degradations.blind import chain_names, describe_chain, find_chain, is_chain
from dr2pipe.degradations.kernels import Pixels
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
    """Raise ConfigError for a name or severity that :func:`degrade` would refuse."""
    if name in UNSEEN:
        if severity not in SEVERITIES:
            raise ConfigError(f"'{name}' takes a severity of 1..5, not {severity}")
        return
    if not is_chain(name):
        raise ConfigError(
            f"unknown degradation '{name}'; chains: {', '.join(chain_names())}, or a YAML file; "
            f"unseen families: {', '.join(UNSEEN)}"
        )
    find_chain(name)  # raises for a file without valid ranges
    if severity is not None:
        raise ConfigError(f"'{name}' draws its strength itself and takes no severity")


def degrade(
    pixels: Pixels,
    name: str | Path,
    rng: np.random.Generator,
    *,
    severity: int | None = None,
    noise_rng: np.random.Generator | None = None,
) -> tuple[Pixels, dict[str, Any]]:
    """A degraded copy, and the parameters drawn for it by name.

    Args:
        pixels: (H,W,3) uint8 RGB.
        name: a chain of ``chain_names()`` or the path of a YAML file with ranges (no
            severity), or a family of ``UNSEEN``.
        rng: everything random is drawn from it.
        severity: 1..5, of the unseen families.
        noise_rng: draws the noise of a chain in place of ``rng``, so that pictures can share
            all other draws.

    Raises:
        ConfigError: unknown name, or a severity that is missing, misplaced or out of range.
        PictureError: pixels of another kind.
    """
    name = str(name)
    check_degradation(name, severity)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise PictureError(f"expected (H,W,3) uint8 RGB, not {pixels.shape} {pixels.dtype}")
    if severity is not None:
        return degrade_unseen(pixels, name, severity, rng)
    return find_chain(name)(pixels, rng, noise_rng=noise_rng)
