"""Turn the rows of a study into tables, intervals, groups, examples and the report."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dr2pipe.core import files, images
from dr2pipe.core.errors import ConfigError, PictureError
from dr2pipe.core.foreign import to_csv
from dr2pipe.core.records import finite, versions
from dr2pipe.degradations import UNSEEN
from dr2pipe.evaluation.calibration import pooled_bins
from dr2pipe.evaluation.report.markdown import markdown_tables
from dr2pipe.evaluation.report.pages import Example, write_evaluation_report
from dr2pipe.evaluation.statistics import estimate
from dr2pipe.evaluation.study import Row, Study
from dr2pipe.metrics import METRICS
from dr2pipe.metrics.reference import MOST_DB

FloatArray = npt.NDArray[np.float64]

_IN_DECIBELS = ("psnr", "psnr_luma")
MEANS = {"mean of chains": False, "mean of unseen families": True}  # title: whether unseen


def write_study_results(study: Study, rows: list[Row], output: Path) -> str:
    """Write results.csv, summary.json, table.md and report.html; return the table."""
    values = _values(study, rows)
    order = {name: i for i, name in enumerate(study.clean.names)}
    labels = {d.label: i for i, d in enumerate(study.degradations)}
    rows = sorted(rows, key=lambda row: (labels[row["degradation"]], order[row["picture"]]))
    files.write_bytes(output / "results.csv", to_csv(_csv_of(study, rows)))
    summary = summarise(study, rows, values)
    write_json(output / "summary.json", summary)
    table = markdown_tables(summary)
    files.write_bytes(output / "table.md", table.encode("utf-8", "surrogateescape"))
    write_evaluation_report(output, summary, _examples(study, values))
    return table


def summarise(study: Study, rows: list[Row], values: dict[str, FloatArray]) -> dict[str, Any]:
    """Return the content of summary.json; ``values`` by metric is (degradations, methods, faces)."""
    methods = list(study.methods.configs)
    cells = []
    for title, places in _row_groups(study).items():
        for metric, array in values.items():
            # The bootstrap draws faces, not results: results of one face depend on each other.
            faces = array[places].mean(axis=0)  # (methods, faces)
            base = faces[methods.index(study.baseline)]
            for method, of_method in zip(methods, faces, strict=True):
                cell: dict[str, Any] = {"degradation": title, "method": method, "metric": metric}
                cell |= dataclasses.asdict(estimate(of_method))
                difference = estimate(of_method - base)
                is_other = method != study.baseline and difference.count > 0
                if metric in _IN_DECIBELS:
                    cell["equal"] = int((array[places, methods.index(method)] >= MOST_DB).sum())
                cell["difference"] = dataclasses.asdict(difference) if is_other else None
                cells.append(cell)
    return {
        "protocol": {"name": study.protocol.name, "hash": study.hash}
        | {k: v for k, v in study.description.items() if k != "name"},
        "pictures": len(study.clean),
        "methods": methods,
        "main_method": study.main,
        "baseline_method": study.baseline,
        "metrics": {
            m: {k: getattr(METRICS[m], k) for k in ("unit", "better", "decimals", "range")}
            for m in study.metrics
        },
        "left_out": study.left_out,
        "degradations": [
            {"label": d.label, "family": d.name, "severity": d.severity}
            | {"unseen": d.name in UNSEEN}
            for d in study.degradations
        ],
        "cells": cells,
        "differences": list(_differences(study, values)),
        "sets": list(_sets(study)),
        "groups": _group_results(study, values),
        "calls": {m: float(np.mean([row["calls"][m] for row in rows])) for m in methods},
        "uncertainty": _uncertainty(study, rows),
        "versions": versions(),
    }


def _values(study: Study, rows: list[Row]) -> dict[str, FloatArray]:
    """By metric, (degradations, methods, faces)."""
    methods = list(study.methods.configs)
    faces = {name: i for i, name in enumerate(study.clean.names)}
    labels = {d.label: i for i, d in enumerate(study.degradations)}
    shape = (len(labels), len(methods), len(faces))
    metrics = [m for m in study.metrics if m not in study.meter.set_names]
    values = {metric: np.full(shape, np.nan) for metric in metrics}
    for row in rows:
        place = labels[row["degradation"]], faces[row["picture"]]
        for j, method in enumerate(methods):
            for metric in metrics:
                values[metric][place[0], j, place[1]] = row["values"][method][metric]
    return values


def _row_groups(study: Study, *, families: bool = False) -> dict[str, list[int]]:
    """Return the degradations, by index, that each row of a table is the mean of, by title."""
    groups = {d.label: [i] for i, d in enumerate(study.degradations)}
    groups |= _families(study) if families else {}
    for title, unseen in MEANS.items():
        places = [i for i, d in enumerate(study.degradations) if (d.name in UNSEEN) == unseen]
        if len(places) > 1:
            groups[title] = places
    return groups


def _families(study: Study) -> dict[str, list[int]]:
    """Return the same for the unseen families with several severities."""
    places: dict[str, list[int]] = {}
    for i, degradation in enumerate(study.degradations):
        if degradation.severity is not None:
            places.setdefault(f"mean of {degradation.name}", []).append(i)
    return {title: found for title, found in places.items() if len(found) > 1}


def _differences(study: Study, values: dict[str, FloatArray]) -> Iterable[dict[str, Any]]:
    """Yield differences of the main method from every other one, for all rows and families."""
    methods = list(study.methods.configs)
    for metric, array in values.items():
        for title, places in _row_groups(study, families=True).items():
            faces = dict(zip(methods, array[places].mean(axis=0), strict=True))
            for other in methods:
                if other != study.main:
                    named = {"degradation": title, "metric": metric, "against": other}
                    found = estimate(faces[study.main] - faces[other])
                    yield named | dataclasses.asdict(found)


def _group_results(study: Study, values: dict[str, FloatArray]) -> dict[str, Any]:
    """Return by column the means of each group over all degradations, and the gaps between them."""
    methods = list(study.methods.configs)
    results = {}
    for column, groups in study.groups.items():
        cells, gaps = [], []
        for metric, array in values.items():
            faces = array.mean(axis=0)  # (methods, faces)
            for j, method in enumerate(methods):
                named = {"method": method, "metric": metric}
                found = {group: estimate(faces[j, at]) for group, at in groups.items()}
                cells += [{"group": g} | named | dataclasses.asdict(e) for g, e in found.items()]
                ranked = sorted(found, key=lambda group: found[group].mean)
                if METRICS[metric].better == "higher":
                    ranked.reverse()
                gap = abs(found[ranked[0]].mean - found[ranked[-1]].mean)
                gaps.append(named | {"gap": gap, "best": ranked[0], "worst": ranked[-1]})
        results[column] = {"cells": cells, "gaps": gaps}
    return results


def _sets(study: Study) -> Iterable[dict[str, Any]]:
    """Yield the metrics of whole sets of pictures, from the pictures that were kept."""
    if not study.meter.set_names:
        return
    faces = (images.to_tensor(study.clean.face(i)) for i in range(len(study.clean)))
    originals = study.meter.set_features(faces)
    for degradation in study.degradations:
        for method in study.methods.configs:
            paths = [study.picture_path(degradation, method, n) for n in study.clean.names]
            features = study.meter.set_features(map(_kept, paths))
            for metric, value in study.meter.compare_sets(features, originals).items():
                named = {"degradation": degradation.label, "method": method, "metric": metric}
                yield named | {"value": value}


def _kept(path: Path) -> torch.Tensor:
    """(1,3,S,S) in [-1,1] of a kept picture."""
    try:
        return images.to_tensor(images.read_image(path).pixels)
    except PictureError as error:
        raise ConfigError(f"the kept picture {path} cannot be used: {error}") from None


def _uncertainty(study: Study, rows: list[Row]) -> dict[str, Any] | None:
    if study.sampled is None:
        return None
    found = [row for row in rows if row["uncertainty"] is not None]
    by_degradation = {
        d.label: estimate(
            [r["uncertainty"]["correlation"] for r in found if r["degradation"] == d.label]
        ).mean
        for d in study.degradations
    }
    known = [mean for mean in by_degradation.values() if not np.isnan(mean)]
    return {
        "samples": study.protocol.uncertainty_samples,
        "method": study.main,
        "correlation": float(np.mean(known)) if known else None,
        "by_degradation": by_degradation,
        "bins": pooled_bins([row["uncertainty"] for row in found]) if found else [],
        # Faces for which the automatic setting left stage 1 out: their samples are equal.
        "without_spread": len(rows) - len(found),
    }


def _examples(study: Study, values: dict[str, FloatArray]) -> list[Example]:
    """Restore again, per degradation, the best, median and worst face of the main method."""
    metric = next(iter(values), None)
    if metric is None:
        return []
    main = list(study.methods.configs).index(study.main)
    chosen = []
    units = {(u.degradation.label, i): u for u in study.units() for i in u.faces}
    for d, degradation in enumerate(study.degradations):
        of_faces = values[metric][d, main]
        ranked = np.argsort(of_faces, kind="stable")
        ranked = ranked[~np.isnan(of_faces[ranked])]
        if not len(ranked):
            continue
        if METRICS[metric].better == "higher":
            ranked = ranked[::-1]
        roles = {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}
        for role, face in roles.items():
            unit = dataclasses.replace(units[degradation.label, int(face)], faces=(int(face),))
            results = study.restore(unit, study.degraded(unit))
            pictures = {"original": study.originals(unit.faces)}
            pictures |= {method: result.pictures for method, result in results.items()}
            pixels = {name: images.to_uint8(tensor)[0] for name, tensor in pictures.items()}
            name, value = study.clean.names[face], float(of_faces[face])
            chosen.append(Example(degradation.label, role, name, value, pixels))
    return chosen


def _csv_of(study: Study, rows: list[Row]) -> Iterable[list[Any]]:
    """Yield a line per face, degradation and method, each with the protocol's hash."""
    metrics = [m for m in study.metrics if m not in study.meter.set_names]
    columns = list(study.groups)
    yield ["protocol", "degradation", "method", "picture", *columns, "network_calls", *metrics]
    group_of = {
        (column, study.clean.names[i]): group
        for column, groups in study.groups.items()
        for group, places in groups.items()
        for i in places
    }
    for row in rows:
        name = row["picture"]
        for method, values in row["values"].items():
            numbers = ["" if np.isnan(values[m]) else f"{values[m]:.6f}" for m in metrics]
            of_face = [group_of[column, name] for column in columns]
            calls = row["calls"][method]
            yield [study.hash, row["degradation"], method, name, *of_face, calls, *numbers]


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file; numbers that are not finite become null, which JSON can hold."""
    files.write_bytes(path, json.dumps(finite(content), indent=1, allow_nan=False).encode())
