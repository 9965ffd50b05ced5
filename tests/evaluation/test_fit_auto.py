import numpy as np
import pytest
import torch
from compare_auto_features import degraded_pictures
from conftest import ROOT, make_pictures, run_here

from dr2pipe.core.config import load_config
from dr2pipe.core.errors import ConfigError
from dr2pipe.diffusion.auto import load_auto
from dr2pipe.diffusion.degradation_features import FEATURES, degradation_features
from dr2pipe.enhancers.degradation_encoder import DegradationEncoder
from dr2pipe.evaluation.fit_auto import fit_auto, save_auto
from dr2pipe.evaluation.sweep import SweepConfig, sweep
from dr2pipe.evaluation.sweep_table import SweepTable, read_sweep, read_sweeps


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


def test_two_features_of_damage_decide_together():
    """As grain does: much detail, but not much more of it at one pixel."""
    together = table(faces=60)
    product = together.features[:, [0]] * together.features[:, [2]]
    together.values["psnr"][:] = 25 + product * np.array([-1.5, 0.0, 1.5])
    together.values["ssim"][:] = together.values["psnr"] / 50
    _, means = fit_auto(together)
    best = 25 + 1.5 * np.abs(product).mean()
    assert means["auto"]["psnr"] > 25 + 0.8 * (best - 25)


def test_lpips_counts_where_it_was_measured():
    blind = table()
    seeing = table()
    seeing.values["lpips_alex"] = np.full(seeing.values["psnr"].shape, 0.5)
    seeing.values["lpips_alex"][:, 2] = 0.0  # 10 dB better to the eye
    assert fit_auto(blind)[0].fixed == 1
    assert fit_auto(seeing)[0].fixed == 2
    assert (blind.score_text, seeing.score_text) == (
        "+1 psnr +20 ssim", "+1 psnr +20 ssim -20 lpips_alex",
    )  # fmt: skip


def test_confidence_is_not_more_than_how_often_the_choice_is_better(monkeypatch):
    setting, _ = fit_auto(table())
    fresh = table(seed=1)
    monkeypatch.setattr(
        "dr2pipe.diffusion.auto.degradation_features", lambda x: torch.from_numpy(x)
    )
    chosen = setting.choose(fresh.features)
    changed = [i for i, (place, _) in enumerate(chosen) if place != setting.fixed]
    right = [fresh.scores[i, chosen[i][0]] > fresh.scores[i, setting.fixed] for i in changed]
    confidences = [chosen[i][1] for i in changed]
    assert np.mean(confidences) <= np.mean(right) + 0.08
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
    done = run_here("-m", "dr2pipe", "fit-auto", tmp_path / "s", tmp_path / "auto.json")
    assert done.returncode == 0, done.stderr
    assert "fixed, on faces left out: psnr" in done.stdout
    more = [*given, "seed=1", f"output={tmp_path / 'seed1'}"]
    sweep(load_config(SweepConfig, None, more))
    folders = [tmp_path / "s", tmp_path / "seed1"]
    done = run_here("-m", "dr2pipe", "fit-auto", *folders, tmp_path / "both.json")
    assert done.returncode == 0, done.stderr
    assert "6 faces, 24 rows, 3 settings" in done.stdout
    both = read_sweeps(folders)
    assert np.array_equal(both.scores[12:], read_sweep(folders[1]).scores)
    assert list(both.faces[12:]) == list(both.faces[:12])
    other = [*given, "grid={factor: [2], tau: [3]}", f"output={tmp_path / 'other'}"]
    sweep(load_config(SweepConfig, None, other))
    with pytest.raises(ConfigError, match="has another model, settings or metrics"):
        read_sweeps([tmp_path / "s", tmp_path / "other"])
    done = run_here(
        "scripts/restore.py", ROOT / "configs/restore/portrait128.yaml", f"input={clean}",
        f"output={tmp_path / 'o'}", f"dr2.model={model_folder}", "enhancer.name=none",
        "dr2.mode=auto", f"dr2.auto={tmp_path / 'auto.json'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    DegradationEncoder(4).save_pretrained(tmp_path / "encoder")
    done = run_here(
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


def test_a_file_comes_back_as_it_was(tmp_path):
    setting, _ = fit_auto(table())
    save_auto(setting, tmp_path / "a.json", "psnr")
    assert load_auto(str(tmp_path / "a.json"))[0] == setting


def test_too_few_faces():
    with pytest.raises(ConfigError, match="5 faces or more, not 3"):
        fit_auto(table(faces=3))
