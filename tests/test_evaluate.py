import csv

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, make_pictures, run_command
from PIL import Image

from dr2pipe import images
from dr2pipe.config import ConfigError, load_config, stable_seed
from dr2pipe.degradations import degrade
from dr2pipe.enhancers import build_enhancer
from dr2pipe.evaluate import METHODS, EvaluateConfig, evaluate
from dr2pipe.metrics import measure
from dr2pipe.restore import build_restorer


@pytest.fixture
def clean(tmp_path):
    return make_pictures(tmp_path / "clean", 5, height=32, width=32)


def overrides(clean, output, model_folder, *more):
    return [
        f"input={clean}", f"output={output}", "size=32", "degraded_size=16",
        "degradations=[mild,severe,speckle:4,rain:2]", "metrics=[psnr,ssim]", "batch_size=2",
        f"dr2.model={model_folder}", "enhancer.name=bicubic", "enhancer.options.size=32",
        "baseline.name=bicubic", "baseline.options.size=32", *TINY, *more,
    ]  # fmt: skip


def rows_of(folder):
    return list(csv.DictReader((folder / "results.csv").open()))


def test_every_version_of_every_face_is_measured(clean, model_folder, tmp_path):
    config = load_config(EvaluateConfig, None, overrides(clean, tmp_path / "o", model_folder))
    table = evaluate(config)
    rows = rows_of(tmp_path / "o")
    assert len(rows) == 4 * 5 * len(METHODS)
    assert {r["degradation"] for r in rows} == {"mild", "severe", "speckle 4", "rain 2"}
    mild = [float(r["psnr"]) for r in rows if (r["degradation"], r["method"]) == ("mild", "input")]
    assert f"| mild | {np.mean(mild):.2f} |" in table
    unseen = [
        float(r["psnr"])
        for r in rows
        if r["degradation"] in ("speckle 4", "rain 2") and r["method"] == "coarse"
    ]
    line = next(x for x in table.splitlines() if x.startswith("| mean of unseen families"))
    assert line.split("|")[3].strip() == f"{np.mean(unseen):.2f}"
    # Both enhancers are bicubic here: what they make of the input is the enlarged input.
    by_method = {
        m: [r["psnr"] for r in rows if r["method"] == m and r["degradation"] == "severe"]
        for m in METHODS
    }
    assert np.allclose(
        np.array(by_method["baseline"], float), np.array(by_method["input"], float), atol=0.1
    )
    assert by_method["coarse"] != by_method["input"]
    with Image.open(tmp_path / "o/sheets/speckle_4.png") as sheet:
        assert sheet.size == (7 * 34 - 2, 5 * 34 - 2)


def test_each_method_is_what_its_name_says(clean, model_folder, tmp_path):
    torch.manual_seed(0)
    network = build_enhancer(
        "sparnet", size=32, channels=[8, 16], residual_blocks=1, hourglass_depth=1
    )
    network.save_pretrained(tmp_path / "spar")
    config = load_config(
        EvaluateConfig,
        None,
        overrides(
            clean, tmp_path / "o", model_folder, "degradations=[mild]", "limit=1",
            "enhancer.name=sparnet", "enhancer.options={}", f"enhancer.weights={tmp_path / 'spar'}",
        ),
    )  # fmt: skip
    evaluate(config)
    found = {r["method"]: float(r["psnr"]) for r in rows_of(tmp_path / "o")}
    original = images.read_image(clean / "face_000.png").pixels
    seed = stable_seed(0, "mild", "face_000.png")
    small, _ = degrade(
        images.resize_pixels(original, (16, 16)), "mild", np.random.default_rng(seed)
    )
    restorer, _ = build_restorer(config.dr2, config.enhancer)
    degraded = images.to_tensor(small)
    coarse = restorer(degraded, [seed]).coarse
    bicubic = build_enhancer("bicubic", size=32)
    made = {
        "input": degraded,
        "coarse": coarse,
        "baseline": bicubic(degraded),
        "enhancer": network.eval()(images.resize_tensor(degraded, 32)),
        "DR2 + baseline": bicubic(coarse),
        "DR2 + enhancer": network(images.resize_tensor(coarse, 32)),
    }
    for method, picture in made.items():
        enlarged = images.resize_tensor(picture.detach().clamp(-1, 1), 32)
        expected = measure(enlarged, images.to_tensor(original), ["psnr"])["psnr"][0]
        assert found[method] == pytest.approx(expected, abs=0.01), method
    assert abs(found["enhancer"] - found["baseline"]) > 0.1


def test_the_same_numbers_for_any_batch_size(clean, model_folder, tmp_path):
    for size in (1, 4):
        given = overrides(clean, tmp_path / str(size), model_folder, f"batch_size={size}")
        evaluate(load_config(EvaluateConfig, None, given))
    for a, b in zip(rows_of(tmp_path / "1"), rows_of(tmp_path / "4"), strict=True):
        assert all(a[key] == b[key] for key in ("degradation", "method", "picture"))
        assert float(a["psnr"]) == pytest.approx(float(b["psnr"]), abs=0.02)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("degradations=[snow]", "unknown degradation 'snow'"),
        ("degradations=[rain]", r"severity of 1\.\.5, not None"),
        ("degradations=['rain:9']", r"severity of 1\.\.5, not 9"),
        ("degradations=[]", "at least one"),
        ("degradations=[mild,mild]", "must differ"),
        ("metrics=[beauty]", "unknown metric 'beauty'"),
        ("metrics=[ms_ssim]", "112 pixels or more, not 32"),
        ("metrics=[]", "metrics must name"),
        ("limit=0", "limit=0 must be at least 1"),
        ("batch_size=0", "batch_size=0"),
        ("input=/nowhere", "/nowhere"),
        ("baseline.name=sparnet", "needs enhancer.weights"),
    ],
)
def test_errors_come_before_any_work(clean, model_folder, tmp_path, override, says):
    given = overrides(clean, tmp_path / "o", model_folder, override)
    with pytest.raises((ConfigError, ValueError), match=says):
        evaluate(load_config(EvaluateConfig, None, given))
    assert not (tmp_path / "o").exists()


def test_the_command_prints_the_table(clean, model_folder, tmp_path):
    given = overrides(clean, tmp_path / "o", model_folder, "limit=2", "degradations=[mild]")
    result = run_command(
        "scripts/evaluate.py", ROOT / "configs/evaluate/portrait64.yaml", *given, "baseline.weights=null",
        "enhancer.weights=null",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "psnr, mean of 2 faces" in result.stdout
    assert (tmp_path / "o/run.yaml").is_file()
    assert (tmp_path / "o/table.md").read_text() in result.stdout
