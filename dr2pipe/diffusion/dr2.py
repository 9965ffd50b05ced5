"""DR2, the degradation remover (Wang et al., CVPR 2023, algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dr2pipe.core.diffusers_types import DDPMScheduler, SchedulerMixin, UNet2DModel, randn_tensor
from dr2pipe.diffusion.low_pass import LowPass
from dr2pipe.diffusion.timesteps import start_chain

Callback = Callable[[int, int, torch.Tensor], None]


@torch.no_grad()
def remove_degradation(
    unet: UNet2DModel,
    scheduler: SchedulerMixin,
    low_pass: LowPass,
    degraded: torch.Tensor,
    *,
    omega: int,
    tau: int,
    num_steps: int = 100,
    num_evaluations: int | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
    callback: Callback | None = None,
) -> torch.Tensor:
    """The coarse face x̂0 at τ, (B,3,H,W) float32 in [-1,1], of ``degraded``, the same shape.

    ``unet`` predicts ε, or ε and variance (6 channels). The chain of ``num_steps`` is entered
    at index ``omega`` and left at ``tau`` <= omega; ``num_evaluations`` spreads that many
    network calls over it. One generator per picture makes a result independent of its batch.
    ``callback`` gets (calls so far, timestep, x̂0). Raises ValueError for an invalid chain.
    """
    scheduler, timesteps = start_chain(
        scheduler, omega=omega, tau=tau, num_steps=num_steps, num_evaluations=num_evaluations
    )
    variance_is_learned = check_network(unet, scheduler, first_timestep=timesteps[0])
    x = _diffuse(scheduler, degraded, timesteps[0], generator)
    for step, t in enumerate(timesteps):
        output = unet(x.to(unet.dtype), t).sample.float()
        keep = scheduler.alphas_cumprod[t].to(x.device)
        estimate = _clamped((x - (1 - keep).sqrt() * output[:, :3]) / keep.sqrt())
        if callback is not None:
            callback(step + 1, t, estimate)
        if t == timesteps[-1]:
            return estimate
        # The ε that belongs to the clamped estimate: DPM-Solver++ does not clamp by itself.
        epsilon = (x - keep.sqrt() * estimate) / (1 - keep).sqrt()
        prediction = torch.cat([epsilon, output[:, 3:]], dim=1) if variance_is_learned else epsilon
        x = scheduler.step(prediction, t, x, generator=generator).prev_sample
        y = _diffuse(scheduler, degraded, timesteps[step + 1], generator)
        x = x - low_pass(x) + low_pass(y)


def _diffuse(scheduler, clean: torch.Tensor, t: int, generator) -> torch.Tensor:
    """Sample q(x_t | x_0 = clean) (Ho et al. 2020, eq. 4)."""
    keep = scheduler.alphas_cumprod[t].to(clean.device)
    noise = randn_tensor(clean.shape, generator, clean.device, clean.dtype)
    return keep.sqrt() * clean + (1 - keep).sqrt() * noise


def _clamped(estimate: torch.Tensor) -> torch.Tensor:
    """``estimate`` in [-1,1]; an overflow stays visible as NaN instead of becoming ±1."""
    return torch.where(estimate.isfinite(), estimate.clamp(-1, 1), torch.nan)


def check_network(unet: UNet2DModel, scheduler: SchedulerMixin, *, first_timestep: int) -> bool:
    """Whether the scheduler samples with a variance that the network predicts.

    Raises:
        ValueError: the network is no unconditional RGB DDPM, lacks the variance, or was not
            trained at ``first_timestep``.
    """
    config = unet.config
    if config.in_channels != 3 or config.out_channels not in (3, 6):
        raise ValueError(
            f"the network has {config.in_channels} input and {config.out_channels} output "
            f"channels; DR2 needs 3, and 3 or 6"
        )
    if unet.class_embedding is not None:
        raise ValueError("the network is class-conditional; DR2 needs an unconditional one")
    # Our recipe notes there how far a network was trained; UNet2DModel has no use for it.
    if config.num_train_timesteps is not None and first_timestep >= config.num_train_timesteps:
        raise ValueError(
            f"omega is timestep {first_timestep}, and the network was trained on timesteps "
            f"below {config.num_train_timesteps}; choose a smaller omega"
        )
    if not isinstance(scheduler, DDPMScheduler):
        return False
    if scheduler.config.variance_type not in ("learned", "learned_range"):
        return False
    if config.out_channels != 6:
        raise ValueError(
            "the scheduler samples with a learned variance, but the network has 3 output "
            "channels, not 6; choose the variance fixed_small or fixed_large"
        )
    return True
