import pytest
import torch
from torch.nn import functional as F

from dr2pipe.core.errors import ConfigError
from dr2pipe.diffusion.dr2 import remove_degradation
from dr2pipe.diffusion.low_pass import BicubicLowPass
from dr2pipe.diffusion.networks import load_ddpm
from dr2pipe.diffusion.patched_unet import PatchedUNet
from dr2pipe.diffusion.pipeline import DR2Pipeline
from dr2pipe.diffusion.timesteps import build_scheduler


def make_patched(**settings):
    torch.manual_seed(0)
    sizes = {"channels": (8, 16), "attention_sizes": (4,), "attention_head_channels": 8}
    return PatchedUNet(**{"sample_size": 16, "norm_groups": 4} | sizes | settings).eval()


def noised(scheduler, timesteps):
    generator = torch.Generator().manual_seed(1)
    clean = torch.rand(len(timesteps), 3, 16, 16, generator=generator) * 2 - 1
    noise = torch.randn(clean.shape, generator=generator)
    return scheduler.add_noise(clean, noise, timesteps), clean, noise


def what_the_inner_network_gives(network, output):
    """Make the UNet inside return ``output``; returns what it gets."""
    seen = []

    def answer(_, arguments, result):
        seen.append(arguments[0])
        result.sample = output(arguments[0])
        return result

    network.unet.register_forward_hook(answer)
    return seen


@torch.no_grad()
def test_patches_are_the_pixels():
    network = make_patched(data_deviation=0.0)
    seen = what_the_inner_network_gives(network, lambda patches: patches)
    x, _, _ = noised(build_scheduler("ddim"), torch.tensor([100, 400]))
    assert torch.equal(network(x, 100).sample, x)
    assert seen[0].shape == (2, 12, 8, 8)
    assert sorted(seen[0][0, :, 0, 0].tolist()) == sorted(x[0, :, :2, :2].flatten().tolist())


@torch.no_grad()
def test_with_deviation_1_the_inner_network_predicts_minus_v():
    network, scheduler = make_patched(data_deviation=1.0), build_scheduler("ddim")
    timesteps = torch.tensor([3, 100, 400])
    x, clean, noise = noised(scheduler, timesteps)
    v = scheduler.get_velocity(clean, noise, timesteps)
    what_the_inner_network_gives(network, lambda _: F.pixel_unshuffle(-v, 2))
    assert (network(x, timesteps).sample - clean).abs().max() < 1e-5


@torch.no_grad()
def test_the_skip_is_the_best_linear_estimate():
    """For data of the deviation that it is told, no other share of x_t comes closer to x0."""
    network, scheduler = make_patched(data_deviation=0.5), build_scheduler("ddim")
    seen = what_the_inner_network_gives(network, torch.zeros_like)
    generator = torch.Generator().manual_seed(2)
    clean = 0.5 * torch.randn(64, 3, 16, 16, generator=generator)
    noise = torch.randn(clean.shape, generator=generator)
    for timestep in (20, 150, 450):
        x = scheduler.add_noise(clean, noise, torch.tensor([timestep]))
        estimate = network(x, timestep).sample
        best = (x * clean).sum() / x.square().sum()
        assert (estimate / x - best).abs().max() < 0.02
        assert abs(seen[-1].std() - 1) < 0.02  # the network gets unit variance
        error = (clean - estimate).std()
        # What is left to correct has unit variance too.
        what_one_gives = make_patched(data_deviation=0.5)
        what_the_inner_network_gives(what_one_gives, torch.ones_like)
        assert abs((what_one_gives(x, timestep).sample - estimate).mean() / error - 1) < 0.02


@torch.no_grad()
def test_one_timestep_or_one_for_each_picture():
    network = make_patched()
    x, _, _ = noised(build_scheduler("ddim"), torch.tensor([100, 100]))
    one = network(x, 100).sample
    for timestep in (torch.tensor(100), torch.tensor([100, 100])):
        assert torch.equal(network(x, timestep).sample, one)
    assert torch.equal(network(x, 100, return_dict=False)[0], one)
    assert network(x.half().float(), 100).sample.dtype == torch.float32


@torch.no_grad()
def test_half_precision_does_not_round_the_chain():
    network = make_patched()
    what_the_inner_network_gives(network, torch.ones_like)
    x = torch.zeros(1, 3, 16, 16)
    expected = network(x, 5).sample  # 0.03; alpha_bar there rounds to 1 in bfloat16
    given = network.to(torch.bfloat16)(x.bfloat16(), 5).sample
    assert given.dtype == torch.bfloat16
    assert expected.min() > 0.02
    assert ((given.float() - expected).abs() / expected).max() < 0.01


@torch.no_grad()
def test_a_folder_alone_and_a_pipeline_rebuild_it(tmp_path):
    network, scheduler = make_patched(), build_scheduler("ddim", prediction_type="sample")
    x, _, _ = noised(scheduler, torch.tensor([100]))
    DR2Pipeline(network, scheduler, max_timestep=520).save_pretrained(tmp_path / "model")
    network.save_pretrained(tmp_path / "alone")
    for folder in ("model", "alone"):
        loaded = load_ddpm(tmp_path / folder)
        assert isinstance(loaded.unet, PatchedUNet)
        assert (loaded.unet(x, 100).sample - network(x, 100).sample).abs().max() < 1e-5
    pipeline = DR2Pipeline.from_pretrained(tmp_path / "model")
    assert (pipeline.size, pipeline.max_timestep) == (16, 520)
    settings = {"tau": 5, "omega": 8, "num_evaluations": 2, "output_type": "pt"}
    coarse = pipeline(x.clamp(-1, 1), generator=torch.Generator().manual_seed(0), **settings).images
    expected = remove_degradation(
        network, scheduler, BicubicLowPass(4), x.clamp(-1, 1), omega=8, tau=5, num_evaluations=2,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert (coarse - expected).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sample_size": 18}, "sample_size=18 is no multiple of 4"),
        ({"attention_sizes": (16,)}, r"attention_sizes \[16\] are none of the feature sizes"),
        ({"in_channels": 6}, "pictures have 3 channels"),
    ],
)
def test_sizes_that_do_not_fit(settings, message):
    with pytest.raises(ConfigError, match=message):
        make_patched(**settings)
