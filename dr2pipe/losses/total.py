"""The total of several losses."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def weighted_sum(terms: Mapping[str, torch.Tensor], weights: Mapping[str, float]) -> torch.Tensor:
    """Sum of ``terms``, one or more, each multiplied by the weight of its name.

    Raises:
        KeyError: a term without a weight.
    """
    first, *rest = (weights[name] * value for name, value in terms.items())
    total = first
    for value in rest:
        total = total + value
    return total
