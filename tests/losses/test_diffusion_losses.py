import math

import numpy as np
import parity
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from dr2pipe.losses.diffusion import Posterior, p2_weights, variational_bound


def test_posterior_equals_the_reference_tables():
    _, sampler = parity.load("dr2_sampler")
    keep = parity.tensor(sampler["f64_alphas_cumprod"])
    posterior = Posterior.of(keep)
    expected = parity.tensor(sampler["f64_posterior_log_variance_clipped"])
    assert torch.allclose(posterior.log_variance, expected, atol=1e-9)
    assert torch.allclose(posterior.log_beta.exp(), parity.tensor(sampler["f64_betas"]), atol=1e-12)
    _, ilvr = parity.load("guided_unet_ilvr")
    for ours, theirs in (("clean", "coef1"), ("noisy", "coef2")):
        expected = parity.tensor(ilvr[f"f64_posterior_mean_{theirs}"])
        assert torch.allclose(getattr(posterior, f"coefficient_{ours}"), expected, atol=1e-9)


def test_p2_weights():
    keep = torch.tensor([0.999, 0.5, 0.01], dtype=torch.float64)
    assert torch.equal(p2_weights(keep, 1.0, 0.0), torch.ones(3, dtype=torch.float64))
    # With k = 1 the denominator is 1 / (1 - ᾱ).
    assert torch.allclose(p2_weights(keep, 1.0, 1.0), 1 - keep)
    assert torch.allclose(p2_weights(keep, 1.0, 0.5), (1 - keep).sqrt())


KEEP = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)


def draw(t, seed=0):
    generator = torch.Generator().manual_seed(seed)
    clean = torch.rand(2, 3, 4, 4, generator=generator, dtype=torch.float64) * 1.8 - 0.9
    noise = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64)
    timesteps = torch.full((2,), t)
    noisy = KEEP[t].sqrt() * clean + (1 - KEEP[t]).sqrt() * noise
    return clean, noise, noisy, timesteps


@pytest.mark.parametrize("t", [1, 40, 700, 999])
def test_bound_is_the_divergence_of_two_gaussians(t):
    clean, noise, noisy, timesteps = draw(t)
    epsilon, variance = noise * 0.7, torch.full_like(clean, 0.3)
    posterior = Posterior.of(KEEP)
    a, b = posterior.coefficient_clean[t], posterior.coefficient_noisy[t]
    estimate = (noisy - (1 - KEEP[t]).sqrt() * epsilon) / KEEP[t].sqrt()
    log_variance = 0.65 * posterior.log_beta[t] + 0.35 * posterior.log_variance[t]
    true = Normal(a * clean + b * noisy, (0.5 * posterior.log_variance[t]).exp())
    model = Normal(a * estimate + b * noisy, (0.5 * log_variance).exp())
    expected = kl_divergence(true, model).mean(dim=(1, 2, 3)) / math.log(2)
    bound = variational_bound(clean, noisy, timesteps, epsilon, variance, KEEP)
    assert torch.allclose(bound, expected, rtol=1e-6)


def test_the_true_noise_and_variance_have_no_divergence():
    clean, noise, noisy, timesteps = draw(300)
    bound = variational_bound(clean, noisy, timesteps, noise, torch.full_like(clean, -1), KEEP)
    assert bound.abs().max() < 1e-6


def test_the_first_step_is_the_likelihood_of_8_bit_values():
    clean, noise, noisy, timesteps = draw(0)
    clean = ((clean + 1) * 127.5).round() / 127.5 - 1
    bound = variational_bound(clean, noisy, timesteps, noise, torch.zeros_like(clean), KEEP)
    posterior = Posterior.of(KEEP)
    mean = posterior.coefficient_clean[0] * (
        (noisy - (1 - KEEP[0]).sqrt() * noise) / KEEP[0].sqrt()
    )
    mean = mean + posterior.coefficient_noisy[0] * noisy
    deviation = math.exp(0.25 * (posterior.log_beta[0] + posterior.log_variance[0]))
    levels = np.linspace(-1, 1, 256)[:, None]
    edges = np.concatenate([[[-np.inf]], (levels[1:] + levels[:-1]) / 2, [[np.inf]]])
    cdf = Normal(mean.flatten(), deviation).cdf(torch.from_numpy(edges)).numpy()
    share = np.diff(cdf, axis=0)
    assert np.allclose(share.sum(0), 1)
    place = np.abs(levels - clean.flatten().numpy()).argmin(0)
    bits = -np.log2(share[place, np.arange(len(place))]).reshape(2, -1).mean(1)
    assert np.allclose(bound.numpy(), bits, rtol=1e-4)


def test_a_detached_noise_leaves_only_the_variance_to_train():
    clean, noise, noisy, timesteps = draw(500)
    epsilon = (noise * 0.5).requires_grad_()
    variance = torch.zeros_like(clean).requires_grad_()
    variational_bound(clean, noisy, timesteps, epsilon.detach(), variance, KEEP).sum().backward()
    assert epsilon.grad is None
    assert variance.grad.abs().sum() > 0
