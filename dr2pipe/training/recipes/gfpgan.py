"""Recipe: GFP-GAN with every loss of the paper (Wang et al. 2021, §3.4).

Three accidents of the published code are not repeated: crops of the face parts have the same
values at every size, landmarks are mirrored about the middle of the picture, and degradations
follow from the seed of a showing, not from the worker process.
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
from dr2pipe.core.models import find_model
from dr2pipe.enhancers import build_enhancer
from dr2pipe.enhancers.gfpgan import GFPGAN
from dr2pipe.features.arcface import load_arcface, to_grey
from dr2pipe.features.vgg import load_vgg
from dr2pipe.losses.adversarial import logistic_discriminator_loss, logistic_generator_loss
from dr2pipe.losses.face_parts import PARTS, component_style_loss, crop_parts
from dr2pipe.losses.identity import identity_loss
from dr2pipe.losses.perceptual import perceptual_loss, style_loss
from dr2pipe.losses.reconstruction import pixel_loss, pyramid_loss
from dr2pipe.losses.total import weighted_sum
from dr2pipe.stylegan2 import FacePartDiscriminator, StyleGAN2Discriminator
from dr2pipe.training.checkpoints import load_matching_weights
from dr2pipe.training.gan import discriminator_step
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
from dr2pipe.training.stylegan2 import draw_noises, lazy_adam

# VGG19 maps before their ReLU.
_VGG_LAYERS = {"conv1_2": 0.1, "conv2_2": 0.1, "conv3_4": 1.0, "conv4_4": 1.0, "conv5_4": 1.0}


@dataclass
class GFPGANLosses:
    """Weights; 0 switches a loss and what it needs off."""

    pixel: float = 0.1
    pyramid: float = 1.0  # of each size
    pyramid_until_step: int = 50_000
    perceptual: float = 1.0
    style: float = 50.0
    vgg19: str | None = None  # path of torchvision's weights, for the two above
    gan: float = 0.1
    r1: float = 10.0
    r1_every_steps: int = 16
    component: float = 1.0  # adversarial, of each face part
    component_style: float = 200.0
    identity: float = 10.0
    arcface: str | None = None  # path of arcface_resnet18.pth, for the one above


@dataclass
class GFPGANTrainConfig(TrainConfig):
    """Settings of the recipe; the defaults are the paper's."""

    pairs: PairsConfig = field(default_factory=PairsConfig)
    landmarks: str | None = None  # csv or .pth, see data/landmarks.py; for the face parts
    landmarks_size: int = 512  # side in pixels of the faces in which the csv's points lie
    gfpgan: dict[str, Any] = field(default_factory=dict)  # options; data.size gives the size
    prior: str | None = None  # name or folder of a StyleGAN2 generator
    train_prior: bool = False
    discriminator: dict[str, Any] = field(default_factory=dict)
    discriminator_weights: str | None = None  # name or folder to begin from
    loss: GFPGANLosses = field(default_factory=GFPGANLosses)
    learning_rate: float = 2e-3
    component_betas: list[float] = field(default_factory=lambda: [0.9, 0.99])


class GFPGANRecipe:
    """Generator, discriminator, and a discriminator for each face part."""

    def __init__(self, config: GFPGANTrainConfig):
        loss = config.loss
        if loss.r1_every_steps < 1:
            raise ConfigError(f"loss.r1_every_steps={loss.r1_every_steps} must be at least 1")
        if config.pairs.input_size != config.data.size:
            raise ConfigError(
                f"GFP-GAN's input and output have the same size: pairs.input_size="
                f"{config.pairs.input_size} must be data.size={config.data.size}"
            )
        if config.prior is None and not config.train_prior:
            raise ConfigError("prior: name the folder of a StyleGAN2, or set train_prior=true")
        if loss.component_style > 0 and loss.component <= 0:
            raise ConfigError("loss.component_style compares features that loss.component trains")
        self.uses_parts = loss.component > 0
        if self.uses_parts and config.landmarks is None:
            raise ConfigError("the losses of face parts need landmarks; or set their weights to 0")
        self.config = config
        self.vgg = self.arcface = None
        if loss.perceptual > 0 or loss.style > 0:
            self.vgg = load_vgg(loss.vgg19, "vgg19", list(_VGG_LAYERS))
        if loss.identity > 0:
            self.arcface = load_arcface(loss.arcface)

    def build(self) -> dict[str, TrainedNetwork]:
        """Build ``gfpgan``, ``discriminator``, and one discriminator per face part."""
        config = self.config
        size, rate = config.data.size, config.learning_rate
        network = unwrap(build_enhancer("gfpgan", size=size, **config.gfpgan), GFPGAN).train()
        if config.prior is not None:
            load_matching_weights(network.prior, find_model(config.prior))
        network.prior.requires_grad_(config.train_prior)
        if network.config.latent_is_w:  # the mapping network is not used then
            network.prior.mapping.requires_grad_(False)
        learned = [p for p in network.parameters() if p.requires_grad]
        trained = {"gfpgan": TrainedNetwork(network, torch.optim.Adam(learned, rate, (0.0, 0.99)))}
        if config.loss.gan > 0:
            discriminator = StyleGAN2Discriminator(size=size, **config.discriminator)
            if config.discriminator_weights is not None:
                load_matching_weights(discriminator, find_model(config.discriminator_weights))
            optimizer = lazy_adam(discriminator, rate, config.loss.r1_every_steps)
            trained["discriminator"] = TrainedNetwork(discriminator, optimizer, ema=False)
        if self.uses_parts:
            betas = betas_of("component_betas", config.component_betas)
            for name in PARTS:
                part = FacePartDiscriminator()
                optimizer = torch.optim.Adam(part.parameters(), rate, betas)
                trained[name] = TrainedNetwork(part, optimizer, ema=False)
        return trained

    def step(self, networks: Networks, batch: Batch) -> Iterator[Loss]:
        """Yield the losses of the generator, the discriminator, and those of the face parts."""
        target = batch["image"]
        sizes = unwrap(networks["gfpgan"], GFPGAN).prior.noise_sizes
        noise = draw_noises(batch["seed"].tolist(), sizes, target.device)
        restored, pyramid = networks["gfpgan"](batch["input"], noise=noise, return_pyramid=True)
        restored, pyramid = restored.float(), [p.float() for p in pyramid]
        crops: dict[str, torch.Tensor] = {}
        real_crops: dict[str, torch.Tensor] = {}
        if self.uses_parts:
            crops = crop_parts(restored, batch["parts"])
            real_crops = crop_parts(target, batch["parts"])
        terms = self._generator_terms(networks, restored, target, crops, real_crops)
        if batch["step"] < self.config.loss.pyramid_until_step:
            # The smallest pictures come first; each is compared with the face at its size.
            terms["pyramid"] = pyramid_loss(pyramid, target)
        else:
            # Several processes wait for the gradient of every parameter, so the U-Net's pictures
            # must stay in the loss.
            terms["pyramid"] = 0 * torch.stack([p.mean() for p in pyramid]).sum()
        loss = weighted_sum(terms, vars(self.config.loss))
        yield "gfpgan", loss, {f"gfpgan/{n}": v.detach() for n, v in terms.items()}
        if "discriminator" in networks:
            yield discriminator_step(
                networks["discriminator"],
                restored,
                target,
                r1=self.config.loss.r1,
                r1_every_steps=self.config.loss.r1_every_steps,
                step=batch["step"],
            )
        if self.config.loss.component > 0:
            for name in PARTS:
                discriminator = networks[name].requires_grad_(True)
                real, _ = discriminator(real_crops[name])
                fake, _ = discriminator(crops[name].detach())
                yield name, logistic_discriminator_loss(real, fake), {}

    def _generator_terms(
        self,
        networks: Networks,
        restored: torch.Tensor,
        target: torch.Tensor,
        crops: dict[str, torch.Tensor],
        real_crops: dict[str, torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        terms = {"pixel": pixel_loss(restored, target)}
        if self.vgg is not None:
            vgg = self.vgg.to(target.device)
            features, target_features = (
                {name: maps.float() for name, maps in vgg(pictures).items()}
                for pictures in (restored, target)
            )
            terms["perceptual"] = perceptual_loss(features, target_features, _VGG_LAYERS)
            terms["style"] = style_loss(features, target_features, _VGG_LAYERS)
        if "discriminator" in networks:
            discriminator = networks["discriminator"].requires_grad_(False)
            terms["gan"] = logistic_generator_loss(discriminator(restored))
        if self.uses_parts:
            adversarial, style = [], []
            for name in PARTS:
                discriminator = networks[name].requires_grad_(False)
                score, maps = discriminator(crops[name])
                _, real_maps = discriminator(real_crops[name])
                adversarial.append(logistic_generator_loss(score))
                style.append(
                    component_style_loss([m.float() for m in maps], [m.float() for m in real_maps])
                )
            terms["component"] = torch.stack(adversarial).sum()
            terms["component_style"] = torch.stack(style).sum()
        if self.arcface is not None:
            arcface = self.arcface.to(target.device)
            embeddings, target_embeddings = (
                arcface(to_grey(pictures)).float() for pictures in (restored, target)
            )
            terms["identity"] = identity_loss(embeddings, target_embeddings)
        return terms

    @torch.no_grad()
    def preview(self, networks: Networks, batch: Batch) -> torch.Tensor:
        """Three rows: inputs, results, targets."""
        inputs, target = (batch[name][:PREVIEW_PICTURES] for name in ("input", "image"))
        return tile_rows(inputs, networks["gfpgan"](inputs), target)

    def export(self, networks: Networks, folder: Path) -> None:
        """Write a folder that ``build_enhancer`` loads."""
        files.write_folder(folder, unwrap(networks["gfpgan"], ModelMixin).save_pretrained)
