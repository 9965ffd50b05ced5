"""What a study leaves to go on from: a line per face and degradation, and the protocol's hash."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import torchmetrics

import dr2pipe

ROWS = "rows.jsonl"
RUN = "run.yaml"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a study, one per face and degradation; a line cut off by a kill is no row."""
    rows = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
            rows[row["degradation"], row["picture"]] = row
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    return list(rows.values())


def append_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """One write, so that processes may share the file."""
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        if os.write(handle, data) != len(data):
            raise OSError(f"{path}: a line could not be written whole")
    finally:
        os.close(handle)


def read_hash(folder: Path) -> str | None:
    """The protocol hash of a folder of results; None where there is none."""
    try:
        first = (folder / RUN).read_text(encoding="utf-8").partition("\n")[0]
    except OSError:
        return None
    key, _, value = first.partition(": ")
    return value.strip("'\" ") if key == "protocol_hash" else "no protocol"


def versions() -> dict[str, str]:
    """Of what values were computed with."""
    return {
        "dr2pipe": dr2pipe.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "diffusers": diffusers.__version__,
        "torchmetrics": torchmetrics.__version__,
        "numpy": np.__version__,
    }
