"""Recipe: the codebook of VQFR, with the encoder and the texture decoder that belong to it.

Gu et al., ECCV 2022, §3.1; the losses are VQGAN's (Esser et al., CVPR 2021, §3.1) with StyleGAN2's
discriminator. The published discriminator is that of SWAGAN, which sees wavelets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dr2pipe.core import files
from dr2pipe.core.config import stable_seed
from dr2pipe.core.diffusers_types import ModelMixin
from dr2pipe.core.errors import ConfigError
from dr2pipe.enhancers import build_enhancer
from dr2pipe.enhancers.vqfr import VQFR
from dr2pipe.losses.adversarial import logistic_generator_loss
from dr2pipe.losses.codebook import codebook_loss
from dr2pipe.losses.reconstruction import pixel_loss
from dr2pipe.losses.total import weighted_sum
from dr2pipe.stylegan2 import StyleGAN2Discriminator
from dr2pipe.training.codes import CodeStatistics
from dr2pipe.training.gan import discriminator_step
from dr2pipe.training.perceptual import PerceptualConfig, PerceptualLoss
from dr2pipe.training.previews import PREVIEW_PICTURES, tile_rows
from dr2pipe.training.recipe import (
    Batch,
    Loss,
    Networks,
    TrainConfig,
    TrainedNetwork,
    betas_of,
    unwrap,
)


@dataclass
class CodebookLosses(PerceptualConfig):
    """Weights; 0 switches a loss and what it needs off."""

    pixel: float = 1.0
    codebook: float = 1.0
    gan: float = 1.0
    gan_from_step: int = 50_000
    r1: float = 10.0
    r1_every_steps: int = 16


@dataclass
class CodebookTrainConfig(TrainConfig):
    """Settings of the recipe; the defaults are the published ones."""

    vqfr: dict[str, Any] = field(default_factory=dict)  # options; data.size gives the size
    discriminator: dict[str, Any] = field(default_factory=dict)
    loss: CodebookLosses = field(default_factory=CodebookLosses)
    learning_rate: float = 1e-4
    betas: list[float] = field(default_factory=lambda: [0.9, 0.96])
    # Before it, the decoder sees the encoder's features; there, k-means makes the codes of them.
    quantise_from_step: int = 10_000
    revive_every_steps: int = 2_000
    revive_until_step: int = 30_000
    kept_vectors: int = 16_384  # newest vectors of the encoder that k-means sees


class CodebookRecipe:
    """An autoencoder of clean faces through a codebook."""

    def __init__(self, config: CodebookTrainConfig):
        for name, value in (
            ("loss.r1_every_steps", config.loss.r1_every_steps),
            ("revive_every_steps", config.revive_every_steps),
            ("kept_vectors", config.kept_vectors),
            ("quantise_from_step", config.quantise_from_step),
        ):
            if value < 1:
                raise ConfigError(f"{name}={value} must be at least 1")
        self.config = config
        self.perceptual = PerceptualLoss(config.loss) if config.loss.perceptual > 0 else None

    def build(self) -> dict[str, TrainedNetwork]:
        """Build ``vqfr``, ``discriminator`` and the ``codes``' statistics."""
        config = self.config
        betas = betas_of("betas", config.betas)
        network = unwrap(build_enhancer("vqfr", size=config.data.size, **config.vqfr), VQFR)
        network.train()
        # They are trained later, by the recipe vqfr.
        network.main_decoder.requires_grad_(False)
        network.input_features.requires_grad_(False)
        learned = [p for p in network.parameters() if p.requires_grad]
        trained = {
            "vqfr": TrainedNetwork(network, torch.optim.Adam(learned, config.learning_rate, betas)),
            "codes": TrainedNetwork(
                _statistics(network, config.kept_vectors),
                None,
                ema=False,
            ),
        }
        if config.loss.gan > 0:
            critic = StyleGAN2Discriminator(size=config.data.size, **config.discriminator)
            optimizer = torch.optim.Adam(critic.parameters(), config.learning_rate, betas)
            trained["discriminator"] = TrainedNetwork(critic, optimizer, ema=False)
        return trained

    def step(self, networks: Networks, batch: Batch) -> Iterator[Loss]:
        """Yield the autoencoder's loss, then the discriminator's."""
        config, real, step = self.config, batch["image"], batch["step"]
        revived = self._renew_codes(networks, step)
        quantise = step >= config.quantise_from_step
        parts = networks["vqfr"](real, return_parts=True, use_main=False, quantise=quantise)
        made = parts.texture.float()
        statistics = unwrap(networks["codes"], CodeStatistics)
        statistics.add(parts.codes.vectors, parts.codes.indices)
        of_codes = codebook_loss(parts.codes.vectors.float(), parts.codes.chosen)
        terms = {
            "pixel": pixel_loss(made, real),
            # Several processes wait for the gradient of every parameter, so the codes stay in it.
            "codebook": of_codes if quantise else 0 * of_codes,
        }
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual(
                made, real, batch["seed"].tolist(), config.precision
            )
        adversarial = config.loss.gan > 0 and step >= config.loss.gan_from_step
        if adversarial:
            critic = networks["discriminator"].requires_grad_(False)
            terms["gan"] = logistic_generator_loss(critic(made))
        loss = weighted_sum(terms, vars(config.loss))
        scalars = {f"vqfr/{name}": value.detach() for name, value in terms.items()}
        yield "vqfr", loss, scalars | {"vqfr/revived": torch.tensor(float(revived))}
        if adversarial:
            yield discriminator_step(
                networks["discriminator"],
                made,
                real,
                r1=config.loss.r1,
                r1_every_steps=config.loss.r1_every_steps,
                step=step,
            )

    def _renew_codes(self, networks: Networks, step: int) -> int:
        """Make the codes where quantisation begins, and revive unused ones; returns their number."""
        config = self.config
        first = config.quantise_from_step
        statistics = unwrap(networks["codes"], CodeStatistics)
        since = step - first
        if (
            since < 0
            or since % config.revive_every_steps
            or (since > 0 and step > config.revive_until_step)
            or int(statistics.last_change) == step  # several parts of one accumulated step
        ):
            return 0
        statistics.last_change.fill_(step)
        codes = unwrap(networks["vqfr"], VQFR).codebook.codes
        generator = torch.Generator().manual_seed(stable_seed(config.seed, "codes", step))
        if since > 0:
            return statistics.revive(codes, generator)
        statistics.estimate(codes, generator)
        return 0

    @torch.no_grad()
    def preview(self, networks: Networks, batch: Batch) -> torch.Tensor:
        """Two rows: faces, and what the codes keep of them."""
        faces = batch["image"][:PREVIEW_PICTURES]
        return tile_rows(faces, networks["vqfr"](faces, use_main=False))

    def export(self, networks: Networks, folder: Path) -> None:
        """Write a VQFR whose main decoder is untrained, for ``codebook`` of the recipe vqfr."""
        files.write_folder(folder, unwrap(networks["vqfr"], ModelMixin).save_pretrained)


def _statistics(network: VQFR, capacity: int) -> CodeStatistics:
    num_codes, code_channels = network.codebook.codes.shape
    return CodeStatistics(num_codes, code_channels, capacity)
