"""Recipe: a StyleGAN2 of faces, the prior of the GAN-prior family.

Karras et al. 2020 (§3.1 lazy regularisation, §3.2 path lengths); style mixing: Karras et al.
2019, §3.1; adaptive augmentation: Karras et al. 2020b.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dr2pipe.core import files
from dr2pipe.core.diffusers_types import ModelMixin
from dr2pipe.core.errors import ConfigError
from dr2pipe.core.processes import process_state
from dr2pipe.core.seeding import generator_of
from dr2pipe.losses.adversarial import (
    logistic_discriminator_loss,
    logistic_generator_loss,
    path_length_penalty,
    path_lengths,
    r1_penalty,
)
from dr2pipe.stylegan2 import StyleGAN2Discriminator, StyleGAN2Generator
from dr2pipe.training.augment import augment, updated_probability
from dr2pipe.training.previews import PREVIEW_PICTURES, tile_rows
from dr2pipe.training.recipe import (
    Batch,
    Loss,
    Networks,
    TrainConfig,
    TrainedNetwork,
    unwrap,
)
from dr2pipe.training.stylegan2 import (
    RunningStatistics,
    draw_noises,
    draw_z,
    lazy_adam,
    mean_over_processes,
    random_latents,
)


@dataclass
class StyleGAN2TrainConfig(TrainConfig):
    """Settings of the recipe; the defaults are the paper's."""

    generator: dict[str, Any] = field(default_factory=dict)  # options; data.size gives the size
    discriminator: dict[str, Any] = field(default_factory=dict)
    learning_rate: float = 2e-3
    r1: float = 10.0
    r1_every_steps: int = 16
    path_length: float = 2.0
    path_length_every_steps: int = 4
    mixing_probability: float = 0.9
    augment_target: float | None = 0.6  # wanted E[sign D(real)]; null: no augmentation
    augment_pictures: int = 500_000  # p goes from 0 to 1 in no fewer


class StyleGAN2Recipe:
    """Generator and discriminator from a folder of faces."""

    def __init__(self, config: StyleGAN2TrainConfig):
        for name in ("r1_every_steps", "path_length_every_steps", "augment_pictures"):
            if getattr(config, name) < 1:
                raise ConfigError(f"{name}={getattr(config, name)} must be at least 1")
        self.config = config

    def build(self) -> dict[str, TrainedNetwork]:
        """Build ``generator``, ``discriminator`` and the ``statistics`` of their losses."""
        config, rate = self.config, self.config.learning_rate
        network = StyleGAN2Generator(size=config.data.size, **config.generator)
        discriminator = StyleGAN2Discriminator(size=config.data.size, **config.discriminator)
        lazy = config.path_length_every_steps if config.path_length > 0 else None
        lazy_d = config.r1_every_steps if config.r1 > 0 else None
        return {
            "generator": TrainedNetwork(network, lazy_adam(network, rate, lazy)),
            "discriminator": TrainedNetwork(
                discriminator, lazy_adam(discriminator, rate, lazy_d), ema=False
            ),
            "statistics": TrainedNetwork(RunningStatistics(), None, ema=False),
        }

    def step(self, networks: Networks, batch: Batch) -> Iterator[Loss]:
        """Yield the generator's loss, then the discriminator's, each with its lazy regulariser."""
        config, real, step = self.config, batch["image"], batch["step"]
        statistics = unwrap(networks["statistics"], RunningStatistics)
        discriminator = networks["discriminator"].requires_grad_(False)
        probability = statistics.augment_probability.item()
        seeds = batch["seed"].tolist()
        augmenting = generator_of(seeds, "augment")

        fake, latents = self._generate(networks["generator"], seeds)
        loss = logistic_generator_loss(discriminator(augment(fake, probability, augmenting)))
        scalars = {"generator/gan": loss.detach()}
        if config.path_length > 0 and step % config.path_length_every_steps == 0:
            lengths = path_lengths(fake, latents, generator_of(seeds, "path"))
            mean_length = statistics.updated_mean_path_length(lengths.detach())
            penalty = path_length_penalty(lengths, mean_length)
            loss = loss + config.path_length * config.path_length_every_steps * penalty
            scalars["generator/path_length"] = lengths.detach().mean()
        yield "generator", loss, scalars

        discriminator.requires_grad_(True)
        fake = augment(fake.detach(), probability, augmenting)
        penalised = config.r1 > 0 and step % config.r1_every_steps == 0
        shown = augment(real, probability, augmenting).detach().requires_grad_(penalised)
        real_scores = discriminator(shown)
        loss = logistic_discriminator_loss(real_scores, discriminator(fake))
        scalars = {
            "discriminator/gan": loss.detach(),
            "augment_probability": statistics.augment_probability.clone(),
        }
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
    def preview(self, networks: Networks, batch: Batch) -> torch.Tensor:
        """One row: samples of fixed seeds."""
        generator = unwrap(networks["generator"], StyleGAN2Generator)
        z = draw_z(range(PREVIEW_PICTURES), generator.config.style_channels, "preview")
        w = generator.mapping(z.to(generator.device))
        return tile_rows(generator(w))

    def export(self, networks: Networks, folder: Path) -> None:
        """Write the folders ``generator`` and ``discriminator``."""

        def save(target: Path) -> None:
            for name in ("generator", "discriminator"):
                unwrap(networks[name], ModelMixin).save_pretrained(target / name)

        files.write_folder(folder, save)

    def _generate(
        self, generator: torch.nn.Module, seeds: list[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures (B,3,H,W) and the W+ latents (B,rows,C) that they were made from."""
        bare = unwrap(generator, StyleGAN2Generator)
        latents = random_latents(bare, seeds, self.config.mixing_probability)
        noise = draw_noises(seeds, bare.noise_sizes, bare.device)
        return generator(latents, noise=noise).float(), latents
