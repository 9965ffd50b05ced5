"""Reports of evaluations: what they say and refuse, and that a browser shows them offline."""

import html
import json
import re
import shutil

import numpy as np
import pytest
import torch
import yaml
from conftest import make_pixels, run_study
from pages import Page, browse, decode
from PIL import Image

from dr2pipe.evaluation.report import pages as report
from dr2pipe.evaluation.report import plots, tables
from dr2pipe.evaluation.report.markdown import markdown_tables
from dr2pipe.evaluation.report.pages import Example, write_evaluation_report

METHODS = ["input", "plain", "DR2 & <b>more</b>"]
MAIN, BASELINE = METHODS[2], METHODS[1]
LABELS = ["mild", "haze 2", "haze 4"]
NASTY = "a\"><script>alert('x')</script>&$\udcff.png"  # a name on a disk may be no valid text


def cell(degradation, method, metric, mean, difference=None):
    interval = difference and dict(zip(("mean", "low", "high"), difference, strict=True))
    return {
        "degradation": degradation,
        "method": method,
        "metric": metric,
        "mean": mean,
        "low": None if mean is None else mean - 0.25,
        "high": None if mean is None else mean + 0.25,
        "count": 0 if mean is None else 6,
        "difference": interval,
    }


@pytest.fixture
def summary():
    cells = []
    for i, label in enumerate([*LABELS, "mean of unseen families"]):
        cells += [
            cell(label, "input", "psnr", 20.0 - i, (-1, -2, -0.5)),
            cell(label, BASELINE, "psnr", 21.0 - i),
            cell(label, MAIN, "psnr", 22.5 - i, (1.5, 0.5, 2.5)),
            cell(label, "input", "lpips", 0.4, (0.1, -0.1, 0.3)),
            cell(label, BASELINE, "lpips", 0.3),
            cell(label, MAIN, "lpips", None if label == "mild" else 0.2, (-0.1, -0.2, -0.05)),
        ]
    group = {"method": MAIN, "metric": "psnr"}
    return {
        "protocol": {"name": "study $1 <i>", "hash": "abc123", "seed": 7}
        | {"methods": {method: {} for method in METHODS}},
        "pictures": 6,
        "methods": METHODS,
        "main_method": MAIN,
        "baseline_method": BASELINE,
        "metrics": {
            "psnr": {"unit": "dB", "better": "higher", "decimals": 2},
            "lpips": {"unit": "", "better": "lower", "decimals": 3},
            "fid": {"unit": "", "better": "lower", "decimals": 1},
        },
        "left_out": {"kid": "needs <weights>"},
        "degradations": [
            {"label": "mild", "family": "mild", "severity": None, "unseen": False},
            {"label": "haze 2", "family": "haze", "severity": 2, "unseen": True},
            {"label": "haze 4", "family": "haze", "severity": 4, "unseen": True},
        ],
        "cells": cells,
        "sets": [{"degradation": "mild", "method": MAIN, "metric": "fid", "value": 43.21}],
        "groups": {
            "gender": {
                "cells": [
                    {"group": g, "mean": m, "low": m - 1, "high": m + 1, "count": 3} | group
                    for g, m in (("female", 22.0), ("male", 21.5))
                ],
                "gaps": [{"gap": 0.5, "best": "female", "worst": "male"} | group],
            }
        },
        "calls": {MAIN: 5},
        "versions": {"torch": "2"},
        "uncertainty": {
            "correlation": 0.4321,
            "samples": 8,
            "without_spread": 2,
            "bins": [{"spread": s, "error": 2 * s, "count": 10} for s in (0.1, 0.2)],
        },
    }


@pytest.fixture
def examples():
    names = ["original", *METHODS]
    return [
        Example(
            label, role, NASTY, 20.125, {n: make_pixels(i, 32, 32) for i, n in enumerate(names)}
        )
        for label in LABELS
        for role in ("worst", "best", "median")
    ]


# -- evaluations -----------------------------------------------------------------------------


def test_the_page_loads_nothing_and_names_are_escaped(tmp_path, summary, examples):
    path = write_evaluation_report(tmp_path, summary, examples)
    assert path == tmp_path / "report.html"
    page = Page(path)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not {"b", "i", "weights"} & {tag for tag, _ in page.tags if tag in ("i", "weights")}
    sources = page.all("img", "src")
    assert len(sources) == 9 * 4 + len(list((tmp_path / "plots").iterdir()))
    assert all(source.startswith("data:image/") for source in sources)
    assert not re.search(r"(src|href)=[\"']?(https?:)?//|url\(|@import", path.read_text())
    assert f"{MAIN} of {NASTY}".replace("\udcff", "?") in page.all("img", "alt")
    assert "needs <weights>" in page.text
    assert "study $1 <i>" in page.text
    assert "abc123" in page.text


def test_embedded_pictures_are_the_given_ones(tmp_path, summary, examples):
    path = write_evaluation_report(tmp_path, summary, examples)
    page = Page(path)
    shown = [a for tag, a in page.tags if tag == "img" and a.get("data-version") == "plain"]
    assert len(shown) == len(examples)
    pixels = decode(shown[0]["src"])
    np.testing.assert_array_equal(pixels, examples[0].versions["plain"])


def test_examples_stand_in_the_order_of_the_summary(tmp_path, summary, examples):
    text = write_evaluation_report(tmp_path, summary, examples[::-1]).read_text()
    assert re.findall(r"<b>(best|median|worst)</b> · PSNR 20.12 dB", text) == 3 * list(report.ROLES)
    assert re.findall(r'<h3 id="examples-\d">(.*?)</h3>', text) == LABELS


def test_heavy_examples_are_compressed(monkeypatch, tmp_path, summary, examples):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    examples = [Example("mild", "best", "x", 1.0, dict.fromkeys(["input", MAIN], noise))]
    lossless = write_evaluation_report(tmp_path, summary, examples).stat().st_size
    monkeypatch.setattr(report, "_LOSSLESS_BYTES", 20_000)  # the two take 25,000
    path = write_evaluation_report(tmp_path, summary, examples)
    assert path.stat().st_size < lossless - 5_000
    shown = [a["src"] for tag, a in Page(path).tags if tag == "img" and "data-version" in a]
    assert len(shown) == 2
    assert decode(shown[1]).shape == (64, 64, 3)


def test_table_marks_the_best_and_differences_beyond_chance(summary):
    table = tables.metric_table(summary, "psnr")
    rows = {row["label"]: row for row in table["rows"]}
    assert list(rows) == [*LABELS, "mean of unseen families"]
    assert rows["mean of unseen families"]["is_mean"]
    assert [rows[label]["is_unseen"] for label in LABELS] == [False, True, True]
    low, base, main = rows["mild"]["cells"]
    assert [c["is_best"] for c in (low, base, main)] == [False, False, True]
    assert (main["mean"], main["interval"]) == ("22.50", "22.25…22.75")
    assert (main["difference"], main["difference_interval"]) == ("+1.50", "0.50…2.50")
    assert (main["verdict"], low["verdict"], base["difference"]) == ("better", "worse", None)
    assert low["difference_interval"] == "−2.00…−0.50"
    assert main["count"] is None  # all faces


def test_less_is_better_turns_the_marks(summary):
    rows = tables.metric_table(summary, "lpips")["rows"]
    mild, haze = rows[0]["cells"], rows[1]["cells"]
    assert mild[2] is None  # no face had a value
    assert mild[1]["is_best"]
    assert haze[2]["is_best"]
    assert (haze[2]["verdict"], haze[0]["verdict"]) == ("better", "unclear")


def test_values_without_all_faces_say_so(summary):
    summary["cells"][0]["count"] = 4
    assert tables.metric_table(summary, "psnr")["rows"][0]["cells"][0]["count"] == 4


def test_optional_parts(tmp_path, summary, examples):
    full = write_evaluation_report(tmp_path / "full", summary, examples).read_text()
    for part in ("sets", "groups", "uncertainty", "examples"):
        assert f'<section id="{part}">' in full
    assert "43.2" in full
    assert "0.43" in full
    assert "male worst" in full
    assert "all samples are equal:\n2." in full
    summary |= {"sets": [], "groups": {}, "calls": {}, "uncertainty": None, "left_out": {}}
    summary["degradations"] = [d | {"severity": None} for d in summary["degradations"]]
    bare = write_evaluation_report(tmp_path / "bare", summary, []).read_text()
    for part in ("sets", "groups", "uncertainty", "examples"):
        assert f'id="{part}"' not in bare
        assert f'href="#{part}"' not in bare
    names = {path.stem for path in (tmp_path / "bare" / "plots").iterdir()}
    assert names == {"difference_psnr", "difference_lpips"}


def test_plots_lie_beside_the_report(tmp_path, summary, examples):
    write_evaluation_report(tmp_path, summary, examples)
    names = {path.name for path in (tmp_path / "plots").iterdir()}
    per_metric = {f"{k}_{m}.png" for k in ("difference", "severity") for m in ("psnr", "lpips")}
    assert names == per_metric | {"calibration.png"}
    for name in names:
        pixels = np.asarray(Image.open(tmp_path / "plots" / name).convert("RGB"))
        assert (pixels < 250).any(axis=2).mean() > 0.005  # something is drawn


def test_summary_may_come_from_its_file(tmp_path, summary):
    again = json.loads(json.dumps(summary))
    write_evaluation_report(tmp_path, again, [])


def test_the_report_of_a_study_says_what_each_method_does(
    protocol, model_folder, auto_by_brightness, clean, tmp_path
):
    auto = f"{{model: {model_folder}, mode: auto, auto: {auto_by_brightness}}}"
    more = [f"methods.auto.dr2={auto}", f"methods.tool.folder={tmp_path / 'tool'}"]
    shutil.copytree(clean, tmp_path / "tool/mild")
    run_study(protocol, tmp_path / "o", *more, "degradations=[mild]", "main=coarse")
    page = Page(tmp_path / "o/report.html")
    methods = re.search(r'<section id="methods">(.*?)</section>', page.source, re.DOTALL)[1]
    lines = re.findall(r"<tr><th>(.*?)</th><td.*?>(.*?)</td><td.*?>(.*?)</td>", methods)
    dr2 = "DR2 (N = 2, τ = 2, ω = 8, 2 evaluations)"
    assert {name: (part, does) for name, part, does in lines} == {
        "input": ("", "the degraded picture, enlarged"),
        "coarse": ("main", dr2),
        "baseline": ("baseline", "enhancer bicubic"),
        "enhancer": ("", "enhancer sparnet"),
        "DR2 + enhancer": ("", f"{dr2} → enhancer sparnet"),
        "auto": ("", "DR2 (settings chosen for each picture)"),
        "tool": ("", "pictures made elsewhere"),
    }
    settings = re.search(r"<pre>(.*?)</pre>", page.source, re.DOTALL)[1]
    described = yaml.safe_load(html.unescape(settings))
    assert described["methods"]["tool"] == {"made_elsewhere": True}
    assert described["versions"]["torch"] == torch.__version__
    assert described["degradations"]["mild"]["severity"] is None


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [
        (1.005, False, "1.00"),
        (-0.501, True, "−0.50"),
        (-0.001, True, "+0.00"),
        (0.25, True, "+0.25"),
        (None, False, "–"),
        (float("nan"), True, "–"),
        (float("inf"), False, "∞"),
        (float("-inf"), False, "−∞"),
    ],
)
def test_numbers_as_text(value, signed, text):
    assert tables.number(value, 2, signed=signed) == text


@pytest.mark.parametrize(
    ("low", "high", "better", "expected"),
    [
        (0.1, 0.2, "higher", "better"),
        (0.1, 0.2, "lower", "worse"),
        (-0.2, -0.1, "lower", "better"),
        (-0.2, -0.1, "higher", "worse"),
        (-0.1, 0.2, "higher", "unclear"),
        (0.0, 0.2, "higher", "unclear"),
    ],
)
def test_verdicts(low, high, better, expected):
    assert plots.verdict({"low": low, "high": high}, better) == expected


# -- in a browser ----------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_an_evaluation(tmp_path, summary, examples, width):
    path = write_evaluation_report(tmp_path, summary, examples)
    found = browse(path, tmp_path, width)
    assert found["problems"] == []
    assert found["images"] == 9 * (4 + 2) + 5  # versions and sliders, and plots
    assert found["broken"] == 0
    assert found["overflow"] == 0  # wide tables scroll in their own boxes
    assert found["before"] == "inset(0px 0px 0px 50%)"
    assert found["after"] == "inset(0px 0px 0px 20%)"
    assert found["first"].startswith("input of")
    assert found["second"].startswith("original of")
    assert found["same"]
    assert found["focused"]
    assert 200 < found["side"] < 450


def test_a_table_says_where_faces_have_no_value(summary):
    for one in summary["cells"]:
        one["count"] = summary["pictures"]
    summary["differences"], summary["sets"] = [], []
    lost = next(c for c in summary["cells"] if (c["metric"], c["method"]) == ("psnr", MAIN))
    lost["count"] = 2
    table = markdown_tables(summary)
    assert "mean of 6 faces; n: where only so many faces have a value" in table
    row = next(line for line in table.splitlines() if line.startswith(f"| {lost['degradation']} |"))
    assert row.endswith("(n=2) |")
    assert table.count("(n=") == 1
