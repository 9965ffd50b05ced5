"""Losses of denoising diffusion models.

``alphas_cumprod`` is the schedule's ᾱ, (T,); timesteps are integer indices (B,) into it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


def p2_weights(alphas_cumprod: torch.Tensor, k: float, gamma: float) -> torch.Tensor:
    """1 / (k + SNR)^γ for every timestep (Choi et al., P2 weighting, CVPR 2022, eq. 8).

    γ = 0 gives equal weights (Ho et al. 2020, eq. 14).
    """
    return (k + alphas_cumprod / (1 - alphas_cumprod)) ** -gamma


def snr_weights(alphas_cumprod: torch.Tensor, limit: float, offset: float) -> torch.Tensor:
    """min(SNR, limit) + offset for every timestep: weights of the squared error of x0.

    The limit is γ of min-SNR (Hang et al., ICCV 2023, eq. 4). An offset of 1 without a limit
    weighs like an unweighted v (Salimans and Ho, ICLR 2022, §4), one of 1 / s² like EDM on data
    of deviation s (Karras et al., NeurIPS 2022, table 1).
    """
    return (alphas_cumprod / (1 - alphas_cumprod)).clamp(max=limit) + offset


@dataclass(frozen=True)
class Posterior:
    """q(x_{t-1} | x_t, x_0) for every timestep (Ho et al. 2020, eq. 6 and 7), float64 (T,).

    mean = ``coefficient_clean`` x_0 + ``coefficient_noisy`` x_t; the log variance of the first
    timestep, whose variance is 0, is replaced by that of the second.
    """

    coefficient_clean: torch.Tensor
    coefficient_noisy: torch.Tensor
    log_variance: torch.Tensor
    log_beta: torch.Tensor

    @classmethod
    def of(cls, alphas_cumprod: torch.Tensor) -> Posterior:
        """The posterior of a schedule ᾱ, (T,)."""
        alpha_bar = alphas_cumprod.double()
        before = torch.cat([torch.ones_like(alpha_bar[:1]), alpha_bar[:-1]])
        beta = 1 - alpha_bar / before
        variance = beta * (1 - before) / (1 - alpha_bar)
        variance = torch.cat([variance[1:2], variance[1:]])
        return cls(
            beta * before.sqrt() / (1 - alpha_bar),
            (1 - before) * (1 - beta).sqrt() / (1 - alpha_bar),
            variance.log(),
            beta.log(),
        )


def variational_bound(
    clean: torch.Tensor,
    noisy: torch.Tensor,
    timesteps: torch.Tensor,
    epsilon: torch.Tensor,
    variance: torch.Tensor,
    alphas_cumprod: torch.Tensor,
) -> torch.Tensor:
    """The term of the variational bound at ``timesteps``, (B,), in bits per dimension.

    Improved DDPM (Nichol and Dhariwal 2021, §3.1).

    Args:
        clean: x_0, (B,3,H,W) in [-1,1].
        noisy: x_t, (B,3,H,W).
        timesteps: (B,).
        epsilon: the predicted noise, (B,3,H,W); detach it, so that the bound trains the
            variance alone.
        variance: (B,3,H,W) around [-1,1], eq. 15: -1 is the posterior's log variance, 1 is β's.
        alphas_cumprod: (T,).
    """

    def at(table: torch.Tensor) -> torch.Tensor:
        return table.to(clean.device)[timesteps].to(clean.dtype)[:, None, None, None]

    posterior, alpha_bar = Posterior.of(alphas_cumprod), at(alphas_cumprod.double())
    true_mean = at(posterior.coefficient_clean) * clean + at(posterior.coefficient_noisy) * noisy
    estimate = (noisy - (1 - alpha_bar).sqrt() * epsilon) / alpha_bar.sqrt()
    mean = at(posterior.coefficient_clean) * estimate + at(posterior.coefficient_noisy) * noisy
    true_log_variance = at(posterior.log_variance)
    share = (variance + 1) / 2
    log_variance = share * at(posterior.log_beta) + (1 - share) * true_log_variance
    divergence = 0.5 * (
        log_variance
        - true_log_variance
        + (true_log_variance - log_variance).exp()
        + (true_mean - mean).square() * (-log_variance).exp()
        - 1
    )
    likelihood = _discrete_negative_log_likelihood(clean, mean, (0.5 * log_variance).exp())
    is_first = (timesteps == 0)[:, None, None, None]
    nats = torch.where(is_first, likelihood, divergence)
    return nats.mean(dim=(1, 2, 3)) / math.log(2)


def _discrete_negative_log_likelihood(
    clean: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor
) -> torch.Tensor:
    """-log P of 8-bit ``clean`` in [-1,1] under a Gaussian (Ho et al. 2020, eq. 13)."""
    half_level = 1 / 255
    upper = torch.special.ndtr((clean + half_level - mean) / deviation)
    lower = torch.special.ndtr((clean - half_level - mean) / deviation)
    upper = torch.where(clean > 0.999, 1.0, upper)
    lower = torch.where(clean < -0.999, 0.0, lower)
    return -(upper - lower).clamp(min=1e-12).log()
