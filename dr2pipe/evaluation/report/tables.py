"""Tables of a report. All numbers become text here, so that templates only lay them out."""

from __future__ import annotations

import math
from typing import Any

from dr2pipe.evaluation.report import plots


def number(value: float | None, decimals: int, *, signed: bool = False) -> str:
    """Return a number as text, with a true minus sign; a dash for None and NaN."""
    if value is None or math.isnan(value):
        return "–"
    text = "∞" if math.isinf(value) else f"{abs(value):.{decimals}f}"
    if value < 0 and float(f"{value:.{decimals}f}") != 0:
        return f"−{text}"
    return f"+{text}" if signed else text


def interval(estimate: dict[str, Any], decimals: int) -> str:
    """Return the interval of an estimate as text."""
    return f"{number(estimate['low'], decimals)}…{number(estimate['high'], decimals)}"


def describe_metric(summary: dict[str, Any], metric: str) -> dict[str, Any]:
    """Return name, title, and unit and direction of a metric."""
    about = summary["metrics"][metric]
    facts = [about["unit"], f"{about['better']} is better", about.get("range")]
    title = plots.metric_title(metric)
    return {"name": metric, "title": title, "about": ", ".join(fact for fact in facts if fact)}


def metric_table(summary: dict[str, Any], metric: str) -> dict[str, Any]:
    """Return a metric with its rows (a degradation or a mean of several) and cells by method."""
    cells = [cell for cell in summary["cells"] if cell["metric"] == metric]
    known = {degradation["label"]: degradation for degradation in summary["degradations"]}
    rows = []
    for label in dict.fromkeys(cell["degradation"] for cell in cells):
        found = {cell["method"]: cell for cell in cells if cell["degradation"] == label}
        degradation = known.get(label)
        rows.append(
            {
                "label": label,
                "is_mean": degradation is None,
                "is_unseen": bool(degradation and degradation["unseen"]),
                "cells": _row_cells(summary, metric, found),
            }
        )
    return describe_metric(summary, metric) | {"rows": rows}


def set_tables(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Return tables of the metrics of whole sets, which have one value and no interval."""
    tables = []
    for metric in dict.fromkeys(cell["metric"] for cell in summary["sets"]):
        cells = [cell for cell in summary["sets"] if cell["metric"] == metric]
        decimals = summary["metrics"][metric]["decimals"]
        found = {(cell["degradation"], cell["method"]): cell["value"] for cell in cells}
        rows = {
            label: [number(found.get((label, m)), decimals) for m in summary["methods"]]
            for label in dict.fromkeys(cell["degradation"] for cell in cells)
        }
        tables.append(describe_metric(summary, metric) | {"rows": rows})
    return tables


def group_tables(summary: dict[str, Any], groups: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a table per metric for a column of groups: means by group, and the gaps."""
    tables = []
    for metric in dict.fromkeys(cell["metric"] for cell in groups["cells"]):
        cells = [cell for cell in groups["cells"] if cell["metric"] == metric]
        decimals = summary["metrics"][metric]["decimals"]
        rows = []
        for group in dict.fromkeys(cell["group"] for cell in cells):
            found = {cell["method"]: cell for cell in cells if cell["group"] == group}
            counts = [cell["count"] for cell in found.values()]
            texts = [
                (number(found[m]["mean"], decimals), interval(found[m], decimals))
                if m in found
                else ("–", "")
                for m in summary["methods"]
            ]
            rows.append({"group": group, "count": max(counts), "cells": texts})
        gaps = {gap["method"]: gap for gap in groups["gaps"] if gap["metric"] == metric}
        shown = [
            (number(gaps[m]["gap"], decimals), f"{gaps[m]['worst']} worst")
            if m in gaps
            else ("–", "")
            for m in summary["methods"]
        ]
        tables.append(describe_metric(summary, metric) | {"rows": rows, "gaps": shown})
    return tables


def _row_cells(
    summary: dict[str, Any], metric: str, found: dict[str, dict[str, Any]]
) -> list[dict[str, Any] | None]:
    """Return the texts of a row by method, None if there is no value; the best are marked."""
    about = summary["metrics"][metric]
    decimals = about["decimals"]
    means = {m: found[m]["mean"] for m in summary["methods"] if m in found}
    means = {m: mean for m, mean in means.items() if mean is not None and not math.isnan(mean)}
    best = (max if about["better"] == "higher" else min)(means.values(), default=None)
    cells: list[dict[str, Any] | None] = []
    for method in summary["methods"]:
        if method not in means:
            cells.append(None)
            continue
        cell = found[method]
        text = number(cell["mean"], decimals)
        shown = {
            "mean": text,
            "interval": interval(cell, decimals),
            "is_best": text == number(best, decimals),  # all that look equal
            # Some metrics have no value for some faces.
            "count": cell["count"] if cell["count"] < summary["pictures"] else None,
            "difference": None,
        }
        difference = cell.get("difference")
        if plots.is_known(difference):
            shown["difference"] = number(difference["mean"], decimals, signed=True)
            shown["difference_interval"] = interval(difference, decimals)
            shown["verdict"] = plots.verdict(difference, about["better"])
        cells.append(shown)
    return cells
