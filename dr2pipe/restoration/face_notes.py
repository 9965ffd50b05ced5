"""What is noted of faces after both stages, for manifests of aligned faces and of photos alike."""

from __future__ import annotations

from typing import Any

from dr2pipe.restoration.restored import Restored
from dr2pipe.restoration.restorer import Restorer
from dr2pipe.restoration.samples import Samples

LEVELS_PER_UNIT = 127.5  # from [-1,1] to 0..255
NO_SPREAD = (
    "the automatic setting left out stage 1, whose noise makes samples differ: the spread is "
    "unknown, and the black spread map does not mean certainty"
)


def describe_faces(
    restorer: Restorer, result: Restored, found: Samples | None = None
) -> tuple[list[dict[str, Any]], list[list[str]]]:
    """Notes and warnings for each face.

    Args:
        restorer: that made them.
        result: the faces.
        found: the samples that they were combined of; None where there is one of each.
    """
    notes = [dict(note) for note in restorer.notes(result.coarse)]
    warnings: list[list[str]] = [
        ["not finite in low precision, restored again in float32"] if retried else []
        for retried in result.in_fp32
    ]
    for note, choice in zip(notes, result.choices, strict=False):
        if choice.note is not None:
            note["auto"] = choice.note
    if found is not None:
        spreads = found.spread.cpu().double().mean(dim=(1, 2, 3)) * LEVELS_PER_UNIT
        for i, value in enumerate(spreads.tolist()):
            notes[i]["spread"] = round(value, 3) if found.varies[i] else None
            if not found.varies[i]:
                warnings[i].append(NO_SPREAD)
    return notes, warnings
