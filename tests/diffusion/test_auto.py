import json

import numpy as np
import pytest
import torch
from conftest import ROOT, run_here

from dr2pipe.core import files
from dr2pipe.core.config import load_config
from dr2pipe.core.errors import ConfigError
from dr2pipe.diffusion import auto
from dr2pipe.diffusion.auto import INPUTS, AutoSetting
from dr2pipe.diffusion.degradation_features import FEATURES, degradation_features
from dr2pipe.diffusion.stage1 import DR2Config, describe_dr2, load_remover
from dr2pipe.enhancers import build_enhancer
from dr2pipe.evaluation.fit_auto import save_auto
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
    halves = torch.full(clean.shape, 0.35)  # dark and bright, of usual contrast
    halves[..., :32] = -0.35
    sigma = feature("noise", halves + noise.mean(dim=1, keepdim=True)).exp()
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


@pytest.mark.parametrize(("contrast", "brightness"), [(0.3, 0.5), (0.2, -0.7)])
def test_haze_and_darkness_are_neither_noise_nor_blur(contrast, brightness):
    """Features of damage are those of the same face in usual light."""
    clean = smooth()
    clean += 0.05 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    dim = clean * contrast + brightness  # a logarithm falls by more than 1 where noise does so too
    for name in ("noise", "colour_noise", "detail_1", "detail_3", "blockiness", "direction"):
        assert feature(name, dim).numpy() == pytest.approx(feature(name, clean).numpy(), abs=0.15)


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


@pytest.fixture
def auto_file(model_folder, tmp_path):
    """Chooses by the noise of a picture: none, little, much; the last is not to run at all."""
    noise, count = FEATURES.index("noise"), len(FEATURES)
    weights = np.zeros((INPUTS, 3))
    weights[noise, 0], weights[noise, 2] = 1.0, -1.0  # squares decide the middle
    weights[-1, 1] = 0.3
    mean = np.zeros(count)
    mean[noise] = float(feature("noise", torch.cat([smooth(2, 16), noisy()])).mean())
    setting = AutoSetting(
        model_sha256=files.sha256(model_folder),
        sweep="s",
        candidates=[*candidates(2), {"enabled": False, "num_steps": 100}],
        fixed=1,
        fallback=2,
        mean=mean.tolist(),
        scale=[1.0] * count,
        inverse=np.eye(10).tolist(),
        known=[[0.0] * 10],
        known_scores=[[0.0] * 3],
        farthest=1e9,
        weights=weights.tolist(),
        deviation=[1.0] * 3,
    )
    save_auto(setting, tmp_path / "auto.json", "psnr")
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


def test_antithetic_is_as_it_was_fitted(model_folder, auto_file, tmp_path):
    content = json.loads(auto_file.read_text())
    for candidate in content["candidates"]:
        candidate["antithetic"] = True
    fitted = tmp_path / "fitted.json"
    fitted.write_text(json.dumps(content))
    described = []
    for path, wanted, expected in (
        (auto_file, None, False), (auto_file, True, True), (fitted, None, True), (fitted, False, False)
    ):  # fmt: skip
        dr2 = DR2Config(model=str(model_folder), mode="auto", auto=str(path), antithetic=wanted)
        remover, _ = load_remover(dr2)
        assert {r.antithetic for r in remover.removers if r is not None} == {expected}
        for chooser, noted in ((remover, expected), (remover.with_single_noise(), False)):
            notes = [choice.note for choice in chooser.choose(torch.cat([smooth(2, 16), noisy()]))]
            assert {note.get("antithetic") for note in notes if note["enabled"]} == {noted}
        described.append(describe_dr2(dr2, remover))
    assert described[0] == described[2]  # the file's hash tells them apart
    assert described[1] != described[3]


def test_choices_stand_in_the_manifest(model_folder, auto_file, pictures, tmp_path):
    given = [
        f"input={pictures}", f"output={tmp_path / 'o'}", f"dr2.model={model_folder}",
        "dr2.mode=auto", f"dr2.auto={auto_file}", "samples=2", "faces.mode=aligned",
    ]  # fmt: skip
    restore_folder(load_config(RestoreConfig, None, given))
    lines = [json.loads(s) for s in (tmp_path / "o/manifest.jsonl").read_text().splitlines()]
    assert len(lines) == 6
    for line in lines:
        assert 0.5 <= line["notes"]["auto"]["confidence"] <= 1
        assert "enabled" in line["notes"]["auto"]
    run = (tmp_path / "o/run.yaml").read_text()
    assert files.sha256(auto_file) in run


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
    done = run_here(
        "scripts/make_coarse.py", ROOT / "configs/coarse/portrait128.yaml", f"input={pictures}",
        f"output={tmp_path / 'o'}", f"dr2.model={model_folder}", "dr2.mode=auto",
    )  # fmt: skip
    assert done.returncode == 2
    assert "drawn settings, not dr2.mode=auto" in done.stderr


def test_a_setting_with_one_candidate_takes_it():
    setting = AutoSetting(
        model_sha256="", sweep="", candidates=[{"enabled": False}], fixed=0, fallback=0,
        mean=[0.0] * len(FEATURES), scale=[1.0] * len(FEATURES), inverse=np.eye(10).tolist(),
        known=[[0.0] * 10], known_scores=[[0.0]], farthest=1e9,
        weights=np.zeros((INPUTS, 1)).tolist(), deviation=[1.0],
    )  # fmt: skip
    assert setting.choose(torch.zeros(2, 3, 32, 32)) == [(0, 0.5)] * 2


def test_the_nearest_faces_of_the_sweep_decide_too():
    """Without a regression, a picture gets what was best for the eight faces most like it."""
    noisy_ones = smooth() + 0.3 * torch.randn(
        4, 3, 64, 64, generator=torch.Generator().manual_seed(1)
    )
    clean, noisy = (degradation_features(faces).numpy() for faces in (smooth(), noisy_ones))
    features = np.concatenate([clean, noisy])
    mean, scale = features.mean(axis=0), features.std(axis=0) + 1e-9
    known = auto.structure_of(features, mean, scale).repeat(2, axis=0)
    setting = AutoSetting(
        model_sha256="", sweep="", candidates=candidates(3), fixed=0, fallback=2,
        mean=mean.tolist(), scale=scale.tolist(), inverse=np.eye(10).tolist(),
        known=known.tolist(), known_scores=[[1.0, 0.0, -1.0]] * 8 + [[-1.0, 1.0, 0.0]] * 8,
        farthest=1.0, weights=np.zeros((INPUTS, 3)).tolist(), deviation=[1.0] * 3,
    )  # fmt: skip
    assert [place for place, _ in setting.choose(smooth())] == [0] * 4
    assert [place for place, _ in setting.choose(noisy_ones)] == [1] * 4
    stripes = torch.ones(1, 3, 64, 64)
    stripes[..., ::2] = -1
    assert setting.choose(stripes) == [(2, 0.5)]
    assert auto.unfamiliar_damage(setting, stripes)
    assert auto.unfamiliar_damage(setting, noisy_ones[:1]) == []


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("known", [[0.0] * 9], "features each"),
        ("known", [], "features each"),
        ("known_scores", [[0.0] * 4], "a score for each candidate"),
        ("known_scores", [], "a score for each candidate"),
    ],
)
def test_files_whose_faces_make_no_sense(auto_file, tmp_path, name, value, said):
    content = json.loads(auto_file.read_text())
    content[name] = value
    path = tmp_path / "other.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=said):
        auto.load_auto(str(path))
