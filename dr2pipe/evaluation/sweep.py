"""A sweep: try settings of DR2 on degraded clean faces, to see the trade-off of τ, ω and N.

Every point of a grid is a method of one study, so a sweep resumes and runs on several processes
as a study does. Network calls that points have in common are made once.

Two measures, both in dB, show the trade-off. ``fidelity`` is the PSNR between the coarse face of
a clean picture and that picture: how much of a face the settings keep. ``removal`` is the PSNR
between the coarse faces of the degraded and of the clean picture: how little of the degradation
is left. Higher is better, and no setting has the most of both.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dr2pipe.core import files
from dr2pipe.core.config import stable_seed, to_yaml
from dr2pipe.core.errors import ConfigError
from dr2pipe.core.foreign import to_csv
from dr2pipe.core.precision import AUTO
from dr2pipe.diffusion.degradation_features import FEATURES
from dr2pipe.diffusion.stage1 import STRENGTHS, DR2Config
from dr2pipe.diffusion.timesteps import default_omega
from dr2pipe.evaluation.protocol import CleanConfig, MethodConfig, Protocol
from dr2pipe.evaluation.report.pages import write_sweep_report
from dr2pipe.evaluation.study import Row, Study, run_study
from dr2pipe.evaluation.summary import write_json
from dr2pipe.metrics import METRICS
from dr2pipe.restoration.restorer import EnhancerConfig
from dr2pipe.restoration.settings import complete_enhancer

# What a grid may vary, in the order in which points are named.
AXES = (
    *("low_pass", "scheduler", "factor", "sigma_px", "cutoff", "num_evaluations", "omega", "tau"),
    "antithetic",
)
OFF = "off"  # the point without stage 1


@dataclass
class SweepConfig:
    """Settings of a sweep.

    ``grid`` holds values of ``AXES`` to combine; for omega null, N and τ decide.
    """

    name: str = MISSING
    output: str = MISSING
    clean: CleanConfig = field(default_factory=CleanConfig)
    size: int = MISSING  # side in pixels at which faces are compared
    degraded_size: int = MISSING  # side in pixels at which they are degraded
    degradations: list[str] = MISSING
    seed: int = 0
    dr2: DR2Config = field(default_factory=DR2Config)  # what the grid does not vary
    enhancer: EnhancerConfig = field(default_factory=EnhancerConfig)
    grid: dict[str, list[Any]] = MISSING
    random_points: int | None = None  # try only that many, drawn from the grid by the seed
    with_off: bool = False  # also stage 1 left out, for fitting the auto setting
    metrics: list[str] = field(default_factory=lambda: ["psnr", "ssim"])  # the first one decides
    metric_files: dict[str, str] = field(default_factory=dict)
    precision: str = "fp32"
    batch_size: int = 16

    @staticmethod
    def complete_overrides(overrides: Sequence[str]) -> list[str]:
        """What follows from settings that are given by hand, as in presets."""
        return complete_enhancer(overrides)


def grid_points(config: SweepConfig) -> dict[str, DR2Config]:
    """Return the settings to try, by id.

    Combinations with ω below τ are left out. More evaluations than steps mean all steps, and
    the strength of a filter that a point does not use is ignored; equal settings are tried once.

    Raises:
        ConfigError: an unknown or empty axis, a value of the wrong type, or nothing left.
    """
    if config.random_points is not None and config.random_points < 1:
        raise ConfigError(f"random_points={config.random_points} must be at least 1, or null")
    if config.dr2.mode != "fixed" or not config.dr2.enabled:
        raise ConfigError(
            f"dr2.mode={config.dr2.mode} with dr2.enabled={str(config.dr2.enabled).lower()}: a sweep "
            "varies the settings of stage 1, so it takes dr2.mode=fixed and dr2.enabled=true"
        )
    unknown = [axis for axis in config.grid if axis not in AXES]
    if unknown:
        raise ConfigError(f"grid cannot vary {', '.join(unknown)}; it can {', '.join(AXES)}")
    empty = [axis for axis, values in config.grid.items() if not values]
    if empty or not config.grid:
        raise ConfigError(f"grid has no values for {', '.join(empty) or 'anything'}")
    axes = {
        axis: [_checked(axis, value) for value in config.grid[axis]]
        for axis in AXES
        if axis in config.grid
    }
    points: list[DR2Config] = []
    for values in itertools.product(*axes.values()):
        point = dataclasses.replace(config.dr2, **dict(zip(axes, values, strict=True)))
        for low_pass, strength in STRENGTHS.items():
            if low_pass != point.low_pass:
                setattr(point, strength, getattr(config.dr2, strength))
        if point.omega is None and point.low_pass == "bicubic":
            point.omega = default_omega(point.tau, point.factor, point.num_steps)
        if point.omega is not None and point.omega < point.tau:
            continue
        if point.omega is not None and point.num_evaluations is not None:
            steps = point.omega - point.tau + 1
            point.num_evaluations = min(point.num_evaluations, steps)
        if point not in points:
            points.append(point)
    if config.random_points is not None:
        rng = np.random.default_rng(stable_seed(config.seed, "points"))
        chosen = rng.permutation(len(points))[: config.random_points]
        points = [points[i] for i in sorted(chosen)]
    if not points:
        raise ConfigError("grid has no point with omega at or above tau")
    digits = max(2, len(str(len(points) - 1)))
    return {f"p{i:0{digits}d}": point for i, point in enumerate(points)}


def _checked(axis: str, value: Any) -> Any:
    """Convert a value of an axis to the type of :class:`DR2Config`; ConfigError if it does not fit."""
    try:
        point = OmegaConf.merge(OmegaConf.structured(DR2Config), {axis: value})
    except OmegaConfBaseException as error:
        raise ConfigError(f"grid.{axis}: {str(error).splitlines()[0]}") from None
    checked = getattr(point, axis)
    if axis == "num_evaluations" and checked is not None and checked < 1:
        raise ConfigError(f"grid.num_evaluations: {value} must be at least 1, or null for all")
    return checked


def sweep(config: SweepConfig) -> str | None:
    """Try every point; write results.csv, features.csv, summary.json, preset.yaml, report.html.

    Returns:
        The best settings as text, or None when interrupted.

    Raises:
        Dr2pipeError: an invalid setting or unusable data, before any work.
    """
    points = grid_points(config)
    methods = {
        name: MethodConfig(dr2=point, enhancer=config.enhancer) for name, point in points.items()
    }
    if config.with_off:
        methods[OFF] = MethodConfig(enhancer=config.enhancer)
    shared = {f.name for f in dataclasses.fields(Protocol)} - {"methods"}
    settings = {k: v for k, v in vars(config).items() if k in shared}
    study = Study(Protocol(**settings, methods=methods), compare_clean=True)
    if study.meter.set_names:
        raise ConfigError(f"a sweep cannot use {', '.join(study.meter.set_names)}: pictures alone")
    return run_study(study, lambda *found: _write_results(config, points, *found))


def _write_results(
    config: SweepConfig,
    points: dict[str, DR2Config],
    study: Study,
    rows: list[Row],
    output: Path,
) -> str:
    rows = sorted(rows, key=lambda row: (row["degradation"], row["picture"]))
    files.write_bytes(output / "results.csv", to_csv(_results_csv(study, rows)))
    files.write_bytes(output / "features.csv", to_csv(_features_csv(rows)))
    summary = _summarise(config, points, study, rows)
    write_json(output / "summary.json", summary)
    best = points[summary["best"]["mean"]]
    files.write_bytes(output / "preset.yaml", _preset(config, best, study.hash).encode())
    write_sweep_report(output, summary)
    return _as_text(summary)


def _known(value: float) -> float:
    return value if math.isfinite(value) else -math.inf


def _summarise(
    config: SweepConfig, points: dict[str, DR2Config], study: Study, rows: list[Row]
) -> dict[str, Any]:
    labels = [d.label for d in study.degradations]

    def mean_of(name: str, metric: str, label: str | None = None) -> float:
        chosen = [row["values"] for row in rows if label in (None, row["degradation"])]
        # Where a metric fails for one point, no face is found for example, it counts for none.
        known = [
            values[name][metric]
            for values in chosen
            if all(math.isfinite(one[metric]) for one in values.values() if metric in one)
        ]
        return float(np.mean(known)) if known else math.nan

    described: list[dict[str, Any]] = []
    for name in study.methods.configs:
        by_label = {
            label: {metric: mean_of(name, metric, label) for metric in config.metrics}
            for label in labels
        }
        mean = {metric: mean_of(name, metric) for metric in config.metrics}
        # Without stage 1, all of a face is kept: such a point has no fidelity.
        settings = {axis: getattr(points[name], axis) for axis in AXES} if name in points else {}
        described.append(
            {
                "id": name,
                "settings": settings | {"enabled": name in points},
                "calls": float(np.mean([row["calls"][name] for row in rows])),
                "values": by_label | {"mean": mean},
                "fidelity": mean_of(name, "fidelity") if name in points else None,
                "removal": mean_of(name, "removal"),
            }
        )
    tried = [point for point in described if point["id"] in points]
    front = pareto_front([(p["fidelity"], p["removal"]) for p in tried])
    for i, point in enumerate(tried):
        point["pareto"] = i in front
    chosen = config.metrics[0]
    sign = 1 if METRICS[chosen].better == "higher" else -1
    best = {
        label: max(tried, key=lambda p: _known(sign * p["values"][label][chosen]))["id"]
        for label in [*labels, "mean"]
    }
    shared = float(np.sum([row["made_calls"] for row in rows]))
    # If every point ran its own chain, on the degraded faces and on the clean ones.
    naive = sum(p["calls"] for p in tried) * len(study.clean) * (len(labels) + 1)
    return {
        "name": config.name,
        "hash": study.hash,
        "settings": study.description,
        "pictures": len(study.clean),
        "degradations": labels,
        "metrics": {
            m: {k: getattr(METRICS[m], k) for k in ("unit", "better", "decimals", "range")}
            for m in config.metrics
        },
        "chosen_metric": chosen,
        "points": described,
        "best": best,
        "calls": {"naive": round(naive), "made": round(shared)},
    }


def pareto_front(values: list[tuple[float, float]]) -> set[int]:
    """Return the indices of pairs that no other pair beats in one value at no loss in the other."""
    return {
        i
        for i, (a, b) in enumerate(values)
        if not any(c >= a and d >= b and (c > a or d > b) for c, d in values)
    }


def _preset(config: SweepConfig, best: DR2Config, protocol_hash: str) -> str:
    """Return a preset of ``dr2pipe restore`` with the best settings, as YAML."""
    content = {
        "seed": config.seed,
        "batch_size": config.batch_size,
        "precision": AUTO,  # for other machines than this
        "dr2": dataclasses.asdict(best),
        "enhancer": dataclasses.asdict(config.enhancer),
    }
    return (
        f"# The best point of the sweep {config.name} ({protocol_hash}), by the mean "
        f"{config.metrics[0]} of {', '.join(config.degradations)}.\n" + to_yaml(content)
    )


def _results_csv(study: Study, rows: list[Row]) -> Iterable[list[Any]]:
    metrics = [*study.metrics, "fidelity", "removal"]
    yield ["protocol", "point", "degradation", "picture", "network_calls", *metrics]
    for row in rows:
        for point, values in row["values"].items():
            numbers = ["" if np.isnan(values[m]) else f"{values[m]:.6f}" for m in metrics]
            place = [row["degradation"], row["picture"], row["calls"][point]]
            yield [study.hash, point, *place, *numbers]


def _features_csv(rows: list[Row]) -> Iterable[list[Any]]:
    yield ["degradation", "picture", *FEATURES]
    for row in rows:
        yield [row["degradation"], row["picture"], *row["features"]]


def _as_text(summary: dict[str, Any]) -> str:
    chosen = summary["chosen_metric"]
    unit = summary["metrics"][chosen]["unit"]
    points = {point["id"]: point for point in summary["points"]}
    lines = [f"sweep {summary['name']} {summary['hash']}: {len(points)} points", ""]
    for label, name in summary["best"].items():
        point = points[name]
        settings = {k: v for k, v in point["settings"].items() if v is not None and k != "enabled"}
        text = " ".join(f"{k}={v}" for k, v in settings.items())
        value = point["values"][label][chosen]
        lines.append(f"best for {label}: {name}, {chosen} {value:.3f} {unit}, {text}")
    naive, made = summary["calls"]["naive"], summary["calls"]["made"]
    if made:  # a student's are not counted
        saved = 1 - made / naive
        lines.append(
            f"network calls: {made} pictures instead of {naive}, {saved:.0%} saved by sharing"
        )
    return "\n".join(lines)
