"""Checks of the numbers that data sets are mixed by."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from dr2pipe.core.errors import ConfigError


def normalised_shares(what: str, shares: Mapping[str, float]) -> npt.NDArray[np.float64]:
    """The shares, (N,), divided by their sum.

    Args:
        what: what they are shares of, for the message.
        shares: by name; each 0 or more.

    Raises:
        ConfigError: no shares, negative ones, or all 0.
    """
    values = np.array(list(shares.values()), dtype=np.float64)
    if not len(values) or not (values >= 0).all() or not 0 < values.sum() < np.inf:
        raise ConfigError(f"the shares of {what}, {dict(shares)}, must be 0 or more, not all 0")
    normalised: npt.NDArray[np.float64] = values / values.sum()
    return normalised


def check_share(name: str, value: float) -> None:
    """Raise ConfigError unless the setting ``name`` lies in [0, 1]."""
    if not 0 <= value <= 1:
        raise ConfigError(f"{name}={value} must lie in [0, 1]")
