"""Plots of studies and sweeps, each as the bytes of a PNG file.

They take the content of ``summary.json``. Figures are made without pyplot: there is no window and
no global state, so threads may draw at the same time.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from dr2pipe.core.extras import needs_extra

with needs_extra("evaluate"):
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

FloatArray = npt.NDArray[np.float64]

DPI = 120
_GREY, _BETTER, _WORSE = "#777777", "#1b7f4d", "#b3362b"
_BASELINE, _MAIN = "#0072b2", "#d55e00"  # of Okabe and Ito's palette, as the others
_OTHERS = ("#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6a5acd", "#8c6d46")
_MARKERS = "osD^vP"
_TITLES = {
    "psnr": "PSNR",
    "psnr_luma": "PSNR of luma",
    "ssim": "SSIM",
    "ms_ssim": "MS-SSIM",
    "lpips": "LPIPS",
    "niqe": "NIQE",
    "fid": "FID",
    "kid": "KID",
}
_FILTERS = {
    "bicubic": ("factor", "N = {}"),
    "gaussian": ("sigma_px", "σ = {} px"),
    "fft": ("cutoff", "cutoff {}"),
}
# An axis of a heat map: its title, and a function from a point's settings to (place, label).
Axis = tuple[str, Callable[[dict[str, Any]], tuple[Any, str]]]


def plot_histogram(values: Sequence[float | None], title: str, counted: str) -> bytes | None:
    """How often values come; None where there are fewer than two.

    Args:
        values: None are left out.
        title: of the horizontal axis.
        counted: what is counted, the title of the vertical axis.
    """
    numbers = [value for value in values if value is not None]
    if len(numbers) < 2:
        return None
    figure = Figure(figsize=(4.6, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.hist(numbers, bins=min(20, max(5, len(numbers) // 4)), color=_MAIN)
    axes.axvline(float(np.median(numbers)), color=_GREY, linestyle="--")
    axes.set(xlabel=title, ylabel=counted)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def metric_title(name: str) -> str:
    """Return the name of a metric as people write it."""
    return _TITLES.get(name, name.replace("_", " "))


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


# -- evaluations -----------------------------------------------------------------------------


def plot_severities(summary: dict[str, Any], metric: str) -> bytes | None:
    """Plot a metric over severity, a panel for each family; None if no family has two severities."""
    families: dict[str, list[dict[str, Any]]] = {}
    for degradation in summary["degradations"]:
        if degradation["severity"] is not None:
            families.setdefault(degradation["family"], []).append(degradation)
    families = {family: found for family, found in families.items() if len(found) > 1}
    cells = _cells_of(summary, metric)
    if not families or not cells:
        return None
    columns = min(3, len(families))
    rows = math.ceil(len(families) / columns)
    figure = Figure(figsize=(3 * columns + 0.4, 2.5 * rows + 0.9), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    styles = _styles(summary)
    for panel, (family, found) in zip(panels, families.items(), strict=False):
        found = sorted(found, key=lambda degradation: degradation["severity"])
        severities = [degradation["severity"] for degradation in found]
        for method, style in styles.items():
            chosen = [cells[degradation["label"], method] for degradation in found]
            mean, low, high = (_numbers(chosen, key) for key in ("mean", "low", "high"))
            panel.plot(severities, mean, **style)
            panel.fill_between(severities, low, high, color=style["color"], alpha=0.13, lw=0)
        panel.set_title(_plain(family.replace("_", " ")))
        panel.set_xticks(severities)
        panel.set_xlabel("severity")
        _tidy(panel)
    for panel in list(panels)[len(families) :]:
        panel.set_visible(False)
    handles = [Line2D([], [], **style) for style in styles.values()]
    names = [_plain(method) for method in styles]
    figure.legend(
        handles, names, loc="outside lower center", ncols=min(4, len(names)), frameon=False
    )
    figure.supylabel(_metric_label(summary, metric), fontsize=10)
    return _png(figure)


def plot_differences(summary: dict[str, Any], metric: str) -> bytes | None:
    """Plot main method minus baseline by degradation, with intervals; None without differences."""
    method, baseline = summary["main_method"], summary["baseline_method"]
    found = [
        (label, cell["difference"])
        for (label, name), cell in _cells_of(summary, metric).items()
        if name == method and is_known(cell["difference"])
    ]
    if not found:
        return None
    figure = Figure(figsize=(7.2, 0.3 * len(found) + 1.3), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color=_GREY, lw=1)
    better = summary["metrics"][metric]["better"]
    colours = {"better": _BETTER, "worse": _WORSE, "unclear": _GREY}
    for place, (_, difference) in enumerate(found):
        mean, low, high = (difference[key] for key in ("mean", "low", "high"))
        colour = colours[verdict(difference, better)]
        axes.plot([low, high], [place, place], color=colour, lw=3, alpha=0.45)
        axes.plot([mean], [place], "o", color=colour, ms=6)
    axes.set_yticks(range(len(found)), [_plain(label) for label, _ in found])
    axes.set_ylim(len(found) - 0.4, -0.6)  # the first on top
    unit = summary["metrics"][metric]["unit"]
    side = "right" if better == "higher" else "left"
    axes.set_xlabel(
        f"{metric_title(metric)}: {_plain(method)} minus {_plain(baseline)}"
        f"{f', {unit}' if unit else ''} ({side} is better)"
    )
    _tidy(axes)
    axes.grid(axis="y", visible=False)
    return _png(figure)


def plot_calibration(uncertainty: dict[str, Any]) -> bytes:
    """Plot the mean error of pixels over the spread of samples; marks grow with their number."""
    bins = [b for b in uncertainty["bins"] if b["count"]]
    spread, error, count = (_numbers(bins, key) for key in ("spread", "error", "count"))
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(spread, error, color=_MAIN, lw=2)
    axes.scatter(spread, error, 20 + 80 * count / max(count.max(initial=1), 1), color=_MAIN)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"spread of {uncertainty['samples']} samples, levels of 255")
    axes.set_ylabel("true error of their mean, levels of 255")
    _tidy(axes)
    return _png(figure)


def is_known(estimate: dict[str, Any] | None) -> TypeGuard[dict[str, Any]]:
    """Whether an estimate has a value and an interval; NaN and null are none."""
    return estimate is not None and all(
        estimate[key] is not None and math.isfinite(estimate[key])
        for key in ("mean", "low", "high")
    )


def verdict(difference: dict[str, float], better: str) -> str:
    """Return ``better`` or ``worse`` if the interval of a difference excludes 0, else ``unclear``."""
    if difference["low"] <= 0 <= difference["high"]:
        return "unclear"
    return "better" if (difference["low"] > 0) == (better == "higher") else "worse"


def _cells_of(summary: dict[str, Any], metric: str) -> dict[tuple[str, str], dict[str, Any]]:
    found = [cell for cell in summary["cells"] if cell["metric"] == metric]
    return {(cell["degradation"], cell["method"]): cell for cell in found}


def _styles(summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Line styles by method: the main one stands out, the baseline is dashed, the input grey."""
    styles: dict[str, dict[str, Any]] = {}
    for i, method in enumerate(summary["methods"]):
        style = {"color": _OTHERS[i % len(_OTHERS)], "lw": 1.3, "zorder": 2}
        if method == "input":
            style |= {"color": _GREY, "ls": ":"}
        if method == summary["baseline_method"]:
            style |= {"color": _BASELINE, "lw": 1.8, "ls": "--"}
        if method == summary["main_method"]:
            style |= {"color": _MAIN, "lw": 2.6, "ls": "-", "zorder": 3}
        styles[method] = style | {"marker": _MARKERS[i % len(_MARKERS)], "ms": 4.5}
    return styles


# -- sweeps ----------------------------------------------------------------------------------


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
        panel.set_title(_plain(label))
        panel.set_xticks(range(len(across)), across.values())
        panel.set_yticks(range(len(along)), along.values())
        panel.set_xlabel(horizontal[0])
        panel.set_ylabel(vertical[0])
    for panel in panels[len(labels) :]:
        panel.set_visible(False)
    figure.suptitle(_metric_label(summary, summary["chosen_metric"]), fontsize=11)
    return _png(figure)


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
    fidelity, removal = (_numbers(points, key) for key in ("fidelity", "removal"))
    values = np.array([point["values"]["mean"][chosen] for point in points], dtype=float)
    marks = axes.scatter(fidelity, removal, 34, values, cmap=_colours(summary), zorder=2)
    figure.colorbar(marks, label=f"mean {_metric_label(summary, chosen)}", shrink=0.8)
    front = sorted((p for p in points if p.get("pareto")), key=lambda point: point["fidelity"])
    axes.plot(
        *(_numbers(front, key) for key in ("fidelity", "removal")), color=_MAIN, lw=1.5, zorder=1
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
    axes.plot([], [], color=_MAIN, label="front, with (N, τ, ω)")
    axes.legend(loc="lower left", frameon=False)
    axes.set_xlabel("fidelity, dB: how much of a clean face is kept")
    axes.set_ylabel("removal, dB: how little of the degradation is left")
    _tidy(axes)
    return _png(figure)


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
    panel.plot(x, y, color=_MAIN, lw=3, clip_on=False)


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


# -- all plots -------------------------------------------------------------------------------


def _colours(summary: dict[str, Any]) -> str:
    """Bright is good."""
    better = summary["metrics"][summary["chosen_metric"]]["better"]
    return "viridis" if better == "higher" else "viridis_r"


def _metric_label(summary: dict[str, Any], metric: str) -> str:
    unit = summary["metrics"][metric]["unit"]
    better = summary["metrics"][metric]["better"]
    return f"{metric_title(metric)}{f' in {unit}' if unit else ''} ({better} is better)"


def _numbers(rows: list[dict[str, Any]], key: str) -> FloatArray:
    """A column as floats; null becomes NaN, which is not drawn."""
    return np.array([row[key] for row in rows], dtype=float)


def _plain(text: str) -> str:
    """Names may hold a dollar sign, which would begin a formula."""
    return text.replace("$", r"\$")


def _tidy(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI)
    return buffer.getvalue()
