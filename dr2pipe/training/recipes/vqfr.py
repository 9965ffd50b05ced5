"""Recipe: VQFR on degraded faces, from a trained codebook.

Gu et al., ECCV 2022, §3.3: the encoder learns to find the codes of the clean face, and both
decoders to draw it. Of each decoder's result one discriminator sees the whole (StyleGAN2's; the
published one is SWAGAN's), another one patches. The codes stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from dr2pipe.core import files
from dr2pipe.core.diffusers_types import ModelMixin
from dr2pipe.core.errors import ConfigError
from dr2pipe.core.models import find_model
from dr2pipe.enhancers import build_enhancer
from dr2pipe.enhancers.vqfr import VQFR, Parts
from dr2pipe.losses.adversarial import (
    hinge_discriminator_loss,
    hinge_generator_loss,
    logistic_generator_loss,
)
from dr2pipe.losses.reconstruction import pixel_loss
from dr2pipe.stylegan2 import StyleGAN2Discriminator
from dr2pipe.training.checkpoints import load_matching_weights
from dr2pipe.training.gan import MultiScaleDiscriminator, discriminator_step
from dr2pipe.training.perceptual import PerceptualConfig, PerceptualLoss
from dr2pipe.training.previews import PREVIEW_PICTURES, tile_rows
from dr2pipe.training.recipe import (
    Batch,
    Loss,
    Networks,
    PairsConfig,
    TrainConfig,
    TrainedNetwork,
    betas_of,
    unwrap,
)


@dataclass
class VQFRLosses(PerceptualConfig):
    """Weights; 0 switches a loss and what it needs off."""

    pixel: float = 1.0  # of the texture decoder
    pixel_main: float = 0.0
    code: float = 1.0  # between the features of the degraded face and the codes of the clean one
    gan: float = 0.5  # of the discriminators that see whole faces
    # Of those that see patches; its gradient is brought to this share of that of the losses above
    # (VQGAN's adaptive weight, eq. 7).
    patch_gan: float = 0.5
    main_gan_from_step: int = 5_000
    r1: float = 10.0
    r1_every_steps: int = 16


@dataclass
class VQFRTrainConfig(TrainConfig):
    """Settings of the recipe; the defaults are the published ones."""

    pairs: PairsConfig = field(default_factory=PairsConfig)
    vqfr: dict[str, Any] = field(default_factory=dict)  # options; data.size gives the size
    codebook: str | None = None  # name or folder that the recipe vqfr_codebook left
    discriminator: dict[str, Any] = field(default_factory=dict)
    patch_discriminator: dict[str, Any] = field(default_factory=lambda: {"halvings": 3})
    loss: VQFRLosses = field(default_factory=VQFRLosses)
    learning_rate: float = 1e-5
    betas: list[float] = field(default_factory=lambda: [0.5, 0.9])


class VQFRRecipe:
    """Encoder and both decoders, with two discriminators for each decoder."""

    def __init__(self, config: VQFRTrainConfig):
        if config.codebook is None:
            raise ConfigError("codebook: name the folder that the recipe vqfr_codebook left")
        if config.pairs.input_size != config.data.size:
            raise ConfigError(
                f"VQFR's input and output have the same size: pairs.input_size="
                f"{config.pairs.input_size} must be data.size={config.data.size}"
            )
        if config.loss.r1_every_steps < 1:
            raise ConfigError(
                f"loss.r1_every_steps={config.loss.r1_every_steps} must be at least 1"
            )
        self.config = config
        self.perceptual = PerceptualLoss(config.loss) if config.loss.perceptual > 0 else None

    def build(self) -> dict[str, TrainedNetwork]:
        """Build ``vqfr`` and the discriminators, such as ``main_patches``."""
        config = self.config
        rate, betas = config.learning_rate, betas_of("betas", config.betas)
        network = unwrap(build_enhancer("vqfr", size=config.data.size, **config.vqfr), VQFR)
        load_matching_weights(network, find_model(str(config.codebook)))
        # What finds the codes of clean faces.
        self.of_clean = build_enhancer("vqfr", size=config.data.size, **config.vqfr)
        self.of_clean.load_state_dict(network.state_dict())
        self.of_clean.requires_grad_(False).eval()
        network.train()
        network.codebook.codes.requires_grad_(False)

        def trained(network: torch.nn.Module, *, ema: bool = False) -> TrainedNetwork:
            learned = [p for p in network.parameters() if p.requires_grad]
            return TrainedNetwork(network, torch.optim.Adam(learned, rate, betas), ema=ema)

        networks = {"vqfr": trained(network, ema=True)}
        for decoder in ("texture", "main"):
            if config.loss.gan > 0:
                whole = StyleGAN2Discriminator(size=config.data.size, **config.discriminator)
                networks[f"{decoder}_whole"] = trained(whole)
            if config.loss.patch_gan > 0:
                patches = MultiScaleDiscriminator(scales=1, **config.patch_discriminator)
                networks[f"{decoder}_patches"] = trained(patches)
        return networks

    def step(self, networks: Networks, batch: Batch) -> Iterator[Loss]:
        """Yield the loss of VQFR, then those of the discriminators."""
        config, target = self.config, batch["image"]
        parts: Parts = networks["vqfr"](batch["input"], return_parts=True)
        results = {"texture": parts.texture.float(), "main": parts.result.float()}
        wanted = unwrap(self.of_clean.to(target.device), VQFR)
        with torch.no_grad():
            codes = wanted.encode(target).chosen
        of_code = F.mse_loss(parts.codes.vectors.float(), codes.float())
        scalars = {"vqfr/code": of_code.detach()}
        loss = config.loss.code * of_code
        for decoder, made in results.items():
            for name, term in self._terms(networks, decoder, made, batch).items():
                loss = loss + term
                scalars[f"vqfr/{decoder}_{name}"] = term.detach()
        yield "vqfr", loss, scalars
        for decoder, made in results.items():
            if not self._is_judged(decoder, batch["step"]):
                continue
            if config.loss.gan > 0:
                yield discriminator_step(
                    networks[f"{decoder}_whole"],
                    made,
                    target,
                    r1=config.loss.r1,
                    r1_every_steps=config.loss.r1_every_steps,
                    step=batch["step"],
                    name=f"{decoder}_whole",
                )
            if config.loss.patch_gan > 0:
                critic = networks[f"{decoder}_patches"].requires_grad_(True)
                (real, _), (fake, _) = critic(target), critic(made.detach())
                yield f"{decoder}_patches", 0.5 * hinge_discriminator_loss(real, fake), {}

    def _terms(
        self, networks: Networks, decoder: str, made: torch.Tensor, batch: Batch
    ) -> dict[str, torch.Tensor]:
        """The weighted losses of one decoder's result."""
        weights, target = self.config.loss, batch["image"]
        pixel = weights.pixel if decoder == "texture" else weights.pixel_main
        terms = {"pixel": pixel * pixel_loss(made, target)}
        if self.perceptual is not None:
            terms["perceptual"] = weights.perceptual * self.perceptual(
                made, target, batch["seed"].tolist(), self.config.precision
            )
        if not self._is_judged(decoder, batch["step"]):
            return terms
        likeness = torch.stack(list(terms.values())).sum()
        if weights.gan > 0:
            critic = networks[f"{decoder}_whole"].requires_grad_(False)
            terms["gan"] = weights.gan * logistic_generator_loss(critic(made))
        if weights.patch_gan > 0:
            critic = networks[f"{decoder}_patches"].requires_grad_(False)
            adversarial = hinge_generator_loss(critic(made)[0])
            last = _last_weight(unwrap(networks["vqfr"], VQFR), decoder)
            share = _adaptive_weight(likeness, adversarial, last)
            terms["patch_gan"] = weights.patch_gan * share * adversarial
        return terms

    def _is_judged(self, decoder: str, step: int) -> bool:
        return decoder == "texture" or step >= self.config.loss.main_gan_from_step

    @torch.no_grad()
    def preview(self, networks: Networks, batch: Batch) -> torch.Tensor:
        """Four rows: inputs, textures, results, targets."""
        inputs, target = (batch[name][:PREVIEW_PICTURES] for name in ("input", "image"))
        parts: Parts = networks["vqfr"](inputs, return_parts=True)
        return tile_rows(inputs, parts.texture, parts.result, target)

    def export(self, networks: Networks, folder: Path) -> None:
        """Write a folder that ``build_enhancer`` loads."""
        files.write_folder(folder, unwrap(networks["vqfr"], ModelMixin).save_pretrained)


def _last_weight(network: VQFR, decoder: str) -> torch.Tensor:
    """The weights (3,C,3,3) that make a decoder's picture."""
    last = network.texture_decoder.last[1] if decoder == "texture" else network.main_decoder.last
    return last.get_parameter("weight")


def _adaptive_weight(
    likeness: torch.Tensor, adversarial: torch.Tensor, last: torch.Tensor
) -> torch.Tensor:
    """VQGAN's λ: how many times larger the gradient of the likeness is (Esser et al. 2021, eq. 7).

    Without a likeness (all its weights are 0) it is 0, as in the published code.
    """
    norms = []
    for loss in (likeness, adversarial):
        (gradient,) = torch.autograd.grad(loss, last, retain_graph=True)
        norms.append(gradient.norm())
    weight: torch.Tensor = norms[0] / (norms[1] + 1e-4)
    return weight.clamp(0, 1e4).detach()
