"""What adversarial recipes share: multi-scale discriminators, and a step of a discriminator."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from dr2pipe.core.diffusers_types import ConfigMixin, ModelMixin, register_to_config
from dr2pipe.losses.adversarial import logistic_discriminator_loss, r1_penalty
from dr2pipe.training.recipe import Loss


class MultiScaleDiscriminator(ModelMixin, ConfigMixin):
    """``scales`` equal discriminators; each sees the picture at half the size of the one before.

    Wang et al., "pix2pixHD", CVPR 2018, §3.2; SPARNetHD (Chen et al. 2020) trains with it.

    Args:
        scales: number of discriminators.
        width: channels of the first convolution; doubled by every halving up to eight times.
        halvings: stride-2 convolutions of each discriminator.
    """

    @register_to_config
    def __init__(self, scales: int = 3, width: int = 64, halvings: int = 4):
        super().__init__()
        self.discriminators = nn.ModuleList(
            PatchDiscriminator(width, halvings) for _ in range(scales)
        )

    @property
    def least_side_px(self) -> int:
        """The smallest side of a picture that every scale can score."""
        side: int = 3 << (self.config.scales - 1 + self.config.halvings)
        return side

    def forward(self, x: torch.Tensor) -> tuple[list[torch.Tensor], list[list[torch.Tensor]]]:
        """(B,3,H,W) RGB in [-1,1] to the scores (B,1,h,w) and the feature maps of every scale."""
        scores: list[torch.Tensor] = []
        features: list[list[torch.Tensor]] = []
        for i, discriminator in enumerate(self.discriminators):
            if i > 0:
                x = F.interpolate(  # (B,3,H/2,W/2)
                    x, scale_factor=0.5, mode="bicubic", align_corners=False
                )
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
        """(B,3,H,W) RGB in [-1,1] to scores (B,1,h,w) and the maps of every layer before them."""
        maps = [F.leaky_relu(self.first(_reflect(x)), 0.2)]  # (B,width,H,W)
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
    name: str = "discriminator",
) -> Loss:
    """What a recipe yields for a discriminator: logistic loss, with the lazy R1 penalty.

    Karras et al. 2020, §3.1: the penalty is computed in every ``r1_every_steps``-th step only,
    and weighs that many times as much.

    Args:
        discriminator: (B,3,H,W) to scores (B,1); prepared or bare.
        fake: (B,3,H,W) RGB in [-1,1], of the generator.
        real: (B,3,H,W) RGB in [-1,1].
        r1: weight of the penalty; 0 switches it off.
        r1_every_steps: how rarely the penalty is computed.
        step: the number of steps done.
        name: of the discriminator among the networks.
    """
    discriminator.requires_grad_(True)
    penalised = r1 > 0 and step % r1_every_steps == 0
    real = real.detach().requires_grad_(penalised)
    real_scores = discriminator(real)
    loss = logistic_discriminator_loss(real_scores, discriminator(fake.detach()))
    scalars = {f"{name}/gan": loss.detach()}
    if penalised:
        penalty = r1_penalty(real_scores, real)
        loss = loss + r1 / 2 * r1_every_steps * penalty
        scalars[f"{name}/r1"] = penalty.detach()
    return name, loss, scalars
