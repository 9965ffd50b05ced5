"""Recipe: a StyleGAN2 of faces, the prior of the GAN-prior family.

Karras et al. 2020 (§3.1 lazy regularisation, §3.2 path lengths); style mixing: Karras et al.
2019, §3.1; adaptive augmentation: Karras et al. 2020b.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dr2pipe.core import files
from dr2pipe.core.diffusers_types import ConfigMixin, ModelMixin, register_to_config
from dr2pipe.core.errors import ConfigError
from dr2pipe.core.processes import process_state
from dr2pipe.losses.adversarial import (
    logistic_discriminator_loss,
    logistic_generator_loss,
    path_length_penalty,
    path_lengths,
    r1_penalty,
)
from dr2pipe.stylegan2 import StyleGAN2Discriminator, StyleGAN2Generator
from dr2pipe.training.augment import augment, updated_probability
from dr2pipe.training.gan import draw_noises, generator_of, mean_over_processes
from dr2pipe.training.recipe import TrainConfig, Trained

_MEAN_LENGTH_DECAY = 0.01


@dataclass
class StyleGAN2TrainConfig(TrainConfig):
    generator: dict[str, Any] = field(default_factory=dict)  # without size, which data.size tells
    discriminator: dict[str, Any] = field(default_factory=dict)
    learning_rate: float = 2e-3
    r1: float = 10.0
    r1_every_steps: int = 16
    path_length: float = 2.0
    path_length_every_steps: int = 4
    mixing_probability: float = 0.9
    augment_target: float | None = 0.6  # wanted E[sign D(real)]; null: no augmentation
    augment_pictures: int = 500_000  # p goes from 0 to 1 in no fewer


class RunningStatistics(ModelMixin, ConfigMixin):
    """What the losses remember from step to step; saved with the networks."""

    @register_to_config
    def __init__(self):
        super().__init__()
        self.register_buffer("mean_path_length", torch.zeros(()))
        self.register_buffer("augment_probability", torch.zeros(()))


class StyleGAN2Recipe:
    """Generator and discriminator from a folder of faces."""

    def __init__(self, config: StyleGAN2TrainConfig):
        for name in ("r1_every_steps", "path_length_every_steps", "augment_pictures"):
            if getattr(config, name) < 1:
                raise ConfigError(f"{name}={getattr(config, name)} must be at least 1")
        self.config = config

    def build(self) -> dict[str, Trained]:
        config = self.config
        torch.manual_seed(config.seed)
        generator = StyleGAN2Generator(size=config.data.size, **config.generator)
        discriminator = StyleGAN2Discriminator(size=config.data.size, **config.discriminator)
        lazy = {"generator": config.path_length_every_steps if config.path_length > 0 else None}
        lazy["discriminator"] = config.r1_every_steps if config.r1 > 0 else None
        networks = {"generator": generator, "discriminator": discriminator}
        trained = {
            name: Trained(
                network,
                lazy_adam(network, config.learning_rate, lazy[name]),
                ema=name == "generator",
            )
            for name, network in networks.items()
        }
        return trained | {"statistics": Trained(RunningStatistics(), None, ema=False)}

    def step(self, networks: dict, batch: dict) -> Iterator[tuple[str, torch.Tensor, dict]]:
        config, real, step = self.config, batch["image"], batch["step"]
        statistics = networks["statistics"]
        discriminator = networks["discriminator"].requires_grad_(False)
        probability = float(statistics.augment_probability)
        seeds = batch["seed"].tolist()
        chance = generator_of(seeds, "augment")

        fake, latents = self._generate(networks["generator"], seeds)
        loss = logistic_generator_loss(discriminator(augment(fake, probability, chance)))
        scalars = {"generator/gan": loss.detach()}
        if config.path_length > 0 and step % config.path_length_every_steps == 0:
            lengths = path_lengths(fake, latents, generator_of(seeds, "path"))
            mean = statistics.mean_path_length
            mean.lerp_(mean_over_processes(lengths.detach().mean()), _MEAN_LENGTH_DECAY)
            penalty = path_length_penalty(lengths, mean.clone())
            loss = loss + config.path_length * config.path_length_every_steps * penalty
            scalars["generator/path_length"] = lengths.detach().mean()
        yield "generator", loss, scalars

        discriminator.requires_grad_(True)
        fake = augment(fake.detach(), probability, chance)
        penalised = config.r1 > 0 and step % config.r1_every_steps == 0
        shown = augment(real, probability, chance).detach().requires_grad_(penalised)
        real_scores = discriminator(shown)
        loss = logistic_discriminator_loss(real_scores, discriminator(fake))
        scalars = {"discriminator/gan": loss.detach(), "augment_probability": probability}
        if penalised:
            penalty = r1_penalty(real_scores, shown)
            loss = loss + config.r1 / 2 * config.r1_every_steps * penalty
            scalars["discriminator/r1"] = penalty.detach()
        if config.augment_target is not None:
            statistics.augment_probability.fill_(
                updated_probability(
                    probability,
                    mean_over_processes(real_scores.detach().float().sign().mean()).item(),
                    target=config.augment_target,
                    step=len(real) * process_state().num_processes / config.augment_pictures,
                )
            )
        yield "discriminator", loss, scalars

    @torch.no_grad()
    def preview(self, networks: dict, batch: dict) -> torch.Tensor:
        """Samples of the first eight fixed seeds."""
        generator = networks["generator"]
        z = draw_z(range(8), generator.config.style_channels, "preview")
        w = generator.mapping(z.to(generator.device))
        return torch.cat(list(generator(w).float().clamp(-1, 1)), dim=-1)

    def export(self, networks: dict, folder: Path) -> None:
        """``generator`` and ``discriminator`` folders."""

        def save(target: Path) -> None:
            for name in ("generator", "discriminator"):
                networks[name].save_pretrained(target / name)

        files.write_folder(folder, save)

    def _generate(self, generator, seeds: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures and the W+ latents they depend on."""
        bare = getattr(generator, "module", generator)  # what several processes wrap
        latents = random_latents(bare, seeds, self.config.mixing_probability)
        noise = draw_noises(seeds, bare.noise_sizes, bare.device)
        return generator(latents, noise=noise).float(), latents


def random_latents(
    generator: StyleGAN2Generator, seeds: list[int], mixing_probability: float
) -> torch.Tensor:
    """W+ (B,rows,C) of random z, a second one from a random row on in a share of the pictures."""
    width, rows, device = generator.config.style_channels, generator.num_latents, generator.device
    first, second = (draw_z(seeds, width, name).to(device) for name in ("z", "z2"))
    w, other = generator.mapping(torch.cat([first, second])).float().chunk(2)
    coins = torch.stack([torch.rand(2, generator=generator_of([s], "mixing")) for s in seeds])
    coins = coins.to(device)
    crossover = 1 + (coins[:, 1] * (rows - 1)).long()
    crossover[coins[:, 0] >= mixing_probability] = rows
    from_first = torch.arange(rows, device=device) < crossover[:, None]
    return torch.where(from_first[:, :, None], w[:, None], other[:, None])


def lazy_adam(network: torch.nn.Module, rate: float, every: int | None) -> torch.optim.Adam:
    """Adam, slower where a regulariser is applied in every ``every``-th step alone (§3.1)."""
    share = 1.0 if every is None else every / (every + 1)
    return torch.optim.Adam(network.parameters(), lr=rate * share, betas=(0.0, 0.99**share))


def draw_z(seeds: Sequence[int], width: int, purpose: str) -> torch.Tensor:
    """(B,width), each row by its own seed."""
    return torch.stack([torch.randn(width, generator=generator_of([s], purpose)) for s in seeds])
