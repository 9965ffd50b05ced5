"""The report of ``dr2pipe benchmark``: as a table, as a file, and against another one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dr2pipe.core import files
from dr2pipe.core.errors import ConfigError
from dr2pipe.core.foreign import read_object

FORMAT = 1  # of the JSON file
Row = dict[str, Any]
_COLUMNS = {
    "what": "what",
    "precision": "precision",
    "batch": "batch",
    "pictures_per_s": "pictures/s",
    "per_core_s": "per second of a core",
    "gflop_s": "GFLOP/s",
    "of_peak": "of the peak",
    "outside": "outside the networks",
}


def table(report: dict[str, Any]) -> str:
    """A report in words, its rows as a table of Markdown."""
    machine = report["machine"]
    said = [f"{name} {version}" for name, version in report["versions"].items()]
    peaks = [f"{p} {rate:.0f}" for p, rate in report["matrix_multiply_gflop_s"].items()]
    lines = [
        f"{machine['device']}, {machine['cores']} cores, {machine['threads']} threads, "
        f"load {machine['load']}",
        ", ".join(said),
    ]
    lines += [f"peak, a matrix multiplication: {', '.join(peaks)} GFLOP/s"] if peaks else []
    used = [name for name in _COLUMNS if any(name in row for row in report["rows"])]
    lines += ["", f"| {' | '.join(_COLUMNS[name] for name in used)} |", "|---" * len(used) + "|"]
    for row in report["rows"]:
        cells = [_cell(name, row.get(name, "")) for name in used]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"peak memory of this process: {report['peak_memory_mb']} MB"]
    for what, levels in report["difference_of_255"].items():
        lines.append(f"{what}: differs from fp32 by {levels} of 255 on average")
    return "\n".join(lines)


def _cell(name: str, value: Any) -> str:
    if name in ("of_peak", "outside") and value != "":
        return f"{100 * value:.1f} %"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def ratios(report: dict[str, Any], other: dict[str, Any]) -> str:
    """How many times as many pictures/s each row of a report has as the same row of another."""
    before = {_key(row): row["pictures_per_s"] for row in other["rows"]}
    lines = []
    for row in report["rows"]:
        if _key(row) in before:
            ratio = row["pictures_per_s"] / before[_key(row)]
            name = ", ".join(str(part) for part in (row["what"], row["precision"]) if part)
            lines.append(f"{ratio:.2f} times as fast: {name}, batch {row['batch']}")
    return "\n".join(lines or ["the two have no row in common"])


def read_report(path: str | Path) -> dict[str, Any]:
    """A report that :func:`write_report` wrote.

    Raises:
        ConfigError: the file holds something else.
        UnreadableFileError: it cannot be read, or is no JSON file.
    """
    report = read_object(path)
    try:
        is_whole = report["format"] == FORMAT and all(
            float(row["pictures_per_s"]) > 0 and hash(_key(row)) for row in report["rows"]
        )
    except (KeyError, TypeError, ValueError):
        is_whole = False
    if not is_whole:
        raise ConfigError(f"{path} holds no report of this version of dr2pipe benchmark")
    return report


def write_report(path: str | Path, report: dict[str, Any]) -> None:
    """Write a report as JSON."""
    files.write_bytes(path, (json.dumps(report, indent=1) + "\n").encode())


def _key(row: Row) -> tuple[Any, ...]:
    return row["what"], row["precision"], row["batch"]
