import csv
import dataclasses
import json
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import make_pictures, make_unet, run_here

from dr2pipe.core.config import load_config
from dr2pipe.core.errors import ConfigError
from dr2pipe.diffusion.stage1 import DR2Config
from dr2pipe.evaluation import sweep as sweep_module
from dr2pipe.evaluation.shared_unet import SharedUNet
from dr2pipe.evaluation.sweep import SweepConfig, grid_points, pareto_front, sweep
from dr2pipe.metrics import METRICS
from dr2pipe.runs.restore import RestoreConfig


@pytest.fixture
def settings(tmp_path, model_folder):
    clean = make_pictures(tmp_path / "clean", 3, height=32, width=32)
    return [
        "name=toy", f"clean.path={clean}", "size=32", "degraded_size=16", "batch_size=2",
        "degradations=[mild,severe]", f"dr2.model={model_folder}", "enhancer.name=bicubic",
        "enhancer.options.size=32", "grid={factor: [2, 4], tau: [1, 3, 5], omega: [7]}",
    ]  # fmt: skip


def run(settings, output, *more):
    config = load_config(SweepConfig, None, [*settings, f"output={output}", *more])
    return sweep(config)


def points_of(folder):
    return json.loads((folder / "summary.json").read_text())


def test_points_share_their_calls_and_keep_their_results(settings, tmp_path):
    text = run(settings, tmp_path / "o")
    summary = points_of(tmp_path / "o")
    # Per N: 7, 5 and 3 calls one by one; the longest chain holds the others, and all begin alike.
    assert summary["calls"] == {"naive": (7 + 5 + 3) * 2 * 3 * 3, "made": (1 + 6 * 2) * 3 * 3}
    assert "saved by sharing" in text
    rows = list(csv.DictReader((tmp_path / "o/results.csv").open()))
    assert len(rows) == 6 * 2 * 3
    alone = "grid={factor: [4], tau: [3], omega: [7]}"
    run(settings, tmp_path / "alone", alone)
    name = next(
        p["id"]
        for p in summary["points"]
        if (p["settings"]["factor"], p["settings"]["tau"]) == (4, 3)
    )
    values = ("degradation", "picture", "psnr", "ssim", "fidelity", "removal", "network_calls")
    shared = [[r[v] for v in values] for r in rows if r["point"] == name]
    single = csv.DictReader((tmp_path / "alone/results.csv").open())
    assert shared == [[r[v] for v in values] for r in single]


def test_what_a_sweep_leaves(settings, tmp_path):
    run(settings, tmp_path / "o", "with_off=true")
    summary = points_of(tmp_path / "o")
    off = next(p for p in summary["points"] if not p["settings"]["enabled"])
    assert (off["calls"], off["fidelity"]) == (0, None)
    best = {p["id"]: p for p in summary["points"]}[summary["best"]["mean"]]
    preset = load_config(RestoreConfig, tmp_path / "o/preset.yaml", ["input=a", "output=b"])
    for axis in ("factor", "tau", "omega"):
        assert getattr(preset.dr2, axis) == best["settings"][axis]
    assert any(p.get("pareto") for p in summary["points"])
    features = list(csv.DictReader((tmp_path / "o/features.csv").open()))
    assert len(features) == 2 * 3
    assert (tmp_path / "o/report.html").is_file()
    # Points of three τ and two N, and the one without stage 1.
    assert len(summary["points"]) == 7
    assert {p["settings"].get("tau") for p in summary["points"]} == {1, 3, 5, None}


def test_a_sweep_as_a_command_goes_on(settings, tmp_path):
    output = tmp_path / "o"
    path = tmp_path / "empty.yaml"
    path.write_text("seed: 0\n")
    result = run_here("scripts/sweep.py", path, *settings, f"output={output}")
    assert result.returncode == 0, result.stderr
    assert "best for mild" in result.stdout
    before = (output / "results.csv").read_bytes()
    lines = (output / "rows.jsonl").read_bytes().splitlines(keepends=True)
    (output / "rows.jsonl").write_bytes(b"".join(lines[:3]))
    result = run_here("scripts/sweep.py", path, *settings, f"output={output}")
    assert result.returncode == 0, result.stderr
    assert (output / "results.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("grid", "says"),
    [
        ("{beauty: [1]}", "grid cannot vary beauty"),
        ("{tau: []}", "no values for tau"),
        ("{tau: [a]}", "grid.tau: Value 'a'"),
        ("{tau: [2.5]}", "grid.tau: Value '2.5'"),
        ("{tau: [null]}", "grid.tau: .*None"),
        ("{num_evaluations: [0]}", "num_evaluations: 0 must be at least 1"),
        ("{}", "no values for anything"),
        ("{tau: [9], omega: [3]}", "no point with omega"),
        ("{tau: [2], omega: [200]}", "omega=200 must lie in"),
        ("{factor: [3], tau: [2]}", "does not divide"),
        ("{factor: [0], tau: [2]}", "whole number of at least 1, not 0"),
    ],
)
def test_a_grid_that_makes_no_sense(settings, tmp_path, grid, says):
    with pytest.raises((ConfigError, ValueError), match=says):
        run(settings, tmp_path / "o", f"grid={grid}")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("setting", ["dr2.mode=auto", "dr2.enabled=false"])
def test_nothing_to_vary(settings, tmp_path, setting):
    with pytest.raises(ConfigError, match="varies the settings of stage 1"):
        run(settings, tmp_path / "o", setting)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("count", [0, -1])
def test_no_random_points(settings, tmp_path, count):
    with pytest.raises(ConfigError, match=f"random_points={count} must be at least 1"):
        run(settings, tmp_path / "o", f"random_points={count}")
    assert not (tmp_path / "o").exists()


def test_what_is_not_finite_is_null(settings, tmp_path, monkeypatch):
    nothing = dataclasses.replace(
        METRICS["psnr"], load=lambda: lambda a, b: a.mean((1, 2, 3)) * torch.nan
    )
    monkeypatch.setitem(METRICS, "psnr", nothing)
    run(settings, tmp_path / "o", "metrics=[ssim,psnr]", "grid={factor: [2], tau: [3], omega: [7]}")
    text = (tmp_path / "o/summary.json").read_text()
    assert "NaN" not in text
    assert points_of(tmp_path / "o")["points"][0]["values"]["mean"]["psnr"] is None


def test_points_of_a_grid(settings):
    def points(grid, *more):
        given = [*settings, "output=o", f"grid={grid}", *more]
        return list(grid_points(load_config(SweepConfig, None, given)).values())

    found = points("{tau: [2, 6], omega: [4, null], num_evaluations: [5], factor: [2]}")
    assert [(p.tau, p.omega, p.num_evaluations) for p in found] == [
        (2, 4, 3),
        (2, 12, 5),
        (6, 16, 5),
    ]
    # The strength of a filter that is not used makes no further point.
    found = points(
        "{low_pass: [bicubic, gaussian], factor: [2, 4], sigma_px: [1, 2], omega: [8], tau: [2]}"
    )
    assert [(p.low_pass, p.factor if p.low_pass == "bicubic" else p.sigma_px) for p in found] == [
        ("bicubic", 2), ("bicubic", 4), ("gaussian", 1), ("gaussian", 2),
    ]  # fmt: skip
    many = "{tau: [1, 2, 3], omega: [5, 6, 7]}"
    drawn = points(many, "random_points=4")
    assert len(drawn) == 4
    assert drawn == points(many, "random_points=4")
    assert drawn != points(many, "random_points=4", "seed=1")


def test_another_enhancer_is_taken_without_the_sharp_variant_of_the_first(tmp_path):
    (tmp_path / "s.yaml").write_text("enhancer: {name: sparnet, weights: a, sharpness: 0.7}")
    given = ["name=n", "output=o", "clean.path=c", "size=1", "degraded_size=1", "degradations=[]"]
    given.append("grid={}")
    for more, sharpness in (
        ([], 0.7),
        (["enhancer.weights=b"], None),
        (["enhancer.weights=b", "enhancer.sharpness=0.5"], 0.5),
    ):
        config = load_config(SweepConfig, tmp_path / "s.yaml", [*given, *more])
        assert config.enhancer.sharpness == sharpness


def test_the_front():
    assert pareto_front([(1, 5), (2, 4), (2, 3), (3, 1), (0, 0)]) == {0, 1, 3}


def test_a_shared_network_computes_once():
    unet = make_unet()
    shared = SharedUNet(unet)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first = shared(x, 7).sample
        assert torch.equal(first, unet(x, 7).sample)
        assert torch.equal(shared(x.clone(), 7).sample, first)
        assert not torch.equal(shared(x, 8).sample, first)
        assert not torch.equal(shared(x + 1, 7).sample, first)
    assert (shared.requested, shared.computed) == (8, 6)


def test_what_a_metric_does_not_know_decides_nothing():
    points = {"p00": DR2Config(), "p01": DR2Config(tau=10)}
    errors = {"p00": [50.0, math.nan, 52.0], "p01": [5.0, 6.0, 4.0]}

    def row(number):
        values = {
            name: {"landmark_error": errors[name][number], "fidelity": 1.0, "removal": 1.0}
            for name in points
        }
        calls = dict.fromkeys(points, 1)
        return {
            "degradation": "mild", "picture": str(number), "values": values, "calls": calls,
            "made_calls": 1,
        }  # fmt: skip

    study = SimpleNamespace(
        degradations=[SimpleNamespace(label="mild")], methods=SimpleNamespace(configs=points),
        clean=[0, 1, 2], hash="h", description={},
    )  # fmt: skip
    config = SweepConfig(name="n", metrics=["landmark_error"])
    summary = sweep_module._summarise(config, points, study, [row(number) for number in range(3)])
    assert summary["best"] == {"mild": "p01", "mean": "p01"}
    means = [point["values"]["mean"]["landmark_error"] for point in summary["points"]]
    assert means == [51.0, 4.5]  # of the faces for which both have one
    errors["p00"] = [math.nan] * 3
    summary = sweep_module._summarise(config, points, study, [row(number) for number in range(3)])
    assert summary["best"]["mean"] in points
