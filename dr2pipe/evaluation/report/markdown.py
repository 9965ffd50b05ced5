"""Tables of a study as markdown: means, and differences of the main method from the others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dr2pipe.evaluation.report.tables import interval, number


def markdown_tables(summary: dict[str, Any]) -> str:
    """Return two tables for each metric: means, and differences; one for metrics of whole sets."""
    lines = [f"protocol {summary['protocol']['name']} {summary['protocol']['hash']}"]
    for metric, about in summary["metrics"].items():
        unit = f" in {about['unit']}" if about["unit"] else ""
        direction = f"{about['better']} is better"
        lines += _means(summary, metric, f"{metric}{unit}, {direction}")
        lines += _sets(summary, metric, f"{metric}{unit}, {direction}")
        lines += _differences(summary, metric, f"{metric}{unit}", direction)
    return "\n".join(lines) + "\n"


def _means(summary: dict[str, Any], metric: str, title: str) -> list[str]:
    found = {(c["degradation"], c["method"]): c for c in summary["cells"] if c["metric"] == metric}
    if not found:
        return []
    methods, decimals = summary["methods"], summary["metrics"][metric]["decimals"]
    pictures = summary["pictures"]
    rows = {
        label: [
            number(found[label, method]["mean"], decimals) + _fewer(found[label, method], pictures)
            for method in methods
        ]
        for label in dict.fromkeys(label for label, _ in found)
    }
    return _table(
        f"{title}, mean of {pictures} faces{_explained(cells=found.values(), of=pictures)}",
        methods,
        rows,
    )


def _sets(summary: dict[str, Any], metric: str, title: str) -> list[str]:
    found = {(c["degradation"], c["method"]): c for c in summary["sets"] if c["metric"] == metric}
    if not found:
        return []
    methods, decimals = summary["methods"], summary["metrics"][metric]["decimals"]
    rows = {
        label: [number(found[label, method]["value"], decimals) for method in methods]
        for label in dict.fromkeys(label for label, _ in found)
    }
    return _table(f"{title}, of all {summary['pictures']} faces together", methods, rows)


def _differences(summary: dict[str, Any], metric: str, title: str, direction: str) -> list[str]:
    cells = [cell for cell in summary["differences"] if cell["metric"] == metric]
    if not cells:
        return []
    decimals = summary["metrics"][metric]["decimals"]
    others = list(dict.fromkeys(cell["against"] for cell in cells))
    found = {(cell["degradation"], cell["against"]): cell for cell in cells}
    pictures = summary["pictures"]
    rows = {
        label: [
            _difference(found[label, other], decimals) + _fewer(found[label, other], pictures)
            for other in others
        ]
        for label in dict.fromkeys(cell["degradation"] for cell in cells)
    }
    marks = {summary["baseline_method"]: " (baseline)"}
    heads = [f"minus {other}{marks.get(other, '')}" for other in others]
    explained = f"mean difference on the same faces and its 95 % interval, {direction}"
    explained += _explained(cells=cells, of=pictures)
    return _table(f"{title}, {summary['main_method']}: {explained}", heads, rows)


def _difference(cell: dict[str, Any], decimals: int) -> str:
    mean = number(cell["mean"], decimals, signed=True)
    return f"{mean} ({interval(cell, decimals)})" if cell["count"] else mean


def _fewer(cell: dict[str, Any], pictures: int) -> str:
    """How many faces have a value, where some have none: their mean is that of other faces."""
    return "" if cell["count"] == pictures else f" (n={cell['count']})"


def _explained(*, cells: Iterable[dict[str, Any]], of: int) -> str:
    if all(cell["count"] == of for cell in cells):
        return ""
    return "; n: where only so many faces have a value"


def _table(title: str, columns: list[str], rows: dict[str, list[str]]) -> list[str]:
    lines = ["", title, "", f"| degradation | {' | '.join(columns)} |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    return lines + [f"| {label} | {' | '.join(cells)} |" for label, cells in rows.items()]
