"""The records from which a study resumes: a line per face and degradation, the protocol's hash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dr2pipe.core.records import RUN, read_jsonl

ROWS = "rows.jsonl"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a study, one per face and degradation; damaged lines are measured again."""
    rows = {}
    for row in read_jsonl(path).records:
        key = row.get("degradation"), row.get("picture")
        if all(isinstance(part, str) for part in key):
            rows[key] = row
    return list(rows.values())


def read_hash(folder: Path) -> str | None:
    """The protocol hash of a folder of results; None where there is none."""
    try:
        first = (folder / RUN).read_text(encoding="utf-8").partition("\n")[0]
    except OSError:
        return None
    key, _, value = first.partition(": ")
    return value.strip("'\" ") if key == "protocol_hash" else "no protocol"
