"""What the networks make of a batch, and a batch that they are still at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dr2pipe.diffusion.stage1 import Choice


@dataclass
class Restored:
    """The results of a batch.

    Attributes:
        coarse: (B,3,H,W) float32 around [-1,1], after stage 1.
        restored: (B,3,H,W) float32 around [-1,1], after both stages.
        in_fp32: for each picture, whether it was computed again in float32.
        choices: what stage 1 did to each picture; empty without a stage 1.
    """

    coarse: torch.Tensor
    restored: torch.Tensor
    in_fp32: list[bool]
    choices: list[Choice]

    @property
    def calls(self) -> list[int]:
        """Network calls of stage 1 for each picture."""
        return [choice.calls for choice in self.choices] or [0] * len(self.in_fp32)


@dataclass
class Begun:
    """A batch that the networks were given; a GPU may still be at it.

    Attributes:
        degraded: (B,3,S,S), the batch.
        seeds: one per picture.
        choices: as in :class:`Restored`.
        coarse: likewise.
        restored: likewise.
        finite: (B,) bool, whether a result is finite.
        done: when a GPU is done with it; None elsewhere, where it is done already.
    """

    degraded: torch.Tensor
    seeds: Sequence[int]
    choices: list[Choice]
    coarse: torch.Tensor
    restored: torch.Tensor
    finite: torch.Tensor
    done: torch.cuda.Event | None
