"""The records from which a study resumes: a line per face and degradation, the protocol's hash."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from dr2pipe.core.markers import MARKER, read_marker
from dr2pipe.core.records import check_output, read_jsonl

ROWS = "rows.jsonl"
KIND = "study"  # in the marker
RESULT_FOLDERS = ("pictures", "plots")
_WRITTEN = (
    MARKER, ROWS, "clean.sha256", "results.csv", "summary.json", "table.md", "report.html",
    "features.csv", "preset.yaml", *RESULT_FOLDERS,
)  # fmt: skip


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a study, one per face and degradation; damaged lines are measured again.

    Values that are not finite stand as null in the file, and are NaN here.
    """
    rows = {}
    for row in read_jsonl(path).records:
        values, calls = row.get("values"), row.get("calls")
        if not (
            isinstance(row.get("degradation"), str)
            and isinstance(row.get("picture"), str)
            and isinstance(values, dict)
            and isinstance(calls, dict)
            and values.keys() == calls.keys()
            and all(map(_are_numbers, values.values()))
            and _are_numbers(calls)
        ):
            continue
        row["values"] = {
            method: {name: math.nan if v is None else v for name, v in of_method.items()}
            for method, of_method in values.items()
        }
        rows[row["degradation"], row["picture"]] = row
    return list(rows.values())


def _are_numbers(values: Any) -> bool:
    return isinstance(values, dict) and all(
        value is None or (isinstance(value, int | float) and not isinstance(value, bool))
        for value in values.values()
    )


def read_hash(folder: Path) -> str | None:
    """The protocol hash of a folder of results; None where there is none.

    Raises:
        ConfigError: the folder holds the results of another command or program.
    """
    if not os.path.lexists(folder):
        return None
    check_output(folder, _WRITTEN, kind=KIND)
    marker = read_marker(folder)
    return None if marker is None else str(marker.get("protocol_hash"))
