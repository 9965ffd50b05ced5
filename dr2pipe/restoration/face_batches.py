"""Aligned faces restored in batches of any number, and what is known of each result."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from dr2pipe.core import images
from dr2pipe.core.errors import ConfigError, is_out_of_memory
from dr2pipe.restoration.face_notes import describe_faces
from dr2pipe.restoration.gentler import gentler_removers
from dr2pipe.restoration.restorer import Restorer
from dr2pipe.restoration.same_person import SamePerson
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
        combine: ``mean`` or ``medoid`` of the samples; with references, the nearest is taken.
        same_person: compares results with their inputs; None: they are not compared.
    """

    def __init__(
        self,
        restorer: Restorer,
        *,
        batch_size: int,
        samples: int = 1,
        combine: str = "mean",
        same_person: SamePerson | None = None,
    ):
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size} must be at least 1")
        if combine not in COMBINE:
            raise ConfigError(f"combine '{combine}': choose {', '.join(COMBINE)}")
        self.restorer, self.batch_size = restorer, batch_size
        self.samples, self.combine = samples, combine
        self.same_person = same_person
        # The same networks with settings that change faces less.
        self.gentler = [
            (restorer.with_remover(remover), settings)
            for remover, settings in gentler_removers(restorer.remover)
        ]

    @property
    def input_size(self) -> int:
        """Side in pixels of the faces that it takes."""
        return self.restorer.input_size

    @property
    def output_size(self) -> int:
        """Side in pixels of its results."""
        return self.restorer.output_size

    def __call__(
        self,
        faces: Sequence[torch.Tensor],
        seeds: Sequence[int],
        looks: Sequence[images.Pixels],
    ) -> list[RestoredFace]:
        """Restore faces, each (1,3,S,S) in [-1,1].

        Where memory runs out, batches become smaller.

        Args:
            faces: the degraded faces.
            seeds: one for each.
            looks: (R,R,3), the degraded faces at the size of the results.
        """
        results: list[RestoredFace] = []
        while len(results) < len(faces):
            part = slice(len(results), len(results) + self.batch_size)
            try:
                degraded = torch.cat(list(faces[part]))
                found = self._restore(self.restorer, degraded, list(seeds[part]))
                self._compare(found, degraded, list(seeds[part]), list(looks[part]))
                results += found
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self.halve_batches(error)
        return results

    def halve_batches(self, error: Exception) -> None:
        """Take smaller batches from now on, after an error that a lack of memory caused.

        Raises:
            Exception: ``error``, where batches of one face are too large.
        """
        if self.batch_size == 1:
            raise error
        self.batch_size //= 2
        logger.warning("out of memory: going on with batches of %d", self.batch_size)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _compare(
        self,
        results: list[RestoredFace],
        degraded: torch.Tensor,
        seeds: list[int],
        looks: list[images.Pixels],
    ) -> None:
        """Note how alike inputs and results are; make those that are not alike again, gentler."""
        if self.same_person is None:
            return
        usual = self.same_person.similarities(looks, torch.cat([one.restored for one in results]))
        for result, similarity in zip(results, usual, strict=True):
            result.notes["identity"] = round(similarity, 3)
        waiting = [i for i, value in enumerate(usual) if not self.same_person.is_enough(value)]
        tried: list[dict[str, Any]] = []
        for restorer, settings in self.gentler:
            if not waiting:
                return
            again = self._restore(restorer, degraded[waiting], [seeds[i] for i in waiting])
            found = self.same_person.similarities(
                [looks[i] for i in waiting], torch.cat([one.restored for one in again])
            )
            tried.append(settings)
            for i, result, similarity in zip(waiting, again, found, strict=True):
                if self.same_person.is_enough(similarity):
                    result.notes |= {
                        "identity": round(similarity, 3),
                        "identity_of_usual_settings": round(usual[i], 3),
                        "gentler": settings,
                    }
                    results[i] = result
            waiting = [i for i in waiting if "gentler" not in results[i].notes]
        for i in waiting:
            results[i].notes["tried"] = tried
            results[i].skipped = (
                f"it came out too little alike ({usual[i]:.2f}, "
                f"identity.minimum={self.same_person.minimum:g})"
                + (", with gentler settings too" if tried else "")
            )

    def _restore(
        self, restorer: Restorer, degraded: torch.Tensor, seeds: list[int]
    ) -> list[RestoredFace]:
        found, nearest = None, None
        if self.samples == 1:
            result = restorer(degraded, seeds)
        else:
            found = sample_restorer(restorer, degraded, seeds, self.samples)
            result = found.combined(self.combine)
            if self.same_person is not None and self.same_person.references is not None:
                nearest = self.same_person.nearest(found.faces.cpu())
                chosen = torch.tensor([best for best, _ in nearest]), torch.arange(len(seeds))
                result = dataclasses.replace(
                    result, coarse=found.coarse.cpu()[chosen], restored=found.faces.cpu()[chosen]
                )
        notes, warnings = describe_faces(restorer, result, found)
        for note, (_, choice_note) in zip(notes, nearest or [], strict=False):
            note["nearest_to_references"] = choice_note
        coarse, restored = result.coarse.cpu(), result.restored.cpu()
        return [
            RestoredFace(coarse[i : i + 1], restored[i : i + 1], notes[i], warnings[i])
            for i in range(len(seeds))
        ]
