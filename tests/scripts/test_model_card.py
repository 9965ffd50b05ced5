import json

import numpy as np
import pytest
from conftest import make_pixels, run_here
from model_card import _terms, read_log, sample_faces, summarise
from PIL import Image


def make_run(folder, name, steps):
    run = folder / name
    run.mkdir(parents=True)
    lines = [
        {
            "step": s,
            "net/loss": 1 / s,
            "pictures": 80,
            "images_per_second": 8.0,
            "data_wait_share": 0.02,
        }
        for s in steps
    ]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_summary_of_a_run(tmp_path):
    summary = summarise(read_log(make_run(tmp_path, "a", range(10, 101, 10))))
    assert "steps 100, pictures 800, 2 minutes" in summary  # 800 / 8 s
    assert "waiting for data 2.0 % of the time" in summary
    assert "net/loss 0.0100, mean of the last tenth" in summary


def test_losses_as_a_command(tmp_path):
    runs = [make_run(tmp_path / name, "same", (5, 10)) for name in "ab"]
    result = run_here("scripts/research/model_card.py", "losses", tmp_path / "l.png", *runs)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("pictures 160") == 2
    assert all(str(run) in result.stdout for run in runs)
    with Image.open(tmp_path / "l.png") as picture:
        assert picture.width > 500


def test_the_terms_of_a_loss(tmp_path):
    run = make_run(tmp_path, "run", (5, 10))
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    lines[0] |= {"net/pixel": 0.5, "net/r1": 2.0, "net/grad_norm": 1.0, "other/loss": 1.0}
    lines[1] |= {"net/pixel": 0.0, "net/grad_norm": 1.0, "other/loss": 1.0}
    assert _terms(lines) == ["net/pixel", "net/r1", "other/loss"]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = run_here("scripts/research/model_card.py", "terms", tmp_path / "t.png", run)
    assert result.returncode == 0, result.stderr
    with Image.open(tmp_path / "t.png") as picture:
        assert picture.width > 500


@pytest.mark.slow
def test_restorations_as_a_command(tmp_path):
    faces = np.stack([make_pixels(i, 256, 256) for i in range(17)])
    np.savez(tmp_path / "faces.npz", images=faces, files=[f"f{i}" for i in range(17)])
    command = (
        "scripts/research/model_card.py",
        "restorations",
        tmp_path / "r.png",
        tmp_path / "faces.npz",
    )
    result = run_here(*command)
    assert result.returncode == 0, result.stderr
    sheet = np.asarray(Image.open(tmp_path / "r.png"))
    assert sheet.shape == (8 * 258 - 2, 8 * 258 - 2, 3)
    assert (sheet[:256, 3 * 258 : 3 * 258 + 256] == faces[0]).all()
    degraded, restored = (sheet[:256, i * 258 : i * 258 + 256].astype(int) for i in (0, 2))
    assert (degraded != restored).any()


def test_every_sample_has_a_seed_of_its_own(model_folder):
    faces = sample_faces(str(model_folder), 3)
    again = sample_faces(str(model_folder), 2)
    assert faces.shape == (3, 16, 16, 3)
    assert (faces[:2] == again).all()
    assert (faces[0] != faces[1]).any()


def test_no_log(tmp_path):
    with pytest.raises(ValueError, match="no training log at"):
        read_log(tmp_path)
