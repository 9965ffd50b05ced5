"""The recipe ``ddpm``: what it predicts, its averages, its start, and exports of running parts."""

import numpy as np
import pytest
import torch
from conftest import make_pixels
from safetensors.torch import load_file

from dr2pipe.cli import main
from dr2pipe.core.config import load_config
from dr2pipe.core.errors import ConfigError
from dr2pipe.core.seeding import random_stream
from dr2pipe.diffusion.networks import load_ddpm
from dr2pipe.diffusion.patched_unet import PatchedUNet
from dr2pipe.losses.diffusion import snr_weights
from dr2pipe.training.recipes import export_run, run_recipe
from dr2pipe.training.recipes.ddpm import DDPMConfig, DDPMRecipe, build_unet

CONFIG = """
recipe: ddpm
data: {size: 16}
unet: {patch: 2, channels: [8, 16], attention_sizes: [8], attention_head_channels: 8, norm_groups: 4}
prediction: sample
max_timestep: 520
learning_rate: 1.0e-2
total_steps: 3
batch_size: 2
save_every_steps: 1
keep_checkpoints: 3
ema_decay: 0.2
slow_ema_decay: 0.9
"""
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def settings(tmp_path):
    """The configuration file and the overrides of a tiny run."""
    np.savez(
        tmp_path / "faces.npz",
        images=np.stack([make_pixels(i, 16, 16) for i in range(4)]),
        files=np.array([f"{'old' if i % 2 else 'new'}/{i}.png" for i in range(4)]),
    )
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    given = [f"data.path={tmp_path / 'faces.npz'}", f"output={tmp_path / 'run'}"]
    return tmp_path / "tiny.yaml", given


def recipe_of(settings, *more):
    path, given = settings
    return DDPMRecipe(load_config(DDPMConfig, path, [*given, *more]))


@pytest.mark.parametrize("patch", [1, 2])
def test_the_loss_is_the_weighted_error_of_x0(settings, patch):
    recipe = recipe_of(settings, f"unet.patch={patch}", "snr_limit=9", "snr_offset=0.5")
    unet, seen = recipe.build()["unet"].network, []
    unet.register_forward_hook(lambda _, given, output: seen.append((*given, output.sample)))
    clean = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    batch = {"image": clean, "seed": torch.arange(4), "step": 0}
    slow = build_unet(recipe.config.unet, 16)
    ((_, loss, _),) = recipe.step({"unet": unet, "slow": slow}, batch)
    ((_, timesteps, predicted),) = seen
    assert len(set(timesteps.tolist())) > 1
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)[timesteps]
    weights = (alpha_bar / (1 - alpha_bar)).clamp(max=9) + 0.5
    error = (predicted - clean).square().mean(dim=(1, 2, 3))
    assert loss.item() == pytest.approx((weights * error).mean().item(), rel=1e-4)


def test_weights_with_offset_1_are_those_of_v():
    alpha_bar = torch.tensor([0.99, 0.5, 0.1])
    weights = snr_weights(alpha_bar, limit=float("inf"), offset=1.0)
    # v = (sqrt(alpha_bar) x_t - x0) / sqrt(1 - alpha_bar)
    assert torch.allclose(weights, 1 / (1 - alpha_bar), rtol=1e-4)


def test_the_slower_average_follows_and_is_exported(settings, tmp_path):
    assert run_recipe(*settings) == 0
    run = tmp_path / "run"
    live = [load_file(run / f"checkpoints/step_{n:08d}/unet/{WEIGHTS}") for n in (1, 2, 3)]
    last = load_file(run / f"checkpoints/step_00000003/slow/{WEIGHTS}")
    with random_stream(torch.Generator().manual_seed(0)):
        start = recipe_of(settings).build()["unet"].network.state_dict()
    for name, average in last.items():
        # Before steps 1, 2 and 3 it moves to the weights then, by 1 - (1 + n) / (10 + n).
        expected = start[name].clone()
        for step, weights in enumerate((start, live[0], live[1])):
            expected.lerp_(weights[name], 1 - (1 + step) / (10 + step))
        assert torch.allclose(average, expected, atol=1e-5), name
    for folder in ("final", "final_slow"):
        loaded = load_ddpm(run / folder)
        assert isinstance(loaded.unet, PatchedUNet)
        assert loaded.scheduler.config.prediction_type == "sample"
        assert loaded.max_timestep == 520
    assert torch.equal(load_file(run / f"final_slow/unet/{WEIGHTS}")[name], last[name])


def test_an_accumulated_step_moves_the_slower_average_once(settings):
    recipe = recipe_of(settings)
    networks = {name: trained.network for name, trained in recipe.build().items()}
    with torch.no_grad():
        for parameter in networks["slow"].parameters():
            parameter.zero_()
    batch = {"image": torch.zeros(2, 3, 16, 16), "seed": torch.arange(2), "step": 5}
    for _ in range(2):
        list(recipe.step(networks, batch))
    weight, average = (next(networks[n].parameters()) for n in ("unet", "slow"))
    assert torch.allclose(average, weight * (1 - 6 / 15), atol=1e-6)


def test_a_running_part_is_exported_and_training_starts_from_it(settings, tmp_path, capsys):
    assert run_recipe(*settings) == 0
    run = tmp_path / "run"
    assert main(["export", str(run), str(tmp_path / "fast")]) == 0
    assert f"step 3 -> {tmp_path / 'fast'}" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="fast exists already"):
        export_run(run, tmp_path / "fast")
    (tmp_path / "fast").rename(tmp_path / "moved")
    with pytest.raises(ConfigError, match="fast_slow exists already"):
        export_run(run, tmp_path / "fast")
    (tmp_path / "moved").rename(tmp_path / "fast")
    final = load_file(run / "final/unet" / WEIGHTS)
    for name in ("fast", "fast_slow"):
        exported = load_file(tmp_path / name / "unet" / WEIGHTS)
        wanted = load_file(run / name.replace("fast", "final") / "unet" / WEIGHTS)
        assert exported.keys() == wanted.keys()
        assert all(torch.equal(exported[key], weights) for key, weights in wanted.items())
    again = recipe_of(settings, f"init={tmp_path / 'fast'}").build()
    for network in (again["unet"].network, again["slow"].network):
        for name, value in network.state_dict().items():
            assert torch.equal(value, final[name])


def test_unusable_settings(settings, tmp_path):
    for given, message in (
        (["prediction=v"], "choose epsilon or sample"),
        (["prediction=epsilon"], "unet.patch=2 needs prediction=sample"),
        (["variance=learned_range"], "needs prediction=epsilon"),
        (["p2_gamma=1"], "p2_gamma=1.0 weights the loss of prediction=epsilon"),
        (["unet.channels=[]"], r"unet.channels=\[\] must be one or more multiples"),
        (["unet.norm_groups=7"], "must be one or more multiples of unet.norm_groups=7"),
        (["unet.norm_groups=0"], "unet.norm_groups=0 must be at least 1"),
        (["unet.attention_head_channels=0"], r"unet.attention_head_channels=0 must lie in 1\.\.8,"),
        (["unet.dropout=1.0"], "unet.dropout=1.0 must be at least 0 and below 1"),
        (["slow_ema_decay=1.0"], "slow_ema_decay=1.0 must lie between 0 and 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            recipe_of(settings, *given)
    with pytest.raises(ConfigError, match="resample_in_blocks needs"):
        recipe_of(settings, "unet.resample_in_blocks=true").build()
    assert run_recipe(settings[0], [*settings[1], "total_steps=1"]) == 0
    start = f"init={tmp_path / 'run/final'}"
    with pytest.raises(ConfigError, match="does not fit: channels="):
        recipe_of(settings, start, "unet.channels=[8, 24]").build()
    # These weights have the same shapes, and mean something else.
    with pytest.raises(ConfigError, match="does not fit: norm_groups=4 instead of 8"):
        recipe_of(settings, start, "unet.norm_groups=8").build()
    with pytest.raises(ConfigError, match="it is a PatchedUNet, not a UNet2DModel"):
        recipe_of(settings, start, "unet.patch=1", "prediction=epsilon").build()
    plain = ["unet.patch=1", f"output={tmp_path / 'plain'}", "total_steps=1"]
    assert run_recipe(settings[0], [*settings[1], *plain, "prediction=epsilon"]) == 0
    start = f"init={tmp_path / 'plain/final'}"
    with pytest.raises(ConfigError, match="predicts epsilon, not prediction=sample"):
        recipe_of(settings, start, *plain).build()
    with pytest.raises(ConfigError, match="no checkpoint in"):
        export_run(tmp_path, tmp_path / "out")
