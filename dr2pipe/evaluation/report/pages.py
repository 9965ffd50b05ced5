"""Reports of studies and sweeps: one HTML file each, which needs no network.

The file contains its styles, script, plots and pictures; the plots are also PNG files beside it.
The numbers come from ``summary.json``.
"""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from dr2pipe.core import files
from dr2pipe.core.config import to_yaml
from dr2pipe.core.errors import ConfigError
from dr2pipe.core.extras import needs_extra
from dr2pipe.evaluation.report import plots, sweep_plots, tables

with needs_extra("evaluate"):
    from jinja2 import Environment, PackageLoader, StrictUndefined

ROLES = ("best", "median", "worst")
# Examples are lossless as long as all of them take less than this many bytes.
_LOSSLESS_BYTES = 9_000_000
_LOSSY_QUALITY = 92
# What all pages have, and a page of another program hardly.
_GENERATORS = b'<meta name="generator" content="dr2pipe">', b"default-src 'none'; img-src data:"
_PAGE_PX_PER_INCH = 70  # of plots, in CSS pixels; they are drawn finer than that


@dataclass(frozen=True)
class Example:
    """One face of the examples, as every method restored it.

    Attributes:
        degradation: label of one of the summary's degradations.
        role: one of ``ROLES``.
        picture: its name.
        value: of the main method, in the first metric that the summary has cells of.
        versions: (H,W,3) uint8 RGB by name, of one aspect ratio; "original" first, then the
            methods in the order of the protocol.
    """

    degradation: str
    role: str
    picture: str
    value: float
    versions: dict[str, npt.NDArray[np.uint8]]


def write_evaluation_report(
    folder: str | Path, summary: dict[str, Any], examples: list[Example]
) -> Path:
    """Write ``report.html`` and ``plots/`` of a study; return the path of the report."""
    measured = {cell["metric"] for cell in summary["cells"]}
    metrics = [name for name in summary["metrics"] if name in measured]
    drawings: dict[str, bytes | None] = {}
    for metric in metrics:
        drawings[f"difference_{metric}"] = plots.plot_differences(summary, metric)
        drawings[f"severity_{metric}"] = plots.plot_severities(summary, metric)
    if summary["uncertainty"] and any(b["count"] for b in summary["uncertainty"]["bins"]):
        drawings["calibration"] = plots.plot_calibration(summary["uncertainty"])
    protocol = summary["protocol"]
    versions = list(dict.fromkeys(name for example in examples for name in example.versions))
    content = {
        "title": protocol["name"],
        "summary": summary,
        "settings": _settings_of(summary, protocol),
        "plots": write_plots(Path(folder), drawings),
        "tables": [tables.metric_table(summary, metric) for metric in metrics],
        "sets": tables.set_tables(summary),
        "groups": {
            title: tables.group_tables(summary, g) for title, g in summary["groups"].items()
        },
        "methods": [_method_line(summary, method) for method in summary["methods"]],
        "versions": versions,
        "compared": _compared(summary, versions) if versions else {},
        "correlation": _correlation(summary),
        "examples": _example_sections(summary, examples, metrics),
    }
    return write_page(folder, "evaluation.html", content)


def write_sweep_report(folder: str | Path, summary: dict[str, Any]) -> Path:
    """Write ``report.html`` and ``plots/`` of a sweep; return the path of the report."""
    drawings = {
        "heatmap_tau_omega": sweep_plots.plot_heat_maps(
            summary, sweep_plots.TAU, sweep_plots.OMEGA
        ),
        "heatmap_filter_tau": sweep_plots.plot_heat_maps(
            summary, sweep_plots.TAU, sweep_plots.FILTER
        ),
        "pareto": sweep_plots.plot_pareto(summary),
    }
    naive, computed = summary["calls"]["naive"], summary["calls"]["made"]
    lines = {point["id"]: _point_line(summary, point) for point in summary["points"]}
    chosen = summary["metrics"][summary["chosen_metric"]]
    sign = -1 if chosen["better"] == "higher" else 1
    values = {p["id"]: _value_of(summary, p, "mean") for p in summary["points"]}
    content = {
        "title": summary["name"],
        "summary": summary,
        "settings": to_yaml(summary["settings"]),
        "chosen": tables.describe_metric(summary, summary["chosen_metric"]),
        "other_metrics": [
            plots.metric_title(m) for m in summary["metrics"] if m != summary["chosen_metric"]
        ],
        "plots": write_plots(Path(folder), drawings),
        "saved": f"{1 - computed / naive:.0%}" if computed else None,
        "best": {label: lines[name] for label, name in summary["best"].items()},
        "points": [
            lines[name] for name in sorted(lines, key=lambda name: _rank(sign, values[name]))
        ],
    }
    return write_page(folder, "sweep.html", content)


# -- parts of both ---------------------------------------------------------------------------


def write_page(folder: str | Path, template: str, content: dict[str, Any]) -> Path:
    """Write ``report.html`` from a template; return its path."""
    # Names of pictures, methods and degradations come from users: everything is escaped.
    environment = Environment(
        loader=PackageLoader("dr2pipe.evaluation.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    path = Path(folder) / "report.html"
    if path.exists() and not _is_report(path):
        raise ConfigError(f"{path} is there, and no report: move it away")
    text = environment.get_template(template).render(content)
    files.write_bytes(path, text.encode("utf-8", "replace"))  # file names may be no valid text
    return path


def _is_report(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as page:
        start = page.read(2000)
    return any(said in start for said in _GENERATORS)


def write_plots(
    folder: Path | None, drawings: dict[str, bytes | None]
) -> dict[str, dict[str, Any]]:
    """The data URI and the width on the page of each plot.

    With a folder, they are also written to its ``plots/``.
    """
    present = {name: data for name, data in drawings.items() if data is not None}
    if folder is not None:
        for name, data in present.items():
            files.write_bytes(folder / "plots" / f"{name}.png", data)
    widths = {name: Image.open(io.BytesIO(data)).width for name, data in present.items()}
    return {
        name: {
            "uri": uri_of(data, "png"),
            "width": round(widths[name] * _PAGE_PX_PER_INCH / plots.DPI),
        }
        for name, data in present.items()
    }


def uri_of(data: bytes, kind: str) -> str:
    """A picture's file as a data URI; ``kind`` is png or webp."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


# -- evaluations -----------------------------------------------------------------------------


def _settings_of(summary: dict[str, Any], protocol: dict[str, Any]) -> str:
    """Return all that decides the values, as YAML."""
    settings = {k: v for k, v in protocol.items() if k not in ("name", "hash")}
    return to_yaml(settings | {"versions": summary["versions"]})


def _method_line(summary: dict[str, Any], method: str) -> dict[str, Any]:
    """Return what the report says of a method: its part in the study, what it does, its cost."""
    parts = {"main_method": "main", "baseline_method": "baseline"}
    stages = summary["protocol"].get("methods", {}).get(method)
    calls = summary["calls"].get(method)
    return {
        "name": method,
        "part": ", ".join(text for key, text in parts.items() if summary[key] == method),
        "does": "" if stages is None else _describe_stages(stages),
        "calls": "" if calls is None else f"{calls:g}",
    }


def _describe_stages(stages: dict[str, Any]) -> str:
    """Put an entry of :meth:`dr2pipe.evaluation.methods.Methods.describe` into words."""
    texts = ["pictures made elsewhere"] if stages.get("made_elsewhere") else []
    if "dr2" in stages:
        texts.append(f"DR2 ({_describe_dr2(stages['dr2'])})")
    if "enhancer" in stages:
        texts.append(f"enhancer {stages['enhancer']['name']}")
    return " → ".join(texts) or "the degraded picture, enlarged"


def _describe_dr2(dr2: dict[str, Any]) -> str:
    if dr2["mode"] == "auto":
        return "settings chosen for each picture"
    texts = [sweep_plots.filter_label(dr2), f"τ = {dr2['tau']}", f"ω = {dr2['omega']}"]
    if dr2["num_evaluations"] is not None:
        texts.append(f"{dr2['num_evaluations']} evaluations")
    if dr2.get("antithetic"):
        texts.append("antithetic noise")
    return ", ".join(texts)


def _correlation(summary: dict[str, Any]) -> str | None:
    uncertainty = summary["uncertainty"]
    return tables.number(uncertainty["correlation"], 2) if uncertainty else None


def _compared(summary: dict[str, Any], versions: list[str]) -> dict[str, str]:
    """Return the versions that are shown first, left and right."""
    wanted = {"left": "input", "right": summary["main_method"]}
    return {side: name if name in versions else versions[0] for side, name in wanted.items()}


def _example_sections(
    summary: dict[str, Any], examples: list[Example], metrics: list[str]
) -> list[dict[str, Any]]:
    """Return examples by degradation, in the order of the summary, from best to worst."""
    no_metric: dict[str, Any] = {"unit": "", "decimals": 3}
    about = summary["metrics"][metrics[0]] if metrics else no_metric
    title = plots.metric_title(metrics[0]) if metrics else ""
    encoded = iter(_encode(examples))
    uris = [{name: next(encoded) for name in example.versions} for example in examples]
    sections = []
    for degradation in summary["degradations"]:
        places = [i for i, e in enumerate(examples) if e.degradation == degradation["label"]]
        cards = [
            {
                "role": examples[i].role,
                "picture": examples[i].picture,
                "value": f"{title} {tables.number(examples[i].value, about['decimals'])} {about['unit']}",
                "versions": uris[i],
            }
            for i in sorted(places, key=lambda i: ROLES.index(examples[i].role))
        ]
        if cards:
            sections.append({"label": degradation["label"], "cards": cards})
    return sections


def _encode(examples: list[Example]) -> list[str]:
    """Return data URIs of all versions, lossless unless that would make the report too large."""
    pictures = [pixels for example in examples for pixels in example.versions.values()]
    lossless, total = [], 0
    for pixels in pictures:
        lossless.append(encode_webp(pixels))
        total += len(lossless[-1])
        if total > _LOSSLESS_BYTES:
            lossy = (encode_webp(pixels, quality=_LOSSY_QUALITY) for pixels in pictures)
            return [uri_of(data, "webp") for data in lossy]
    return [uri_of(data, "webp") for data in lossless]


# -- sweeps ----------------------------------------------------------------------------------


def _rank(sign: int, value: float | None) -> float:
    return math.inf if value is None or math.isnan(value) else sign * value


def _value_of(summary: dict[str, Any], point: dict[str, Any], label: str) -> float | None:
    value: float | None = point["values"][label][summary["chosen_metric"]]
    return value


def _point_line(summary: dict[str, Any], point: dict[str, Any]) -> dict[str, Any]:
    """Return a point of a sweep as a line of the table."""
    settings = point["settings"]
    chosen, labels = summary["chosen_metric"], summary["degradations"]
    decimals = {name: about["decimals"] for name, about in summary["metrics"].items()}
    line: dict[str, Any] = {"id": point["id"], "settings": ["off", "", "", "", ""]}
    if settings.get("enabled", True):
        omega, evaluations = settings["omega"], settings["num_evaluations"]
        line["settings"] = [
            sweep_plots.filter_label(settings),
            settings["tau"],
            "default" if omega is None else omega,
            settings["scheduler"] or "of the model",
            ("all" if evaluations is None else str(evaluations))
            + (" x 2, antithetic" if settings.get("antithetic") else ""),
        ]
    means = point["values"]["mean"]
    return line | {
        "calls": f"{point['calls']:g}",
        "values": {
            k: tables.number(_value_of(summary, point, k), decimals[chosen])
            for k in [*labels, "mean"]
        },
        "others": [tables.number(means[m], decimals[m]) for m in summary["metrics"] if m != chosen],
        "fidelity": tables.number(point["fidelity"], 2),
        "removal": tables.number(point["removal"], 2),
        "is_on_front": bool(point.get("pareto")),
        "is_best": point["id"] == summary["best"].get("mean"),
    }


def encode_webp(pixels: npt.NDArray[np.uint8], *, quality: int | None = None) -> bytes:
    """Encode (H,W,3) uint8 RGB as WebP of ``quality`` 1..100; None is lossless.

    Lossless WebP takes a quarter less than PNG.
    """
    buffer = io.BytesIO()
    how: dict[str, Any] = {"lossless": True} if quality is None else {"quality": quality}
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "WEBP", **how)
    return buffer.getvalue()
