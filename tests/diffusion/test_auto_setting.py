import dataclasses
import json

import numpy as np
import pytest
import torch
from compare_auto_features import degraded_pictures
from conftest import make_pictures, run_command

from dr2pipe.core import files
from dr2pipe.core.config import load_config
from dr2pipe.core.errors import ConfigError
from dr2pipe.diffusion.auto import SweepTable, fit_auto, load_auto, read_sweep, save_auto
from dr2pipe.diffusion.degradation_features import FEATURES, degradation_features
from dr2pipe.diffusion.stage1 import DR2Config, load_remover
from dr2pipe.enhancers import build_enhancer
from dr2pipe.enhancers.degradation_encoder import DegradationEncoder
from dr2pipe.evaluation.sweep import SweepConfig, sweep
from dr2pipe.restoration.restorer import Restorer
from dr2pipe.runs.restore import RestoreConfig, restore_folder


def smooth(count=4, size=64):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 8, 8, generator=generator) * 1.6 - 0.8
    return torch.nn.functional.interpolate(coarse, size=size, mode="bicubic")


def feature(name, pictures):
    return degradation_features(pictures)[:, FEATURES.index(name)]


def test_features_tell_degradations():
    clean = smooth()
    noise = 0.2 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    assert (feature("noise", clean + noise) > feature("noise", clean) + 1).all()
    sigma = feature("noise", noise.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)).exp()
    assert sigma.mean() == pytest.approx(0.2 / 3**0.5, rel=0.05)
    grey = noise.mean(dim=1, keepdim=True)
    assert (feature("colour_noise", clean + noise) > feature("colour_noise", clean + grey)).all()
    blocky = clean.reshape(4, 3, 8, 8, 8, 8).mean(dim=(3, 5), keepdim=True)
    blocky = blocky.expand(4, 3, 8, 8, 8, 8).reshape(clean.shape)
    assert (feature("blockiness", blocky) > feature("blockiness", clean) + 1).all()
    blurred = torch.nn.functional.avg_pool2d(clean + noise, 5, 1, 2)
    assert (feature("detail_1", blurred) < feature("detail_1", clean + noise)).all()
    salted = torch.where(noise.abs().amax(1, keepdim=True) > 0.5, torch.ones(()), clean)
    assert (feature("impulses", salted) > feature("impulses", clean)).all()
    assert feature("impulses", clean).max() == 0


def test_features_are_of_a_picture_alone():
    pictures = smooth()
    together = degradation_features(pictures)
    alone = torch.cat([degradation_features(p[None]) for p in pictures])
    assert torch.allclose(together, alone, atol=1e-9)
    assert together.shape == (4, len(FEATURES))
    flat = degradation_features(torch.zeros(1, 3, 64, 64))
    assert flat.isfinite().all()


def candidates(count):
    return [
        {"enabled": True, "factor": 2, "tau": 2 + i, "omega": 8, "num_evaluations": 2,
         "num_steps": 100}
        for i in range(count)
    ]  # fmt: skip


def table(faces=40, seed=0, model_sha256="m"):
    """The best of three candidates depends on the first feature."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(faces * 3, len(FEATURES)))
    level = rng.normal(0, 3, size=(faces * 3, 1))  # how hard a face is
    wanted = np.array([-1.5, 0.0, 1.5])
    psnr = 25 + level - (features[:, :1] - wanted) ** 2 + 0.1 * rng.normal(size=(faces * 3, 3))
    values = {"psnr": psnr, "ssim": psnr / 50, "network_calls": np.full(psnr.shape, 2.0)}
    names = np.repeat([f"f{i}" for i in range(faces)], 3)
    return SweepTable(features, values, names, candidates(3), model_sha256, "s")


def test_auto_beats_the_best_fixed_on_faces_left_out():
    setting, means = fit_auto(table())
    assert means["auto"]["psnr"] > means["fixed"]["psnr"] + 0.5
    assert setting.fixed == 1
    # Nothing to learn: no gain that is not there.
    noise = table()
    np.random.default_rng(0).shuffle(noise.features)
    _, means = fit_auto(noise)
    assert means["auto"]["psnr"] < means["fixed"]["psnr"] + 0.1


def test_confidence_is_how_often_the_choice_is_better(monkeypatch):
    setting, _ = fit_auto(table())
    fresh = table(seed=1)
    monkeypatch.setattr(
        "dr2pipe.diffusion.auto.degradation_features", lambda x: torch.from_numpy(x)
    )
    chosen = setting.choose(fresh.features)
    changed = [i for i, (place, _) in enumerate(chosen) if place != setting.fixed]
    right = [fresh.scores[i, chosen[i][0]] > fresh.scores[i, setting.fixed] for i in changed]
    stated = [chosen[i][1] for i in changed]
    assert np.mean(right) == pytest.approx(np.mean(stated), abs=0.08)
    assert all(0.5 <= confidence <= 1 for _, confidence in chosen)


def test_an_unfamiliar_picture_gets_what_the_worst_ones_need(monkeypatch):
    known = table()
    hard = known.scores.mean(axis=1) < np.quantile(known.scores.mean(axis=1), 0.3)
    known.values["psnr"][hard, :2] -= 30  # the last candidate is best for them
    setting, _ = fit_auto(known)
    assert setting.fallback == 2
    monkeypatch.setattr("dr2pipe.diffusion.auto.degradation_features", torch.from_numpy)
    strange, noise = known.features[:3].copy(), FEATURES.index("noise")
    strange[1, noise] = known.features[:, noise].max() + 10
    strange[0, FEATURES.index("saturation")] += 100  # a colourful room is no damage
    chosen = setting.choose(strange)
    assert chosen[1] == (2, 0.5)
    assert chosen[0][1] > 0.5
    assert chosen[2][1] > 0.5


@pytest.fixture
def auto_file(model_folder, tmp_path):
    """Chooses by the noise of a picture: none, little, much; the last is not to run at all."""
    weights = files.sha256(model_folder)
    setting, _ = fit_auto(table(model_sha256=weights))
    noise, count = FEATURES.index("noise"), 2 * len(FEATURES) + 1
    matrix = np.zeros((count, 3))
    matrix[noise, 0], matrix[noise, 2] = 1.0, -1.0  # squares decide the middle
    matrix[-1, 1] = 0.3
    setting = dataclasses.replace(
        setting,
        weights=matrix.tolist(),
        mean=[0.0] * len(FEATURES),
        scale=[1.0] * len(FEATURES),
        low=[-1e9] * len(FEATURES),
        high=[1e9] * len(FEATURES),
        candidates=[*candidates(2), {"enabled": False, "num_steps": 100}],
    )
    mean = feature("noise", torch.cat([smooth(2, 16), noisy()])).mean()
    setting.mean[noise] = float(mean)
    save_auto(setting, tmp_path / "auto.json")
    return tmp_path / "auto.json"


def noisy():
    noise = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return smooth(2, 16) + 0.5 * noise


def test_choices_and_results_do_not_depend_on_the_batch(model_folder, auto_file):
    dr2 = DR2Config(model=str(model_folder), mode="auto", auto=str(auto_file))
    remover, hashes = load_remover(dr2)
    assert hashes["auto"] == files.sha256(auto_file)
    restorer = Restorer(remover, build_enhancer("none"))
    pictures = torch.cat([smooth(2, 16), noisy()])[[0, 2, 1, 3]]
    result = restorer(pictures, [1, 2, 3, 4])
    assert result.calls == [0, 2, 0, 2]
    assert torch.equal(result.coarse[0], pictures[0])
    for i in range(4):
        alone = restorer(pictures[i : i + 1], [i + 1])
        assert (alone.restored[0] - result.restored[i]).abs().max() < 1 / 255
        assert alone.choices[0].note == result.choices[i].note
    assert result.choices[1].note["tau"] == 2
    fixed = load_remover(
        DR2Config(model=str(model_folder), factor=2, tau=2, omega=8, num_evaluations=2)
    )[0]
    expected = Restorer(fixed, build_enhancer("none"))(pictures[1:2], [2])
    assert (expected.restored[0] - result.restored[1]).abs().max() < 1 / 255


def test_choices_stand_in_the_manifest(model_folder, auto_file, pictures, tmp_path):
    given = [
        f"input={pictures}", f"output={tmp_path / 'o'}", f"dr2.model={model_folder}",
        "dr2.mode=auto", f"dr2.auto={auto_file}", "samples=2",
    ]  # fmt: skip
    restore_folder(load_config(RestoreConfig, None, given))
    lines = [json.loads(s) for s in (tmp_path / "o/manifest.jsonl").read_text().splitlines()]
    assert len(lines) == 6
    for line in lines:
        assert 0.5 <= line["notes"]["auto"]["confidence"] <= 1
        assert "enabled" in line["notes"]["auto"]
    run = (tmp_path / "o/run.yaml").read_text()
    assert files.sha256(auto_file) in run


def test_what_a_sweep_finds_can_be_fitted_and_used(model_folder, tmp_path):
    clean = make_pictures(tmp_path / "clean", 6, height=32, width=32)
    given = [
        "name=toy", f"clean.path={clean}", "size=32", "degraded_size=32", "with_off=true",
        f"output={tmp_path / 's'}", "degradations=[mild,severe]", f"dr2.model={model_folder}",
        "enhancer.name=bicubic", "enhancer.options.size=32", "grid={factor: [2, 4], tau: [3]}",
        "dr2.omega=5",
    ]  # fmt: skip
    sweep(load_config(SweepConfig, None, given))
    found = read_sweep(tmp_path / "s")
    assert (found.features.shape, found.scores.shape) == ((12, len(FEATURES)), (12, 3))
    # At the size at which the first stage will see pictures, not that of the sweep.
    assert found.features[:, FEATURES.index("detail_4")].std() > 0
    done = run_command("scripts/fit_auto.py", tmp_path / "s", tmp_path / "auto.json")
    assert done.returncode == 0, done.stderr
    assert "fixed, on faces left out: psnr" in done.stdout
    done = run_command(
        "scripts/restore.py", "configs/restore/portrait64.yaml", f"input={clean}",
        f"output={tmp_path / 'o'}", f"dr2.model={model_folder}", "enhancer.name=none",
        "dr2.mode=auto", f"dr2.auto={tmp_path / 'auto.json'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    DegradationEncoder(4).save_pretrained(tmp_path / "encoder")
    done = run_command(
        "scripts/research/compare_auto_features.py", tmp_path / "s", tmp_path / "encoder"
    )
    assert done.returncode == 0, done.stderr
    found = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert list(found) == ["formula", "encoder", "both", "fixed"]
    # What the encoder sees are the very pictures whose features the sweep noted.
    table, features = read_sweep(tmp_path / "s"), {}
    for rows, again in degraded_pictures(tmp_path / "s"):
        assert again.shape[-1] == 16  # the first stage's
        features |= dict(zip(rows, degradation_features(again).numpy(), strict=True))
    assert set(features) == set(table.rows)
    assert np.allclose(np.stack([features[row] for row in table.rows]), table.features)
    (tmp_path / "s/features.csv").unlink()
    with pytest.raises(ConfigError, match="no finished sweep"):
        read_sweep(tmp_path / "s")


def change(**changes):
    def edit(path):
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | changes))

    return edit


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda path: path.unlink(), "no automatic setting"),
        (lambda path: path.write_text("{}"), "is no automatic setting"),
        (lambda path: path.write_bytes(b"\xff\xd8 picture"), "is no automatic setting"),
        (change(features=["a"]), "fitted by another version"),
        (change(model_sha256="other"), "fitted on another model"),
        (change(candidates=[{"enabled": False}] * 3), "no candidate has a first stage"),
        (change(candidates=[{"beauty": 1}] * 3), "beauty"),
        (change(candidates=[{"tau": 5, "omega": 2, "factor": 2}] * 3), "omega"),
    ],
)
def test_unusable_files(model_folder, auto_file, pictures, tmp_path, spoil, says):
    spoil(auto_file)
    given = [
        f"input={pictures}", f"output={tmp_path / 'o'}", f"dr2.model={model_folder}",
        "dr2.mode=auto", f"dr2.auto={auto_file}",
    ]  # fmt: skip
    with pytest.raises(ValueError, match=says):
        restore_folder(load_config(RestoreConfig, None, given))
    assert not (tmp_path / "o").exists()


def test_unknown_mode(model_folder):
    with pytest.raises(ConfigError, match="choose fixed, auto"):
        load_remover(DR2Config(model=str(model_folder), mode="magic"))


def test_coarse_faces_are_not_made_automatically(pictures, tmp_path, model_folder):
    done = run_command(
        "scripts/make_coarse.py", "configs/coarse/portrait64.yaml", f"input={pictures}",
        f"output={tmp_path / 'o'}", f"dr2.model={model_folder}", "dr2.mode=auto",
    )  # fmt: skip
    assert done.returncode == 2
    assert "not dr2.mode=auto" in done.stderr


def test_a_file_comes_back_as_it_was(tmp_path):
    setting, _ = fit_auto(table())
    save_auto(setting, tmp_path / "a.json")
    assert load_auto(str(tmp_path / "a.json"))[0] == setting


def test_too_few_faces():
    with pytest.raises(ConfigError, match="5 faces or more, not 3"):
        fit_auto(table(faces=3))
