"""Aligned faces restored in batches of any number, and what is known of each result."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from dr2pipe.core.errors import ConfigError, is_out_of_memory
from dr2pipe.restoration.restorer import Restorer
from dr2pipe.restoration.samples import COMBINE, sample_restorer

logger = logging.getLogger(__name__)


@dataclass
class RestoredFace:
    """A face after both stages.

    Attributes:
        coarse: (1,3,H,W) around [-1,1], on the CPU.
        restored: (1,3,H,W) around [-1,1], on the CPU.
        notes: for the manifest.
        warnings: sentences for the manifest.
        skipped: why the result is not used; None where it is.
    """

    coarse: torch.Tensor
    restored: torch.Tensor
    notes: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    skipped: str | None = None


class FaceRestorer:
    """Restores any number of aligned faces, in batches that fit the memory.

    Args:
        restorer: both stages.
        batch_size: faces at once.
        samples: restorations of each face with different noise.
        combine: ``mean`` or ``medoid`` of the samples.
    """

    def __init__(
        self, restorer: Restorer, *, batch_size: int, samples: int = 1, combine: str = "mean"
    ):
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size} must be at least 1")
        if combine not in COMBINE:
            raise ConfigError(f"combine '{combine}': choose {', '.join(COMBINE)}")
        self.restorer, self.batch_size = restorer, batch_size
        self.samples, self.combine = samples, combine

    @property
    def input_size(self) -> int:
        """Side in pixels of the faces that it takes."""
        return self.restorer.input_size

    @property
    def output_size(self) -> int:
        """Side in pixels of its results."""
        return self.restorer.output_size

    def __call__(self, faces: Sequence[torch.Tensor], seeds: Sequence[int]) -> list[RestoredFace]:
        """Restore faces, each (1,3,S,S) in [-1,1], with a seed for each.

        Where memory runs out, batches become smaller.
        """
        results: list[RestoredFace] = []
        while len(results) < len(faces):
            part = slice(len(results), len(results) + self.batch_size)
            try:
                results += self._restore(torch.cat(list(faces[part])), list(seeds[part]))
            except Exception as error:
                if self.batch_size == 1 or not is_out_of_memory(error):
                    raise
                self.batch_size //= 2
                logger.warning("out of memory: going on with batches of %d", self.batch_size)
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
        return results

    def _restore(self, degraded: torch.Tensor, seeds: list[int]) -> list[RestoredFace]:
        notes: list[dict[str, Any]] = [{} for _ in seeds]
        if self.samples == 1:
            result = self.restorer(degraded, seeds)
            coarse, restored = result.coarse, result.restored
            in_fp32, choices = result.in_fp32, result.choices
        else:
            found = sample_restorer(self.restorer, degraded, seeds, self.samples)
            by_mean = self.combine == "mean"
            coarse = found.coarse_mean if by_mean else found.coarse_medoid
            restored = found.mean if by_mean else found.medoid
            in_fp32, choices = found.in_fp32, found.first.choices
            spread = found.spread.cpu().double().mean(dim=(1, 2, 3)) * 127.5
            for note, value, varies in zip(notes, spread.tolist(), found.varies, strict=True):
                note["spread"] = round(value, 3) if varies else None
        for note, choice in zip(notes, choices or [], strict=False):
            if choice.note is not None:
                note["auto"] = choice.note
        for note, by_enhancer in zip(notes, self.restorer.notes(coarse), strict=True):
            note.update(by_enhancer)
        coarse, restored = coarse.cpu(), restored.cpu()
        warning = "not finite in low precision, restored again in float32"
        return [
            RestoredFace(
                coarse[i : i + 1], restored[i : i + 1], notes[i], [warning] if in_fp32[i] else []
            )
            for i in range(len(seeds))
        ]
