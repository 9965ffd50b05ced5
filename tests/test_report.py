"""Reports: what they say, what they refuse, and that a browser shows them without a network."""

import copy
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import make_pixels
from PIL import Image

from dr2pipe import images
from dr2pipe.evaluation import plots, report, tables
from dr2pipe.evaluation.report import Example, write_evaluation_report, write_sweep_report

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
        | {"methods": {MAIN: {"dr2": {"factor": 4, "tau": 6, "omega": 16}}}},
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
        "uncertainty": {
            "correlation": 0.4321,
            "samples": 8,
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


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag, key):
        return [
            attributes[key] for name, attributes in self.tags if name == tag and key in attributes
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


def decode(uri):
    import base64

    return images.decode_image(base64.b64decode(uri.partition(",")[2])).pixels


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
    assert "DR2 (factor 4, tau 6, omega 16)" in full
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"role": "good"}, "choose best, median, worst"),
        ({"degradation": "rain"}, "there are mild, haze 2, haze 4"),
        ({"versions": {"input": np.zeros((4, 4, 3))}}, "must be .* uint8"),
    ],
)
def test_wrong_examples_are_refused(tmp_path, summary, examples, change, message):
    wrong = Example(**(vars(examples[0]) | change))
    with pytest.raises(ValueError, match=message):
        write_evaluation_report(tmp_path, summary, [wrong])
    assert not list(tmp_path.iterdir())


def test_an_unknown_main_method_is_refused(tmp_path, summary):
    summary["main_method"] = "other"
    with pytest.raises(ValueError, match=r"main_method 'other' is no method; there are input"):
        write_evaluation_report(tmp_path, summary, [])


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


# -- sweeps ----------------------------------------------------------------------------------


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
    grid = plots._best_values(sweep, points, "mean", plots.TAU, plots.OMEGA)
    # Rows: ω = 8 and the default; columns: τ = 2 and 4. Two points share the first cell.
    np.testing.assert_array_equal(grid, [[21, 22], [np.nan, 23]])
    sweep["metrics"]["psnr"]["better"] = "lower"
    grid = plots._best_values(sweep, points, "mean", plots.TAU, plots.OMEGA)
    assert grid[0, 0] == 20


def test_filters_are_told_apart(tmp_path, sweep):
    for point, low_pass in zip(
        sweep["points"], ("gaussian", "fft", "none", "bicubic"), strict=False
    ):
        point["settings"] |= {"low_pass": low_pass, "sigma_px": 1.5, "cutoff": 0.1}
    assert [plots.filter_label(p["settings"]) for p in sweep["points"][:4]] == [
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


def test_wrong_sweeps_are_refused(tmp_path, sweep):
    wrong = copy.deepcopy(sweep) | {"chosen_metric": "fid"}
    with pytest.raises(ValueError, match="no metric 'fid'; there are psnr, ssim"):
        write_sweep_report(tmp_path, wrong)
    sweep["best"]["mean"] = "p99"
    with pytest.raises(ValueError, match="no point 'p99', the best of mean; there are p00"):
        write_sweep_report(tmp_path, sweep)


# -- in a browser ----------------------------------------------------------------------------

LISTEN = """<script>
window.problems = [];
window.onerror = message => { problems.push(String(message)); };
document.addEventListener("securitypolicyviolation", e => problems.push("blocked " + e.blockedURI));
</script>"""
PROBE = """<script>
window.onload = () => setTimeout(() => {
  const found = {problems, images: document.images.length,
    broken: [...document.images].filter(image => !image.naturalWidth).length,
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth};
  const slider = document.querySelector(".slider");
  if (slider) {
    const input = slider.querySelector("input"), right = slider.querySelector(".right");
    found.before = getComputedStyle(right).clipPath;
    input.value = 20;
    input.dispatchEvent(new Event("input"));
    found.after = getComputedStyle(right).clipPath;
    const select = document.getElementById("left");
    found.first = slider.querySelector(".left").alt;
    select.value = "original";
    select.dispatchEvent(new Event("change"));
    found.second = slider.querySelector(".left").alt;
    const original = slider.parentElement.querySelector("[data-version=original]").src;
    found.same = slider.querySelector(".left").src === original;
    input.focus();
    found.focused = document.activeElement === input;
    found.side = slider.clientWidth;
  }
  const result = document.createElement("pre");
  result.id = "result";
  result.textContent = JSON.stringify(found);
  document.body.append(result);
}, 50);
</script>"""


def browse(path, tmp_path, width=1280):
    """What a browser finds on a page, from a script that is put into a copy of it."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip("no Chromium or Chrome")
    probed = tmp_path / "probed.html"
    text = path.read_text().replace("<head>", "<head>" + LISTEN, 1)
    probed.write_text(text.replace("</body>", PROBE + "</body>"))
    options = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
        *("--disable-background-networking", "--disable-component-update"),
        *(f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900"),
        *("--virtual-time-budget=5000", "--dump-dom"),
    ]
    done = subprocess.run(
        [browser, *options, probed.as_uri()], capture_output=True, text=True, timeout=120
    )
    found = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    return json.loads(found[1].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"))


@pytest.mark.parametrize("width", [1280, 500])
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


def test_a_browser_shows_a_sweep(tmp_path, sweep):
    found = browse(write_sweep_report(tmp_path, sweep), tmp_path, 500)
    assert (found["problems"], found["broken"], found["overflow"]) == ([], 0, 0)
    assert found["images"] == 3
