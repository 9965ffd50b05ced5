"""Plots of sweeps, each as the bytes of a PNG file, from the content of ``summary.json``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from dr2pipe.core.extras import needs_extra
from dr2pipe.evaluation.report.plots import (
    MAIN,
    FloatArray,
    metric_label,
    numbers_of,
    plain_text,
    png_of,
    tidy,
)

with needs_extra("evaluate"):
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FILTERS = {
    "bicubic": ("factor", "N = {}"),
    "gaussian": ("sigma_px", "σ = {} px"),
    "fft": ("cutoff", "cutoff {}"),
}
# An axis of a heat map: its title, and a function from a point's settings to (place, label).
Axis = tuple[str, Callable[[dict[str, Any]], tuple[Any, str]]]


def filter_label(settings: dict[str, Any]) -> str:
    """Return the low-pass filter of some settings and its strength, as text."""
    key, pattern = _FILTERS.get(settings["low_pass"], (None, settings["low_pass"]))
    return pattern.format(f"{settings[key]:g}") if key else pattern


def _filter_place(settings: dict[str, Any]) -> tuple[Any, str]:
    key = _FILTERS.get(settings["low_pass"], (None,))[0]
    return (settings["low_pass"], settings[key] if key else 0), filter_label(settings)


def _number_place(name: str) -> Callable[[dict[str, Any]], tuple[Any, str]]:
    def place(settings: dict[str, Any]) -> tuple[Any, str]:
        value = settings[name]
        return (math.inf, "default") if value is None else (value, f"{value:g}")

    return place


TAU: Axis = ("τ", _number_place("tau"))
OMEGA: Axis = ("ω", _number_place("omega"))
FILTER: Axis = ("low-pass filter", _filter_place)


def plot_heat_maps(summary: dict[str, Any], horizontal: Axis, vertical: Axis) -> bytes | None:
    """Plot the chosen metric over two settings, a map for each degradation and for the mean.

    A cell shows its best point; a frame marks the best cell. None if there is only one cell.
    """
    points = [point for point in summary["points"] if point["settings"].get("enabled", True)]
    across, along = (_places(points, axis) for axis in (horizontal, vertical))
    if len(across) * len(along) < 2:
        return None
    labels = [*summary["degradations"], "mean"]
    width, height = 0.62 * len(across) + 1, 0.42 * len(along) + 1
    rows = math.ceil(len(labels) / max(1, int(13 // width)))
    columns = math.ceil(len(labels) / rows)
    figure = Figure(figsize=(max(4, columns * width), rows * height + 0.3), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel, label in zip(panels, labels, strict=False):
        grid = _best_values(summary, points, label, horizontal, vertical)
        _draw_heat_map(panel, grid, summary["metrics"][summary["chosen_metric"]])
        panel.set_title(plain_text(label))
        panel.set_xticks(range(len(across)), across.values())
        panel.set_yticks(range(len(along)), along.values())
        panel.set_xlabel(horizontal[0])
        panel.set_ylabel(vertical[0])
    for panel in panels[len(labels) :]:
        panel.set_visible(False)
    figure.suptitle(metric_label(summary, summary["chosen_metric"]), fontsize=11)
    return png_of(figure)


def plot_pareto(summary: dict[str, Any]) -> bytes | None:
    """Plot fidelity against removal, with the Pareto front; None if no point has both."""
    points = [
        p for p in summary["points"] if p["fidelity"] is not None and p["removal"] is not None
    ]
    if not points:
        return None
    chosen = summary["chosen_metric"]
    figure = Figure(figsize=(10.5, 6.5), layout="constrained")
    axes = figure.subplots()
    fidelity, removal = (numbers_of(points, key) for key in ("fidelity", "removal"))
    values = np.array([point["values"]["mean"][chosen] for point in points], dtype=float)
    marks = axes.scatter(fidelity, removal, 34, values, cmap=_colours(summary), zorder=2)
    figure.colorbar(marks, label=f"mean {metric_label(summary, chosen)}", shrink=0.8)
    front = sorted((p for p in points if p.get("pareto")), key=lambda point: point["fidelity"])
    axes.plot(
        *(numbers_of(front, key) for key in ("fidelity", "removal")), color=MAIN, lw=1.5, zorder=1
    )
    axes.margins(0.12, 0.16)  # room for the labels of the outermost points
    for point, has_room in zip(front, _with_room(front, axes), strict=True):
        if has_room:
            axes.annotate(
                _triple(point["settings"]),
                (point["fidelity"], point["removal"]),
                xytext=(4, 5),
                textcoords="offset points",
                rotation=30,
                fontsize=9.5,
            )
    best = next(point for point in summary["points"] if point["id"] == summary["best"]["mean"])
    axes.scatter(
        [best["fidelity"]],
        [best["removal"]],
        110,
        facecolors="none",
        edgecolors="black",
        lw=1.5,
        zorder=3,
        label="best mean",
    )
    axes.plot([], [], color=MAIN, label="front, with (N, τ, ω)")
    axes.legend(loc="lower left", frameon=False)
    axes.set_xlabel("fidelity, dB: how much of a clean face is kept")
    axes.set_ylabel("removal, dB: how little of the degradation is left")
    tidy(axes)
    return png_of(figure)


def _places(points: list[dict[str, Any]], axis: Axis) -> dict[Any, str]:
    """Labels of the cells along an axis, by what orders them."""
    return dict(sorted({axis[1](point["settings"]) for point in points}))


def _best_values(
    summary: dict[str, Any],
    points: list[dict[str, Any]],
    label: str,
    horizontal: Axis,
    vertical: Axis,
) -> FloatArray:
    """(rows, columns) of the chosen metric, NaN where no point is."""
    metric = summary["chosen_metric"]
    best = np.fmax if summary["metrics"][metric]["better"] == "higher" else np.fmin
    columns, rows = (list(_places(points, axis)) for axis in (horizontal, vertical))
    grid = np.full((len(rows), len(columns)), np.nan)
    for point in points:
        i = rows.index(vertical[1](point["settings"])[0])
        j = columns.index(horizontal[1](point["settings"])[0])
        value = point["values"][label][metric]
        grid[i, j] = best(grid[i, j], np.nan if value is None else value)
    return grid


def _draw_heat_map(panel: Axes, grid: FloatArray, metric: dict[str, Any]) -> None:
    is_higher = metric["better"] == "higher"
    panel.imshow(grid, cmap="viridis" if is_higher else "viridis_r", aspect="auto", origin="lower")
    panel.set_facecolor("#eeeeee")
    if not np.isfinite(grid).any():
        return
    low, high = np.nanmin(grid), np.nanmax(grid)
    for (i, j), value in np.ndenumerate(grid):
        if np.isfinite(value):
            goodness = (value - low) / ((high - low) or 1)
            is_bright = (goodness if is_higher else 1 - goodness) > 0.6
            colour = "black" if is_bright else "white"
            text = f"{value:.{metric['decimals']}f}"
            panel.text(j, i, text, ha="center", va="center", color=colour, fontsize=9)
    best = np.nanargmax(grid) if is_higher else np.nanargmin(grid)
    i, j = np.unravel_index(best, grid.shape)
    x, y = j + np.array([-0.5, 0.5, 0.5, -0.5, -0.5]), i + np.array([-0.5, -0.5, 0.5, 0.5, -0.5])
    panel.plot(x, y, color=MAIN, lw=3, clip_on=False)


def _with_room(front: list[dict[str, Any]], axes: Axes) -> list[bool]:
    """Return which points get a label; labels of close ones would overlap."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    labelled: list[tuple[float, float]] = []
    chosen = []
    for point in front:
        place = (point["fidelity"] / (right - left), point["removal"] / (top - bottom))
        chosen.append(all(math.dist(place, other) > 0.035 for other in labelled))
        if chosen[-1]:
            labelled.append(place)
    return chosen


def _triple(settings: dict[str, Any]) -> str:
    strength = filter_label(settings).removeprefix("N = ")
    return f"({strength}, {settings['tau']}, {_number_place('omega')(settings)[1]})"


def _colours(summary: dict[str, Any]) -> str:
    """Bright is good."""
    better = summary["metrics"][summary["chosen_metric"]]["better"]
    return "viridis" if better == "higher" else "viridis_r"
