"""DR2, the degradation remover (Wang et al., CVPR 2023, algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dr2pipe.core.diffusers_types import DDPMScheduler, ModelMixin, SchedulerMixin
from dr2pipe.core.errors import ConfigError
from dr2pipe.diffusion.low_pass import LowPass
from dr2pipe.diffusion.noise import Generators, draw_like, noise_inside
from dr2pipe.diffusion.timesteps import start_chain

Callback = Callable[[int, int, torch.Tensor], None]


@torch.no_grad()
def remove_degradation(
    unet: ModelMixin,
    scheduler: SchedulerMixin,
    low_pass: LowPass,
    degraded: torch.Tensor,
    *,
    omega: int,
    tau: int,
    num_steps: int = 100,
    num_evaluations: int | None = None,
    generator: Generators = None,
    callback: Callback | None = None,
) -> torch.Tensor:
    """Return the coarse face, which is the estimate of x0 at step τ.

    Args:
        unet: an unconditional face DDPM, see :func:`check_network`. What it predicts (ε, x0 or
            v) is the scheduler's ``prediction_type``; a variance may follow (6 channels).
        scheduler: DDPM, DDIM or DPM-Solver++ of diffusers. It is not changed.
        low_pass: the filter φ, from (B,3,H,W) to the same shape.
        degraded: (B,3,H,W) float32 RGB in [-1,1].
        omega: index at which the chain of ``num_steps`` starts.
        tau: index at which it ends, at most ``omega``.
        num_steps: length of the respaced chain.
        num_evaluations: number of network calls, spread over [τ, ω]; None for all steps.
        generator: one for the batch, or one per picture, or Philox: with these two, results do not
            depend on the batch. Antithetic of them is for the same batch twice.
        callback: called after each network call with (calls so far, timestep, estimate of x0).

    Returns:
        (B,3,H,W) float32 in [-1,1]; NaN where the network overflowed.

    Raises:
        ConfigError: an invalid chain, or a network or scheduler that cannot be used.
    """
    prediction_type = scheduler.config.prediction_type
    # The copy steps with the estimate of x0. DDIM runs as first-order DPM-Solver++.
    scheduler, timesteps = start_chain(
        scheduler, omega=omega, tau=tau, num_steps=num_steps, num_evaluations=num_evaluations
    )
    check_network(unet, scheduler)
    channels = 6 if has_learned_variance(scheduler) else 3
    alpha_bar = scheduler.alphas_cumprod  # on the host: numbers of it are not waited for
    x = diffuse(degraded, alpha_bar[timesteps[0]], generator)
    for step, (t, t_next) in enumerate(zip(timesteps, [*timesteps[1:], None], strict=True), 1):
        timestep = torch.full(
            (), t, device=x.device
        )  # a number would be copied there, and waited for
        output = unet(x.to(unet.dtype), timestep).sample.float()
        x0 = clamp_x0(estimate_x0(x, output[:, :3], alpha_bar[t], prediction_type))
        if callback is not None:
            callback(step, t, x0)
        if t_next is None:
            break
        prediction = torch.cat([x0, output[:, 3:channels]], dim=1)  # with the variance, if learned
        with noise_inside(generator) as own:
            x = scheduler.step(prediction, t, x, generator=own).prev_sample
        y = diffuse(degraded, alpha_bar[t_next], generator)
        x = x - low_pass(x) + low_pass(y)
    return x0


def estimate_x0(
    x: torch.Tensor, output: torch.Tensor, alpha_bar: torch.Tensor, prediction_type: str
) -> torch.Tensor:
    """Return the estimate of x0 that a network's output stands for, not clamped.

    ε by Ho et al. 2020, eq. 4; v by Salimans and Ho 2022, appendix D.

    Args:
        x: (B,3,H,W), the noisy picture x_t.
        output: (B,3,H,W), what the network predicted from it.
        alpha_bar: ᾱ at t, a scalar or a shape that broadcasts to ``x``.
        prediction_type: ``epsilon``, ``sample`` or ``v_prediction``, as diffusers names them.
    """
    if prediction_type == "sample":
        return output
    if prediction_type == "v_prediction":
        return alpha_bar.sqrt() * x - (1 - alpha_bar).sqrt() * output
    if prediction_type == "epsilon":
        return (x - (1 - alpha_bar).sqrt() * output) / alpha_bar.sqrt()
    raise ConfigError(f"prediction_type '{prediction_type}' cannot be used")


def check_network(unet: ModelMixin, scheduler: SchedulerMixin) -> None:
    """Raise ConfigError unless DR2 can use the network with the scheduler.

    It needs ``config`` with ``in_channels``, ``out_channels`` and ``sample_size``, and to return
    an object with ``sample``, as ``UNet2DModel`` does. It must be unconditional RGB, and predict
    the variance where the scheduler samples with a learned one.
    """
    config = unet.config
    if config.in_channels != 3 or config.out_channels not in (3, 6):
        raise ConfigError(
            f"the network has {config.in_channels} input and {config.out_channels} output "
            f"channels; DR2 needs 3, and 3 or 6"
        )
    if getattr(unet, "class_embedding", None) is not None:
        raise ConfigError("the network is class-conditional; DR2 needs an unconditional one")
    if has_learned_variance(scheduler) and config.out_channels != 6:
        raise ConfigError(
            "the scheduler samples with a learned variance, but the network has 3 output "
            "channels, not 6; choose the variance fixed_small or fixed_large"
        )


def has_learned_variance(scheduler: SchedulerMixin) -> bool:
    """Whether the scheduler samples with a variance that the network predicts."""
    learned = ("learned", "learned_range")
    return isinstance(scheduler, DDPMScheduler) and scheduler.config.variance_type in learned


def diffuse(clean: torch.Tensor, alpha_bar: torch.Tensor, generator: Generators) -> torch.Tensor:
    """Draw x_t (B,3,H,W) from q(x_t | x_0 = clean) (Ho et al. 2020, eq. 4)."""
    noise = draw_like(clean, generator)
    return alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * noise


def clamp_x0(x0: torch.Tensor) -> torch.Tensor:
    """Clamp x0 to [-1,1]. An overflow becomes NaN and stays visible, instead of becoming ±1."""
    return torch.where(x0.isfinite(), x0.clamp(-1, 1), torch.nan)
