import dataclasses
import json

import pytest
import torch
from conftest import TINY, run_here
from PIL import Image

from dr2pipe.core.config import load_config, stable_seed
from dr2pipe.core.errors import ConfigError
from dr2pipe.diffusion.stage1 import AutoRemover, DR2Config, load_remover
from dr2pipe.enhancers import build_enhancer
from dr2pipe.restoration.restorer import Restorer
from dr2pipe.restoration.samples import sample_restorer
from dr2pipe.runs.restore import RestoreConfig, restore_folder


@pytest.fixture
def restorer(model_folder):
    dr2 = DR2Config(model=str(model_folder), tau=2, omega=8, factor=2, num_evaluations=2)
    return Restorer(load_remover(dr2)[0], build_enhancer("bicubic", size=32))


def faces(count=3):
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_samples_are_restorations_with_other_seeds(restorer):
    found = sample_restorer(restorer, faces(), [5, 6, 7], 4)
    each = torch.stack(
        [
            restorer(faces(), [stable_seed(s, k) if k else s for s in (5, 6, 7)]).restored
            for k in range(4)
        ]
    )
    assert torch.equal(found.first.restored, each[0])
    assert torch.allclose(found.mean, each.mean(dim=0))
    expected = each.double().std(dim=0, correction=0).square().mean(dim=1, keepdim=True).sqrt()
    assert torch.allclose(found.spread.double(), expected, atol=1e-5)
    for i in range(3):
        apart = torch.cdist(each[:, i].flatten(1), each[:, i].flatten(1)).square().sum(dim=1)
        assert torch.equal(found.medoid[i], each[apart.argmin(), i])


def test_samples_do_not_depend_on_the_batch(restorer):
    together = sample_restorer(restorer, faces(), [5, 6, 7], 3)
    alone = sample_restorer(restorer, faces()[1:2], [6], 3)
    assert (together.mean[1] - alone.mean[0]).abs().max() < 1e-4
    assert (together.spread[1] - alone.spread[0]).abs().max() < 1e-4


@pytest.mark.parametrize("mode", ["fixed", "auto"])
def test_each_sample_is_from_one_noise(restorer, mode):
    """A noise and its negative would give nearly the same mean every time."""
    remover = dataclasses.replace(restorer.remover, antithetic=True)
    if mode == "auto":
        remover = AutoRemover(ChoosesFirst(), [remover, None])
    twice = restorer.with_remover(remover)
    found = sample_restorer(twice, faces(), [5, 6, 7], 3)
    expected = sample_restorer(restorer, faces(), [5, 6, 7], 3)
    assert torch.equal(found.faces, expected.faces)
    assert found.first.calls == [2, 2, 2]
    assert twice(faces(), [5, 6, 7]).calls == [4, 4, 4]
    assert twice.with_single_noise() is twice.with_single_noise()  # keeps what it compiled
    assert restorer.with_single_noise() is restorer


class ChoosesFirst:
    """Stands in for an automatic setting."""

    candidates = ({"factor": 2}, {"enabled": False})

    def choose(self, pictures):
        return [(0, 0.9)] * len(pictures)


def test_one_sample_has_no_spread(restorer):
    with pytest.raises(ValueError, match="take 2 or more"):
        sample_restorer(restorer, faces(), [1, 2, 3], 1)


def run(pictures, output, model_folder, *more):
    given = [f"input={pictures}", f"output={output}", f"dr2.model={model_folder}", *TINY, *more]
    return restore_folder(load_config(RestoreConfig, None, given))


@pytest.mark.parametrize("combine", ["mean", "medoid"])
def test_a_folder_in_samples(pictures, tmp_path, model_folder, combine):
    more = ["samples=3", f"combine={combine}", "save_compare=true"]
    assert run(pictures, tmp_path / "o", model_folder, *more).restored == 6
    lines = [json.loads(s) for s in (tmp_path / "o/manifest.jsonl").read_text().splitlines()]
    for line in lines:
        spread = Image.open(tmp_path / "o/spread" / line["output"].split("/", 1)[1])
        mean = torch.tensor(list(spread.convert("L").getdata())).double().mean() / 4
        assert line["notes"]["spread"] == pytest.approx(float(mean), abs=0.2)
        assert line["notes"]["spread"] > 0.1
    before = (tmp_path / "o/restored/face_000.png").read_bytes()
    (tmp_path / "o/spread/face_000.png").unlink()
    summary = run(pictures, tmp_path / "o", model_folder, *more)
    assert (summary.restored, summary.skipped) == (1, 5)
    assert (tmp_path / "o/restored/face_000.png").read_bytes() == before


def test_a_picture_without_stage_1_has_no_spread(
    tmp_path, model_folder, auto_by_brightness, restorer
):
    assert sample_restorer(restorer, faces(), [1, 2, 3], 2).varies == [True] * 3
    for name, level in (("bright", 200), ("dark", 40)):
        picture = Image.new("RGB", (16, 16), (level, level, level))
        (tmp_path / "in").mkdir(exist_ok=True)
        picture.save(tmp_path / f"in/{name}.png")
    more = ["samples=2", "dr2.mode=auto", f"dr2.auto={auto_by_brightness}"]
    assert run(tmp_path / "in", tmp_path / "o", model_folder, *more).warned == 1
    lines = [json.loads(s) for s in (tmp_path / "o/manifest.jsonl").read_text().splitlines()]
    found = {line["path"]: line for line in lines}
    assert found["bright.png"]["notes"]["spread"] > 0
    assert found["bright.png"]["warnings"] == []
    assert found["dark.png"]["notes"]["spread"] is None
    assert "left out stage 1" in found["dark.png"]["warnings"][0]


def test_the_mean_of_a_folder_is_the_mean(pictures, tmp_path, model_folder, restorer):
    run(pictures, tmp_path / "one", model_folder)
    run(pictures, tmp_path / "many", model_folder, "samples=2", "batch_size=1")
    one, many = (Image.open(tmp_path / name / "restored/face_000.png") for name in ("one", "many"))
    assert one.tobytes() != many.tobytes()
    assert one.size == many.size


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["samples=0"], "samples=0 must be at least 1"),
        (["samples=2", "combine=median"], "combine 'median': choose mean, medoid"),
        (["samples=2", "dr2.enabled=false"], "samples differ by the noise of stage 1"),
    ],
)
def test_invalid_settings(pictures, tmp_path, model_folder, more, says):
    with pytest.raises(ConfigError, match=says):
        run(pictures, tmp_path / "o", model_folder, *more)
    assert not (tmp_path / "o").exists()


def test_results_inside_the_input_are_no_inputs(pictures, model_folder):
    run(pictures, pictures, model_folder, "samples=2")
    assert run(pictures, pictures, model_folder, "samples=2").skipped == 6


def test_command(pictures, tmp_path, model_folder):
    done = run_here(
        "-m", "dr2pipe", "restore", pictures, tmp_path / "o",
        "--set", f"dr2.model={model_folder}", *TINY, "enhancer.name=none", "samples=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "o/spread").iterdir())) == 6
