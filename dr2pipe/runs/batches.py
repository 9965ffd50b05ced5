"""What a folder run computes for a batch of pictures, and what it counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from dr2pipe.core.records import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_NONE_SUCCEEDED,
    EXIT_SOME_FAILED,
)

# (H,W,3) or (H,W), uint8 or uint16; or several of them by name, which make a folder.
Result = npt.NDArray[Any] | Mapping[str, npt.NDArray[Any]]


@dataclass
class BatchResult:
    """The results of a batch, each a list with an entry per picture.

    Attributes:
        pixels: results by result folder; None in the place of a picture that is unchanged.
        notes: further entries of the manifest: parameters drawn or chosen for the picture, and
            measures of its result.
        records: further entries of each picture's line in the manifest; None for none.
        warnings: sentences for the manifest; None for none at all.
        in_own_space: result folders whose pixels are in the colour space of the input's file.
    """

    pixels: Sequence[Mapping[str, Result | None]]
    notes: list[dict[str, Any]]
    warnings: list[list[str]] | None = None
    records: list[dict[str, Any]] | None = None
    in_own_space: frozenset[str] = frozenset()


# Called with pictures (B,3,S,S) in [-1,1], or the list of what the run's ``prepare`` made of them;
# one seed per picture; the decoded pictures, without pixels; and for each kind of paired files a
# keyword argument of its name, a list of what was prepared for each picture.
ProcessBatch = Callable[..., BatchResult]
# Called likewise; gives a GPU the batch, and returns what waits for the results.
BeginBatch = Callable[..., Callable[[], BatchResult]]


@dataclass
class RunSummary:
    """Numbers of pictures.

    Attributes:
        restored: done in this run.
        skipped: done by an earlier run.
        failed: with a line in ``failures.jsonl``.
        warned: done in this run, with a warning in the manifest.
        interrupted: whether a signal ended the run.
    """

    restored: int = 0
    skipped: int = 0
    failed: int = 0
    warned: int = 0
    interrupted: bool = False

    @property
    def exit_code(self) -> int:
        """0 all done, 3 some failed, 4 none succeeded, 130 interrupted."""
        if self.interrupted:
            return EXIT_INTERRUPTED
        if not self.failed:
            return EXIT_DONE
        return EXIT_SOME_FAILED if self.restored + self.skipped else EXIT_NONE_SUCCEEDED
