"""Networks between a faithful and a sharp variant of one model."""

import pytest
import torch
from conftest import make_pictures, run_here

import dr2pipe
from dr2pipe.core import files
from dr2pipe.core.errors import CheckpointError, ConfigError
from dr2pipe.enhancers import build_enhancer, mix_with_sharp
from dr2pipe.restoration.restorer import (
    DR2Config,
    EnhancerConfig,
    build_restorer,
    describe_enhancer,
)

SPARNET = {
    "size": 32, "channels": [8, 16], "residual_blocks": 1, "hourglass_depth": 1,
    "hourglass_channels": 8, "norm": "batch",
}  # fmt: skip


def network(seed, **options):
    torch.manual_seed(seed)
    made = build_enhancer("sparnet", **SPARNET | options)
    for name, buffer in made.named_buffers():  # as if it had been trained
        if name.endswith("running_mean"):
            buffer.normal_()
    return made


@pytest.fixture
def variants(tmp_path):
    """A model folder with both variants, as a training leaves them, in half precision."""
    network(1).half().save_pretrained(tmp_path / "model")
    network(2).half().save_pretrained(tmp_path / "model/sharp")
    return tmp_path / "model"


def mixed(folder, sharpness):
    enhancer = build_enhancer("sparnet", folder)
    mix_with_sharp(enhancer, folder, sharpness)
    return enhancer.state_dict()


def test_the_ends_are_the_variants_and_the_middle_is_their_mean(variants):
    ends = [build_enhancer("sparnet", variants / name).state_dict() for name in ("", "sharp")]
    for sharpness, end in ((0, ends[0]), (1, ends[1])):
        found = mixed(variants, sharpness)
        assert all(torch.equal(found[name], weight.to(found[name])) for name, weight in end.items())
    middle = mixed(variants, 0.5)
    for name, weight in middle.items():
        if weight.is_floating_point():
            mean = (ends[0][name].float() + ends[1][name].float()) / 2
            assert torch.allclose(weight, mean, rtol=0, atol=1e-6), name
    quarter = mixed(variants, 0.25)["first.conv.weight"]
    first = ends[0]["first.conv.weight"].float()
    assert torch.allclose(quarter - first, (middle["first.conv.weight"] - first) / 2, atol=1e-6)


def restorer_with(folder, sharpness):
    enhancer = EnhancerConfig("sparnet", str(folder), sharpness=sharpness)
    return (*build_restorer(DR2Config(enabled=False), enhancer), enhancer)


def test_a_restorer_takes_and_records_it(variants):
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    plain, hashes, config = restorer_with(variants, None)
    assert set(hashes) == {"enhancer"}
    assert "sharpness" not in describe_enhancer(config, plain.enhancer)
    results = {}
    for sharpness in (0.0, 0.5, 1.0):
        restorer, hashes, config = restorer_with(variants, sharpness)
        assert hashes["enhancer_sharp"] == files.sha256(variants / "sharp")
        assert describe_enhancer(config, restorer.enhancer)["sharpness"] == sharpness
        results[sharpness] = restorer(x, [0]).restored
    assert torch.equal(results[0.0], plain(x, [0]).restored)
    sharp, _, _ = restorer_with(variants / "sharp", None)
    assert torch.equal(results[1.0], sharp(x, [0]).restored)
    assert not torch.equal(results[0.5], results[1.0])


def test_a_baseline_ignores_the_sharpness_of_a_preset():
    config = EnhancerConfig("bicubic", "gone", options={"size": 32}, sharpness=0.5)
    restorer, hashes = build_restorer(DR2Config(enabled=False), config)
    assert hashes == {}
    assert "sharpness" not in describe_enhancer(config, restorer.enhancer)


@pytest.mark.parametrize("sharpness", [-0.1, 1.5, float("nan")])
def test_out_of_range(variants, sharpness):
    with pytest.raises(ConfigError, match=r"enhancer\.sharpness=.* must lie in 0\.\.1"):
        restorer_with(variants, sharpness)


def test_models_that_have_no_sharp_variant(tmp_path, variants):
    network(1).save_pretrained(tmp_path / "alone")
    with pytest.raises(ConfigError, match="alone has no folder 'sharp'"):
        restorer_with(tmp_path / "alone", 0.5)
    network(1, residual_blocks=2).save_pretrained(variants / "sharp")
    with pytest.raises(
        CheckpointError, match=r"is no variant of .*: residual_blocks of its config"
    ):
        restorer_with(variants, 0.5)
    build_enhancer("bicubic").save_pretrained(variants / "sharp")
    with pytest.raises(CheckpointError, match="holds a BicubicEnhancer, not a SPARNet"):
        restorer_with(variants, 0.5)


def test_from_python_and_on_the_command_line(variants, model_folder, tmp_path):
    given = {
        "dr2__model": model_folder, "dr2__omega": 8, "dr2__tau": 2, "dr2__num_evaluations": 2,
        "enhancer__weights": variants, "enhancer__sharpness": 0.5, "identity__measure": False,
        "precision": "fp32",
    }  # fmt: skip
    restorer = dr2pipe.PhotoRestorer.from_preset("default", faces__name="none", **given)
    used = restorer.engine.restorer.restorer.enhancer.state_dict()
    expected = mixed(variants, 0.5)
    assert all(torch.equal(used[name], weight) for name, weight in expected.items())
    make_pictures(tmp_path / "in", 1)
    settings = [f"{name.replace('__', '.')}={value}" for name, value in given.items()]
    done = run_here(
        "-m",
        "dr2pipe",
        "restore",
        tmp_path / "in",
        tmp_path / "out",
        "--aligned",
        "--set",
        *settings,
    )
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "out/run.yaml").read_text()
    assert "sharpness: 0.5" in text
    assert "enhancer_sharp:" in text
