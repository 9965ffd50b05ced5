import pytest
import torch
from conftest import make_patched

from dr2pipe.core.errors import ConfigError
from dr2pipe.diffusion.dr2 import remove_degradation
from dr2pipe.diffusion.low_pass import BicubicLowPass
from dr2pipe.diffusion.networks import load_ddpm
from dr2pipe.diffusion.patched_unet import PatchedUNet
from dr2pipe.diffusion.pipeline import DR2Pipeline
from dr2pipe.diffusion.timesteps import build_scheduler


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
def test_patches_are_the_pixels_at_unit_variance():
    network, scheduler = make_patched(skip_deviation=0.0), build_scheduler("ddim")
    seen = what_the_inner_network_gives(network, lambda patches: patches)
    x, _, _ = noised(scheduler, torch.tensor([400, 400]))
    alpha_bar = scheduler.alphas_cumprod[400]
    unit = x / (0.25 * alpha_bar + 1 - alpha_bar).sqrt()
    assert torch.allclose(network(x, 400).sample, 0.5 * unit, atol=1e-5)
    assert seen[0].shape == (2, 12, 8, 8)
    corner = unit[0, :, :2, :2].flatten().sort().values
    assert torch.allclose(seen[0][0, :, 0, 0].sort().values, corner, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("timestep", [20, 150, 450])
def test_the_skip_is_the_best_estimate_from_one_pixel(timestep):
    """For data of the deviation that it is told; and the correction of faces is of size 1."""
    scheduler, generator = build_scheduler("ddim"), torch.Generator().manual_seed(2)
    network = make_patched(skip_deviation=0.1)
    what_the_inner_network_gives(network, torch.zeros_like)
    unit, noise = (torch.randn(64, 3, 16, 16, generator=generator) for _ in range(2))
    x = scheduler.add_noise(0.1 * unit, noise, torch.tensor([timestep]))
    best = (x * 0.1 * unit).sum() / x.square().sum()
    share = network(x, timestep).sample / x
    assert (share - best).abs().max() < 0.02
    x = scheduler.add_noise(0.5 * unit, noise, torch.tensor([timestep]))
    left = (0.5 * unit - network(x, timestep).sample).std()
    other = make_patched(skip_deviation=0.1)
    what_the_inner_network_gives(other, torch.ones_like)
    scale = (other(x, timestep).sample - network(x, timestep).sample).mean()
    assert abs(scale / left - 1) < 0.02


@torch.no_grad()
def test_little_noise_passes_by_the_network():
    network, scheduler = make_patched(skip_deviation=0.1), build_scheduler("ddim")
    x, clean, _ = noised(scheduler, torch.tensor([0, 0]))
    assert (network(x, 0).sample - clean).abs().max() < 0.1  # untrained


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
    expected = network(x, 5).sample  # alpha_bar there rounds to 1 in bfloat16
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
        ({"in_channels": 4}, "in_channels=4 must be 3 or 6"),
    ],
)
def test_sizes_that_do_not_fit(settings, message):
    with pytest.raises(ConfigError, match=message):
        make_patched(**settings)
