"""What adversarial recipes share: multi-scale discriminators (pix2pixHD, SPARNetHD), noise."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from dr2pipe.core.config import stable_seed
from dr2pipe.core.diffusers_types import ConfigMixin, ModelMixin, register_to_config
from dr2pipe.losses.adversarial import logistic_discriminator_loss, r1_penalty


class MultiScaleDiscriminator(ModelMixin, ConfigMixin):
    """``scales`` equal discriminators; each sees the picture at half the size of the one before.

    Args:
        width: channels of the first convolution; doubled by every halving up to eight times.
        halvings: stride-2 convolutions of each discriminator.
    """

    @register_to_config
    def __init__(self, scales: int = 3, width: int = 64, halvings: int = 4):
        super().__init__()
        self.discriminators = nn.ModuleList(
            PatchDiscriminator(width, halvings) for _ in range(scales)
        )

    def forward(self, x: torch.Tensor) -> tuple[list[torch.Tensor], list[list[torch.Tensor]]]:
        """(B,3,H,W) in [-1,1] to the scores (B,1,h,w) and the feature maps of every scale."""
        scores, features = [], []
        for i, discriminator in enumerate(self.discriminators):
            if i > 0:
                x = F.interpolate(x, scale_factor=0.5, mode="bicubic", align_corners=False)
            score, maps = discriminator(x)
            scores.append(score)
            features.append(maps)
        return scores, features


class PatchDiscriminator(nn.Module):
    """Scores overlapping patches; instance norm, leaky ReLU and spectral norm throughout."""

    def __init__(self, width: int, halvings: int):
        super().__init__()
        widths = [width, *(min(width << i, width * 8) for i in range(1, halvings + 1))]
        self.first = spectral_norm(nn.Conv2d(3, width, 3))
        self.down = nn.ModuleList(
            spectral_norm(nn.Conv2d(a, b, 3, stride=2, bias=False))
            for a, b in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.InstanceNorm2d(w, affine=True) for w in widths[1:])
        self.score = spectral_norm(nn.Conv2d(widths[-1], 1, 3))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        maps = [F.leaky_relu(self.first(_reflect(x)), 0.2)]
        for convolution, norm in zip(self.down, self.norms, strict=True):
            maps.append(F.leaky_relu(norm(convolution(_reflect(maps[-1]))), 0.2))
        return self.score(maps[-1]), maps


def _reflect(x: torch.Tensor) -> torch.Tensor:
    return F.pad(x, (1, 1, 1, 1), mode="reflect")


def discriminator_step(
    discriminator: nn.Module,
    fake: torch.Tensor,
    real: torch.Tensor,
    *,
    r1: float,
    r1_every_steps: int,
    step: int,
) -> tuple[str, torch.Tensor, dict]:
    """What a recipe yields for ``discriminator``: logistic loss, with the lazy R1 penalty.

    Both (B,3,H,W) in [-1,1]; Karras et al. 2020, §3.1: a penalty in every ``r1_every_steps``-th
    step alone weighs that many times as much.
    """
    discriminator.requires_grad_(True)
    penalised = r1 > 0 and step % r1_every_steps == 0
    real = real.detach().requires_grad_(penalised)
    real_scores = discriminator(real)
    loss = logistic_discriminator_loss(real_scores, discriminator(fake.detach()))
    scalars = {"discriminator/gan": loss.detach()}
    if penalised:
        penalty = r1_penalty(real_scores, real)
        loss = loss + r1 / 2 * r1_every_steps * penalty
        scalars["discriminator/r1"] = penalty.detach()
    return "discriminator", loss, scalars


def generator_of(seeds: Sequence[int], purpose: str) -> torch.Generator:
    """A generator on the CPU for one use of the showings that ``seeds`` stand for."""
    return torch.Generator().manual_seed(stable_seed(purpose, *seeds))


def mean_over_processes(value: torch.Tensor) -> torch.Tensor:
    """The mean of ``value`` over all processes of a run; the same on each."""
    if not (dist.is_available() and dist.is_initialized()):
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def draw_noises(
    seeds: Sequence[int], sizes: Sequence[int], device: torch.device
) -> list[torch.Tensor]:
    """The noise of a StyleGAN2 for a batch, (B,1,R,R) for each of ``sizes``.

    A picture's noise depends on its own seed, not on the batch or process it is in.
    """
    generators = [generator_of([seed], "noise") for seed in seeds]
    return [
        torch.stack([torch.randn(1, r, r, generator=g) for g in generators]).to(device)
        for r in sizes
    ]
