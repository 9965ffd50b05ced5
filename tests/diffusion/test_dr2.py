import ast
import inspect

import numpy as np
import parity
import pytest
import torch
from conftest import make_unet
from diffusers.schedulers import scheduling_ddpm

from dr2pipe.convert import convert_checkpoint
from dr2pipe.diffusion import noise
from dr2pipe.diffusion.dr2 import remove_degradation
from dr2pipe.diffusion.low_pass import build_low_pass
from dr2pipe.diffusion.timesteps import build_scheduler

RUNS = {"N1_tau10_omega15", "N2_tau10_omega20", "N4_tau22_omega42", "N16_tau0_omega3"}


def degraded(batch=2, size=16):
    generator = torch.Generator().manual_seed(7)
    return torch.rand(batch, 3, size, size, generator=generator) * 2 - 1


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("run", sorted(RUNS))
def test_equals_the_reference_sampler_with_its_noises(run, monkeypatch):
    record, arrays = parity.load("dr2_sampler")
    assert set(record["runs"]) == RUNS
    settings = record["runs"][run]
    rng = np.random.default_rng(1234)
    draws = []

    def recorded_noise(shape, *_, **__):
        draws.append(torch.from_numpy(rng.standard_normal(tuple(shape)).astype(np.float32)))
        return draws[-1]

    monkeypatch.setattr(noise, "randn_tensor", recorded_noise)
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", recorded_noise)
    weights = parity.make_weights(record["keys"])
    unet = convert_checkpoint(weights, "guided_diffusion_unet", **record["constructor"])
    timesteps = []
    out = remove_degradation(
        unet,
        build_scheduler("ddpm"),
        build_low_pass("bicubic", factor=settings["N"]),
        parity.tensor(arrays["ref"]),
        omega=settings["omega"],
        tau=settings["tau"],
        callback=lambda step, t, estimate: timesteps.append(t),
    )
    assert timesteps == settings["model_timesteps"]
    # The reference also draws the posterior noise of the last step and throws it away.
    assert len(draws) == settings["n_draws"] - 1
    assert (out - parity.tensor(arrays[f"{run}_out"])).abs().max() <= 5e-5


def test_the_page_is_one_page():
    source = inspect.getsource(remove_degradation)
    function = ast.parse(source).body[0]
    body = source.splitlines()[function.body[1].lineno - 1 :]  # after the docstring
    assert ast.get_docstring(function)
    assert len([line for line in body if not line.strip().startswith("#")]) <= 25


class Predicting:
    """An ε-network that says the same as x0 or as v (Salimans and Ho 2022, §4)."""

    def __init__(self, unet, prediction_type):
        self.unet, self.prediction_type = unet, prediction_type
        self.config, self.dtype = unet.config, unet.dtype
        self.alpha_bar = build_scheduler("ddpm").alphas_cumprod

    def __call__(self, x, t):
        output = self.unet(x, t)
        alpha, sigma = self.alpha_bar[t].sqrt(), (1 - self.alpha_bar[t]).sqrt()
        epsilon, variance = output.sample[:, :3], output.sample[:, 3:]
        x0 = (x - sigma * epsilon) / alpha
        said = x0 if self.prediction_type == "sample" else alpha * epsilon - sigma * x0
        output.sample = torch.cat([said, variance], dim=1)
        return output


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpmsolver++"])
def test_networks_may_predict_x0_or_v(unet6, name, prediction_type):
    def run(network, prediction_type):
        return remove_degradation(
            network, build_scheduler(name, prediction_type=prediction_type),
            build_low_pass("bicubic", factor=4), degraded(),
            omega=40, tau=20, num_evaluations=5, generator=generators(1, 2),
        )  # fmt: skip

    by_epsilon = run(unet6, "epsilon")
    again = run(Predicting(unet6, prediction_type), prediction_type)
    assert (by_epsilon - again).abs().max() < 1e-4
    # The prediction is not taken for ε.
    assert (by_epsilon - run(Predicting(unet6, prediction_type), "epsilon")).abs().max() > 0.1


@pytest.mark.parametrize("evaluations", [None, 3])
@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpmsolver++"])
def test_batch_equals_singles(unet, name, evaluations):
    settings = {"omega": 20, "tau": 10, "num_evaluations": evaluations}
    scheduler = build_scheduler(name, variance="fixed_small")
    low_pass = build_low_pass("bicubic", factor=2)
    y = degraded(4)
    batch = remove_degradation(
        unet, scheduler, low_pass, y, generator=generators(1, 2, 3, 4), **settings
    )
    for i in range(4):
        single = remove_degradation(
            unet, scheduler, low_pass, y[i : i + 1], generator=generators(i + 1), **settings
        )
        assert (batch[i] - single[0]).abs().max() < 1e-5


@pytest.mark.parametrize("variance", ["learned_range", "fixed_small", "fixed_large"])
def test_six_channels_work_with_every_variance(unet6, variance):
    out = remove_degradation(
        unet6, build_scheduler("ddpm", variance=variance), build_low_pass("none"), degraded(),
        omega=12, tau=10, generator=generators(1, 2),
    )  # fmt: skip
    assert out.shape == (2, 3, 16, 16)
    assert out.abs().max() <= 1


def test_learned_variance_needs_six_channels(unet):
    calls = []
    with pytest.raises(ValueError, match="3 output channels, not 6"):
        remove_degradation(
            unet, build_scheduler("ddpm"), build_low_pass("none"), degraded(),
            omega=12, tau=10, callback=lambda *a: calls.append(a),
        )  # fmt: skip
    assert not calls


def test_identity_filter_makes_all_steps_but_the_last_irrelevant(unet):
    """With N = 1 the guidance replaces x wholly: one call on the input noised to τ."""
    scheduler = build_scheduler("ddim")
    out = remove_degradation(
        unet, scheduler, build_low_pass("none"), degraded(1),
        omega=13, tau=10, generator=generators(5),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(5)
    noises = [torch.randn(1, 3, 16, 16, generator=generator) for _ in range(4)]
    keep = scheduler.alphas_cumprod[109]
    x = keep.sqrt() * degraded(1) + (1 - keep).sqrt() * noises[-1]
    with torch.no_grad():
        epsilon = unet(x, 109).sample
    expected = ((x - (1 - keep).sqrt() * epsilon) / keep.sqrt()).clamp(-1, 1)
    assert torch.allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("evaluations", [None, 3])
def test_ddim_equals_the_ddim_of_diffusers(unet, evaluations):
    """First-order DPM-Solver++ stands in for DDIM; where its grid is even, both agree."""
    y, low_pass = degraded(1), build_low_pass("bicubic", factor=2)
    omega, tau, num_steps = (59, 19, 100) if evaluations else (2, 0, 5)
    ours = remove_degradation(
        unet, build_scheduler("ddim"), low_pass, y, omega=omega, tau=tau, num_steps=num_steps,
        num_evaluations=evaluations, generator=generators(3),
    )  # fmt: skip
    # Both chains are the timesteps 599, 399, 199, a distance of 5 steps in all.
    ddim = build_scheduler("ddim")
    ddim.set_timesteps(5)
    noise = [torch.randn(1, 3, 16, 16, generator=g) for g in generators(3) for _ in range(3)]

    def diffuse(t):
        keep = ddim.alphas_cumprod[t]
        return keep.sqrt() * y + (1 - keep).sqrt() * noise.pop(0)

    with torch.no_grad():
        x = diffuse(599)
        for t, following in ((599, 399), (399, 199)):
            epsilon = unet(x, t).sample
            x = ddim.step(epsilon, t, x, use_clipped_model_output=True).prev_sample
            x = x - low_pass(x) + low_pass(diffuse(following))
        theirs = ddim.step(unet(x, 199).sample, 199, x).pred_original_sample
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_an_overflow_stays_visible(unet):
    class Overflowing:
        """The network, with one infinite value in its prediction for the second picture."""

        config, dtype, class_embedding = unet.config, unet.dtype, None

        def __call__(self, x, t):
            output = unet(x, t)
            output.sample[1, 0, 0, 0] = torch.inf
            return output

    out = remove_degradation(
        Overflowing(), build_scheduler("ddim"), build_low_pass("bicubic", factor=2), degraded(),
        omega=5, tau=2, generator=generators(1, 2),
    )  # fmt: skip
    assert out[0].isfinite().all()
    assert not out[1].isfinite().all()


def test_the_seed_decides_and_global_randomness_is_left_alone(unet):
    def run(seed):
        return remove_degradation(
            unet, build_scheduler("ddpm", variance="fixed_small"),
            build_low_pass("bicubic", factor=4), degraded(1),
            omega=20, tau=10, generator=generators(seed),
        )  # fmt: skip

    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = run(1)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, run(1))
    assert not torch.equal(first, run(2))


def test_low_frequencies_follow_the_input():
    """After the last guidance, the low frequencies of x are those of the noised input."""
    unet = make_unet(seed=3)
    low_pass = build_low_pass("bicubic", factor=4)
    bright = remove_degradation(
        unet, build_scheduler("ddim"), low_pass, torch.full((1, 3, 16, 16), 0.5),
        omega=5, tau=0, generator=generators(1),
    )  # fmt: skip
    dark = remove_degradation(
        unet, build_scheduler("ddim"), low_pass, torch.full((1, 3, 16, 16), -0.5),
        omega=5, tau=0, generator=generators(1),
    )  # fmt: skip
    assert (low_pass(bright) - low_pass(dark)).mean() > 0.8
