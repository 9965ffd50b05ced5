"""Reports of sweeps: what they say and refuse, and that a browser shows them without a network."""

import re

import numpy as np
import pytest
from pages import Page, browse

from dr2pipe.evaluation.report import sweep_plots
from dr2pipe.evaluation.report.pages import write_sweep_report


@pytest.fixture
def sweep():
    points = []
    for i, (tau, omega, factor) in enumerate([(2, 8, 2), (2, 8, 4), (4, 8, 2), (4, None, 4)]):
        values = {"psnr": 20.0 + i, "ssim": 0.5}
        points.append(
            {
                "id": f"p{i:02d}",
                "settings": {"low_pass": "bicubic", "factor": factor, "sigma_px": None}
                | {"cutoff": None, "tau": tau, "omega": omega, "scheduler": "ddim"}
                | {"num_evaluations": None, "enabled": True},
                "calls": 5,
                "values": {"mild": values, "mean": values},
                "fidelity": 30.0 - i,
                "removal": 20.0 + i,
                "pareto": i != 1,
            }
        )
    # Stage 1 left out has no settings and no fidelity.
    off = {"id": "off", "settings": {"enabled": False}, "calls": 0, "fidelity": None}
    points.append(off | {"removal": 15.0, "values": points[1]["values"]})
    return {
        "name": "sweep",
        "hash": "def456",
        "settings": {"seed": 7},
        "pictures": 6,
        "degradations": ["mild"],
        "metrics": {
            "psnr": {"unit": "dB", "better": "higher", "decimals": 2},
            "ssim": {"unit": "", "better": "higher", "decimals": 3},
        },
        "chosen_metric": "psnr",
        "points": points,
        "best": {"mild": "p03", "mean": "p03"},
        "calls": {"naive": 2000, "made": 500},
    }


def test_sweep_report(tmp_path, sweep):
    path = write_sweep_report(tmp_path, sweep)
    text = path.read_text()
    page = Page(path)
    assert "75% saved" in page.text
    # Best first; equal means keep the order of the points.
    rows = re.findall(r"<th>(p\d\d|off)</th>", text)
    assert rows == ["p03", "p02", "p01", "off", "p00"]
    assert text.count("●</td>") == 3
    names = {p.stem for p in (tmp_path / "plots").iterdir()}
    assert names == {"heatmap_tau_omega", "heatmap_filter_tau", "pareto"}


def test_less_is_better_turns_the_table_of_points(tmp_path, sweep):
    sweep["metrics"]["psnr"]["better"] = "lower"
    sweep["best"] = {"mild": "p00", "mean": "p00"}
    text = write_sweep_report(tmp_path, sweep).read_text()
    assert re.findall(r"<th>(p\d\d|off)</th>", text) == ["p00", "p01", "off", "p02", "p03"]


def test_a_cell_of_a_heat_map_shows_its_best_point(sweep):
    points = sweep["points"][:4]
    grid = sweep_plots._best_values(sweep, points, "mean", sweep_plots.TAU, sweep_plots.OMEGA)
    # Rows: ω = 8 and the default; columns: τ = 2 and 4. Two points share the first cell.
    np.testing.assert_array_equal(grid, [[21, 22], [np.nan, 23]])
    sweep["metrics"]["psnr"]["better"] = "lower"
    grid = sweep_plots._best_values(sweep, points, "mean", sweep_plots.TAU, sweep_plots.OMEGA)
    assert grid[0, 0] == 20


def test_filters_are_told_apart(tmp_path, sweep):
    for point, low_pass in zip(
        sweep["points"], ("gaussian", "fft", "none", "bicubic"), strict=False
    ):
        point["settings"] |= {"low_pass": low_pass, "sigma_px": 1.5, "cutoff": 0.1}
    assert [sweep_plots.filter_label(p["settings"]) for p in sweep["points"][:4]] == [
        "σ = 1.5 px",
        "cutoff 0.1",
        "none",
        "N = 4",
    ]
    write_sweep_report(tmp_path, sweep)


def test_a_sweep_of_one_point_has_no_maps(tmp_path, sweep):
    sweep["points"], sweep["best"] = sweep["points"][:1], {"mild": "p00", "mean": "p00"}
    write_sweep_report(tmp_path, sweep)
    assert {p.stem for p in (tmp_path / "plots").iterdir()} == {"pareto"}


@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_a_sweep(tmp_path, sweep, width):
    found = browse(write_sweep_report(tmp_path, sweep), tmp_path, width)
    assert (found["problems"], found["broken"], found["overflow"]) == ([], 0, 0)
    assert found["images"] == 3
