"""Plots of studies and sweeps, each as the bytes of a PNG file.

They take the content of ``summary.json``. Figures are made without pyplot: there is no window and
no global state, so threads may draw at the same time.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
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
_BASELINE, MAIN = "#0072b2", "#d55e00"  # of Okabe and Ito's palette, as the others
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
    axes.hist(numbers, bins=min(20, max(5, len(numbers) // 4)), color=MAIN)
    axes.axvline(float(np.median(numbers)), color=_GREY, linestyle="--")
    axes.set(xlabel=title, ylabel=counted)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    return png_of(figure)


def metric_title(name: str) -> str:
    """Return the name of a metric as people write it."""
    return _TITLES.get(name, name.replace("_", " "))


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
            mean, low, high = (numbers_of(chosen, key) for key in ("mean", "low", "high"))
            panel.plot(severities, mean, **style)
            panel.fill_between(severities, low, high, color=style["color"], alpha=0.13, lw=0)
        panel.set_title(plain_text(family.replace("_", " ")))
        panel.set_xticks(severities)
        panel.set_xlabel("severity")
        tidy(panel)
    for panel in list(panels)[len(families) :]:
        panel.set_visible(False)
    handles = [Line2D([], [], **style) for style in styles.values()]
    names = [plain_text(method) for method in styles]
    figure.legend(
        handles, names, loc="outside lower center", ncols=min(4, len(names)), frameon=False
    )
    figure.supylabel(metric_label(summary, metric), fontsize=10)
    return png_of(figure)


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
    axes.set_yticks(range(len(found)), [plain_text(label) for label, _ in found])
    axes.set_ylim(len(found) - 0.4, -0.6)  # the first on top
    unit = summary["metrics"][metric]["unit"]
    side = "right" if better == "higher" else "left"
    axes.set_xlabel(
        f"{metric_title(metric)}: {plain_text(method)} minus {plain_text(baseline)}"
        f"{f', {unit}' if unit else ''} ({side} is better)"
    )
    tidy(axes)
    axes.grid(axis="y", visible=False)
    return png_of(figure)


def plot_calibration(uncertainty: dict[str, Any]) -> bytes:
    """Plot the mean error of pixels over the spread of samples; marks grow with their number."""
    bins = [b for b in uncertainty["bins"] if b["count"]]
    spread, error, count = (numbers_of(bins, key) for key in ("spread", "error", "count"))
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(spread, error, color=MAIN, lw=2)
    axes.scatter(spread, error, 20 + 80 * count / max(count.max(initial=1), 1), color=MAIN)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"spread of {uncertainty['samples']} samples, levels of 255")
    axes.set_ylabel("true error of their mean, levels of 255")
    tidy(axes)
    return png_of(figure)


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
            style |= {"color": MAIN, "lw": 2.6, "ls": "-", "zorder": 3}
        styles[method] = style | {"marker": _MARKERS[i % len(_MARKERS)], "ms": 4.5}
    return styles


# -- all plots -------------------------------------------------------------------------------


def metric_label(summary: dict[str, Any], metric: str) -> str:
    """A metric's name with its unit, and which values are better."""
    unit = summary["metrics"][metric]["unit"]
    better = summary["metrics"][metric]["better"]
    return f"{metric_title(metric)}{f' in {unit}' if unit else ''} ({better} is better)"


def numbers_of(rows: list[dict[str, Any]], key: str) -> FloatArray:
    """A column as floats; null becomes NaN, which is not drawn."""
    return np.array([row[key] for row in rows], dtype=float)


def plain_text(text: str) -> str:
    """Names may hold a dollar sign, which would begin a formula."""
    return text.replace("$", r"\$")


def tidy(axes: Axes) -> None:
    """Draw a light grid and no frame above and to the right."""
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def png_of(figure: Figure) -> bytes:
    """The bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI)
    return buffer.getvalue()
