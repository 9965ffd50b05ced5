import csv
import hashlib
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, make_pictures, run_command
from PIL import Image

from dr2pipe import images
from dr2pipe.config import ConfigError, load_config, stable_seed
from dr2pipe.degradations import degrade
from dr2pipe.enhancers import build_enhancer
from dr2pipe.evaluation.evaluate import evaluate
from dr2pipe.evaluation.protocol import Protocol
from dr2pipe.evaluation.statistics import estimate
from dr2pipe.metrics import psnr
from dr2pipe.restore import DR2Config, EnhancerConfig, build_restorer

METHODS = ["input", "coarse", "baseline", "enhancer", "DR2 + enhancer"]


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp("clean") / "faces", 5, height=32, width=32)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """Folder of a small enhancer to 32 px."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("enhancer") / "spar"
    options = {"size": 32, "channels": [8, 16], "residual_blocks": 1, "hourglass_depth": 1}
    build_enhancer("sparnet", **options).save_pretrained(folder)
    return folder


@pytest.fixture
def protocol(tmp_path, clean, network, model_folder):
    """A protocol file; the output is named on top."""
    dr2 = {"model": str(model_folder), "factor": 2, "tau": 2, "omega": 8, "num_evaluations": 2}
    bicubic = {"name": "bicubic", "options": {"size": 32}}
    enhancer = {"name": "sparnet", "weights": str(network)}
    content = {
        "name": "toy",
        "clean": {"path": str(clean)},
        "size": 32,
        "degraded_size": 16,
        "degradations": ["mild", "severe", "speckle:4", "rain:2"],
        "methods": {
            "input": {},
            "coarse": {"dr2": dr2},
            "baseline": {"enhancer": bicubic},
            "enhancer": {"enhancer": enhancer},
            "DR2 + enhancer": {"dr2": dr2, "enhancer": enhancer},
        },
        "baseline": "baseline",
        "metrics": ["psnr", "ssim"],
        "batch_size": 2,
    }
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def run(protocol, output, *overrides):
    return evaluate(load_config(Protocol, protocol, [f"output={output}", *overrides]))


def rows_of(folder):
    return list(csv.DictReader((folder / "results.csv").open()))


def test_every_method_is_measured_on_every_face(protocol, tmp_path):
    table = run(protocol, tmp_path / "o")
    rows = rows_of(tmp_path / "o")
    summary = json.loads((tmp_path / "o/summary.json").read_text())
    assert len(rows) == 4 * 5 * len(METHODS)
    assert {r["degradation"] for r in rows} == {"mild", "severe", "speckle 4", "rain 2"}
    assert {r["protocol"] for r in rows} == {summary["protocol"]["hash"]}
    assert {r["network_calls"] for r in rows if "DR2" in r["method"]} == {"2"}
    assert {r["network_calls"] for r in rows if r["method"] == "enhancer"} == {"0"}
    mild = [float(r["psnr"]) for r in rows if (r["degradation"], r["method"]) == ("mild", "input")]
    assert f"| mild | {np.mean(mild):.2f} |" in table
    unseen = [
        float(r["psnr"])
        for r in rows
        if r["degradation"] in ("speckle 4", "rain 2") and r["method"] == "coarse"
    ]
    line = next(x for x in table.splitlines() if x.startswith("| mean of unseen families"))
    assert line.split("|")[3].strip() == f"{np.mean(unseen):.2f}"
    cell = next(
        c
        for c in summary["cells"]
        if (c["degradation"], c["method"], c["metric"]) == ("severe", "coarse", "psnr")
    )
    values = {
        m: np.array(
            [float(r["psnr"]) for r in rows if (r["degradation"], r["method"]) == ("severe", m)]
        )
        for m in METHODS
    }
    assert cell["low"] <= cell["mean"] <= cell["high"]
    assert cell["mean"] == pytest.approx(values["coarse"].mean(), abs=1e-4)
    difference = (values["coarse"] - values["baseline"]).mean()
    assert cell["difference"]["mean"] == pytest.approx(difference, abs=1e-4)
    assert (tmp_path / "o/report.html").is_file()


def test_each_method_is_what_its_name_says(protocol, clean, network, model_folder, tmp_path):
    run(protocol, tmp_path / "o", "degradations=[mild]", "clean.limit=1")
    found = {r["method"]: float(r["psnr"]) for r in rows_of(tmp_path / "o")}
    original = images.read_image(clean / "face_000.png").pixels
    rng = np.random.default_rng(stable_seed(0, "mild", "face_000.png"))
    small, _ = degrade(images.resize_pixels(original, (16, 16)), "mild", rng)
    dr2 = DR2Config(model=str(model_folder), factor=2, tau=2, omega=8, num_evaluations=2)
    restorer, _ = build_restorer(dr2, EnhancerConfig("sparnet", str(network)))
    degraded = images.to_tensor(small)
    result = restorer(degraded, [stable_seed(0, "face_000.png")])
    made = {
        "input": degraded,
        "coarse": result.coarse,
        "baseline": build_enhancer("bicubic", size=32)(degraded),
        "enhancer": restorer.enhance(degraded),
        "DR2 + enhancer": result.restored,
    }
    for method, picture in made.items():
        enlarged = images.resize_tensor(picture.detach().clamp(-1, 1), 32)
        expected = psnr(enlarged, images.to_tensor(original)).item()
        assert found[method] == pytest.approx(expected, abs=0.01), method
    assert abs(found["enhancer"] - found["baseline"]) > 0.1


def test_the_same_numbers_for_any_batch_size(protocol, tmp_path):
    for size in (1, 4):
        run(protocol, tmp_path / str(size), f"batch_size={size}")
    for a, b in zip(rows_of(tmp_path / "1"), rows_of(tmp_path / "4"), strict=True):
        assert all(a[key] == b[key] for key in ("protocol", "degradation", "method", "picture"))
        assert float(a["psnr"]) == pytest.approx(float(b["psnr"]), abs=0.02)


def test_two_runs_give_the_same_file_and_a_cut_one_goes_on(protocol, tmp_path):
    for name in ("a", "b"):
        run(protocol, tmp_path / name)
    table = (tmp_path / "a/results.csv").read_bytes()
    assert table == (tmp_path / "b/results.csv").read_bytes()
    rows = tmp_path / "b/rows.jsonl"
    lines = rows.read_bytes().splitlines(keepends=True)
    kept = lines[:7]
    rows.write_bytes(b"".join(kept) + lines[7][:25])  # a kill in the middle of a line
    (tmp_path / "b/results.csv").unlink()
    run(protocol, tmp_path / "b")
    assert table == (tmp_path / "b/results.csv").read_bytes()
    assert rows.read_bytes().splitlines(keepends=True)[:7] == kept


def test_a_killed_run_and_two_processes(protocol, tmp_path):
    run(protocol, tmp_path / "a")
    command = [
        "-m", "torch.distributed.run", "--nproc_per_node", "2",
        ROOT / "scripts/evaluate.py", protocol, f"output={tmp_path / 'b'}",
    ]  # fmt: skip
    process = subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT)
    rows = tmp_path / "b/rows.jsonl"
    deadline = time.time() + 120
    while process.poll() is None and time.time() < deadline:
        if rows.is_file() and rows.stat().st_size:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.02)
    process.wait()
    # Its children end by themselves, when they notice or when they are done.
    for _ in range(60):
        result = run_command(*command)
        if "another run is writing" not in result.stderr:
            break
        time.sleep(1)
    assert result.returncode == 0, result.stderr
    a, b = rows_of(tmp_path / "a"), rows_of(tmp_path / "b")
    for x, y in zip(a, b, strict=True):
        assert [x[k] for k in ("protocol", "degradation", "method", "picture")] == [
            y[k] for k in ("protocol", "degradation", "method", "picture")
        ]
        assert float(x["psnr"]) == pytest.approx(float(y["psnr"]), abs=0.02)


def test_results_of_another_protocol_are_refused(protocol, tmp_path):
    run(protocol, tmp_path / "a", "clean.limit=2")
    before = (tmp_path / "a/rows.jsonl").read_bytes()
    for change in ("seed=1", "clean.limit=3", "metrics=[psnr]", "methods.coarse.dr2.tau=3"):
        with pytest.raises(ConfigError, match="another protocol"):
            run(protocol, tmp_path / "a", "clean.limit=2", change)
        with pytest.raises(ConfigError, match="another protocol"):
            run(protocol, tmp_path / "b", "clean.limit=2", change, f"merge=[{tmp_path / 'a'}]")
    with pytest.raises(ConfigError, match="no results"):
        run(protocol, tmp_path / "c", f"merge=[{tmp_path / 'nothing'}]")
    assert (tmp_path / "a/rows.jsonl").read_bytes() == before
    run(protocol, tmp_path / "d", "clean.limit=2", f"merge=[{tmp_path / 'a'}]")
    assert (tmp_path / "d/rows.jsonl").read_bytes() == before


def test_pictures_are_those_of_the_list(protocol, clean, tmp_path):
    lines = [
        f"{hashlib.sha256(p.read_bytes()).hexdigest()}  ./{p.name}" for p in sorted(clean.iterdir())
    ]
    listed = tmp_path / "faces.sha256"
    listed.write_text("\n".join(lines) + "\n")
    assert run(protocol, tmp_path / "o", f"clean.sha256={listed}", "degradations=[mild]")
    listed.write_text("\n".join(["0" * 64 + lines[0][64:], *lines[2:], "f" * 64 + "  gone.png"]))
    with pytest.raises(ConfigError) as error:
        run(protocol, tmp_path / "p", f"clean.sha256={listed}")
    said = str(error.value)
    assert "face_000.png: changed" in said
    assert "face_001.png: not in the list" in said
    assert "gone.png: missing" in said
    listed.write_text("nonsense\n")
    with pytest.raises(ConfigError, match="line 1"):
        run(protocol, tmp_path / "p", f"clean.sha256={listed}")
    assert not (tmp_path / "p").exists()


def test_groups_and_the_gap_between_them(protocol, tmp_path):
    listed = tmp_path / "people.csv"
    kinds = ["old", "new", "old", "new", "old"]
    lines = [f"face_{i:03d}.png,{kind},x" for i, kind in enumerate(kinds)]
    listed.write_text("file,kind,same\n" + "\n".join(lines) + "\n")
    given = ["degradations=[mild,severe]", f"clean.groups_csv={listed}"]
    run(protocol, tmp_path / "o", *given, "clean.groups=[kind]")
    rows = rows_of(tmp_path / "o")
    summary = json.loads((tmp_path / "o/summary.json").read_text())
    means = {
        group: np.mean(
            [float(r["psnr"]) for r in rows if r["kind"] == group and r["method"] == "coarse"]
        )
        for group in ("old", "new")
    }
    gap = next(
        g
        for g in summary["groups"]["kind"]["gaps"]
        if (g["method"], g["metric"]) == ("coarse", "psnr")
    )
    assert gap["gap"] == pytest.approx(abs(means["old"] - means["new"]), abs=1e-4)
    assert gap["best"] == max(means, key=means.get)
    for column, says in (("same", "into one group"), ("age", "no column 'age'")):
        with pytest.raises(ConfigError, match=says):
            run(protocol, tmp_path / "p", *given, f"clean.groups=[{column}]")
    listed.write_text("file,kind\n" + "\n".join(x.rsplit(",", 1)[0] for x in lines[:4]) + "\n")
    with pytest.raises(ConfigError, match=r"no line for face_004\.png"):
        run(protocol, tmp_path / "p", *given, "clean.groups=[kind]")
    listed.write_text("file,kind\n" + "\n".join(f"face_{i:03d}.png," for i in range(5)) + "\n")
    with pytest.raises(ConfigError, match=r"'kind' of face_000\.png is empty"):
        run(protocol, tmp_path / "p", *given, "clean.groups=[kind]")


def test_pictures_made_elsewhere(protocol, clean, tmp_path):
    degraded = make_pictures(tmp_path / "degraded", 5, height=16, width=16)
    made = tmp_path / "made" / "given"
    for path in clean.iterdir():
        images.write_png(made / path.name, 255 - images.read_image(path).pixels)
    given = [
        "degradations=[given]",
        f"clean.degraded={degraded}",
        f"methods.elsewhere.folder={made.parent}",
    ]
    run(protocol, tmp_path / "o", *given)
    found = [float(r["psnr"]) for r in rows_of(tmp_path / "o") if r["method"] == "elsewhere"]
    pairs = [
        [images.to_tensor(images.read_image(folder / name).pixels) for folder in (made, clean)]
        for name in sorted(path.name for path in clean.iterdir())
    ]
    assert found == pytest.approx([psnr(*pair).item() for pair in pairs], abs=1e-4)
    (degraded / "face_003.png").unlink()
    with pytest.raises(ConfigError, match=r"face_003\.png has no partner"):
        run(protocol, tmp_path / "p", *given)
    make_pictures(degraded, 5, height=20, width=16)
    with pytest.raises(ConfigError, match="has 16x20 pixels"):
        run(protocol, tmp_path / "p", *given)
    assert not (tmp_path / "p").exists()


def test_a_crop(protocol, tmp_path):
    wide = make_pictures(tmp_path / "wide", 2, height=32, width=48)
    given = [f"clean.path={wide}", "degradations=[mild]"]
    with pytest.raises(ConfigError, match="not square"):
        run(protocol, tmp_path / "o", *given)
    run(protocol, tmp_path / "o", *given, "clean.crop=center")
    square = tmp_path / "square"
    square.mkdir()
    for path in wide.iterdir():
        with Image.open(path) as picture:
            picture.crop((8, 0, 40, 32)).save(square / path.name)
    run(protocol, tmp_path / "p", f"clean.path={square}", "degradations=[mild]")
    values = [[r["psnr"] for r in rows_of(tmp_path / x)] for x in ("o", "p")]
    assert values[0] == values[1]


def test_spread_is_compared_with_the_error(protocol, tmp_path):
    given = ["uncertainty_samples=3", "clean.limit=2", "degradations=[mild]"]
    run(protocol, tmp_path / "o", *given)
    found = json.loads((tmp_path / "o/summary.json").read_text())["uncertainty"]
    assert -1 <= found["correlation"] <= 1
    assert sum(b["count"] for b in found["bins"]) == 2 * 32 * 32
    with pytest.raises(ConfigError, match="all its samples would be equal"):
        run(protocol, tmp_path / "p", *given, "main=enhancer")


def test_a_preset_as_a_method(protocol, tmp_path):
    given = ["methods={preset: {preset: portrait64}, input: {}}", "baseline=input"]
    run(protocol, tmp_path / "o", *given, "clean.limit=1", "degradations=[mild]")
    assert [r["method"] for r in rows_of(tmp_path / "o")] == ["preset", "input"]
    with pytest.raises(ConfigError, match=r"no configuration file at .*nothing\.yaml"):
        run(protocol, tmp_path / "p", "methods={a: {preset: nothing}}")
    with pytest.raises(ConfigError, match="leaves nothing else to set"):
        run(protocol, tmp_path / "p", "methods={a: {preset: portrait64, folder: x}}")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("degradations=[snow]", "unknown degradation 'snow'"),
        ("degradations=[rain]", r"severity of 1\.\.5, not None"),
        ("degradations=['rain:9']", r"severity of 1\.\.5, not 9"),
        ("degradations=[]", "at least one"),
        ("degradations=[mild,mild]", "must differ"),
        ("degradations=[given]", "go together"),
        ("metrics=[beauty]", "unknown metric 'beauty'"),
        ("metrics=[ms_ssim]", "112 pixels or more, not 32"),
        ("metrics=[lpips]", "lpips"),
        ("clean.limit=0", "limit=0 must be at least 1"),
        ("clean.crop=round", "crop 'round'"),
        ("batch_size=0", "batch_size=0"),
        ("clean.path=/nowhere", "/nowhere"),
        ("methods.baseline.enhancer.name=sparnet", "needs enhancer.weights"),
        ("main=best", "no method 'best'"),
        ("uncertainty_samples=1", "at least 2"),
        ("methods={}", "methods must name"),
    ],
)
def test_errors_come_before_any_work(protocol, tmp_path, override, says):
    with pytest.raises((ConfigError, ValueError), match=says):
        run(protocol, tmp_path / "o", override)
    assert not (tmp_path / "o").exists()


def test_the_command_prints_the_table(protocol, tmp_path):
    result = run_command(
        "scripts/evaluate.py", protocol, f"output={tmp_path / 'o'}", "clean.limit=2",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "psnr in dB, higher is better, mean of 2 faces" in result.stdout
    assert (tmp_path / "o/table.md").read_text() in result.stdout


def test_intervals():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        found = estimate(rng.normal(3, 2, 40), seed=trial)
        hits += found.low <= 3 <= found.high
    assert 0.88 < hits / 200 < 0.99  # 95 % of intervals hold the true mean
    assert estimate(np.array([1.0, np.nan, 3.0])).count == 2
    assert np.isnan(estimate(np.array([np.nan])).mean)
    assert estimate(np.array([1.0, np.inf])).mean == np.inf
