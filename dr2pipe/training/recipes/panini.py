"""Recipe: Panini-Net (Wang et al., AAAI 2022, §3.4) with the published weights of its losses.

What the published code does by accident is not repeated: VGG gets pictures normalised for it,
a trained degradation encoder is normalised by what it learned rather than by a batch of one
picture, and an average of the weights is kept (EMA). As published, the gate of the spatial
attention is normalised by the batch, be it one picture: over all its places that is what
instance normalisation does, and has a meaning from the first step on, which running statistics
have not. Restoring uses the running ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from dr2pipe.core import files
from dr2pipe.core.errors import ConfigError
from dr2pipe.enhancers import build_enhancer
from dr2pipe.enhancers.panini import PaniniNet
from dr2pipe.features.vgg import load_vgg
from dr2pipe.losses.adversarial import logistic_discriminator_loss, logistic_generator_loss
from dr2pipe.losses.reconstruction import pixel_loss
from dr2pipe.stylegan2 import StyleGAN2Discriminator, StyleGAN2Generator
from dr2pipe.training.recipe import TrainConfig, Trained
from dr2pipe.training.recipes.enhancer import PairsConfig
from dr2pipe.training.recipes.gfpgan import load_same

_VGG_LAYER = "conv4_3"  # before its ReLU


@dataclass
class PaniniLosses:
    """Weights; 0 switches a loss and what it needs off."""

    pixel: float = 1.0
    perceptual: float = 0.01
    vgg16: str | None = None  # path of torchvision's weights, for the one above
    gan: float = 0.01


@dataclass
class PaniniTrainConfig(TrainConfig):
    pairs: PairsConfig = field(default_factory=PairsConfig)
    # Options without size and input_size, which data.size and pairs.input_size tell.
    panini: dict[str, Any] = field(default_factory=dict)
    prior: str | None = None  # folder of a StyleGAN2 generator; null: trained along from noise
    train_prior: bool = True  # as published, whatever its comments say
    encoder_weights: str | None = None  # folder of a degradation encoder
    discriminator: dict[str, Any] = field(default_factory=dict)
    discriminator_weights: str | None = None  # folder to begin from
    loss: PaniniLosses = field(default_factory=PaniniLosses)
    learning_rate: float = 1e-4
    betas: list[float] = field(default_factory=lambda: [0.9, 0.99])


class PaniniRecipe:
    """Generator with its degradation encoder, and a discriminator."""

    def __init__(self, config: PaniniTrainConfig):
        if config.prior is None and not config.train_prior:
            raise ConfigError("prior: name the folder of a StyleGAN2, or set train_prior=true")
        for option, told_by in (("size", "data.size"), ("input_size", "pairs.input_size")):
            if option in config.panini:
                raise ConfigError(f"panini.{option} is told by {told_by}; leave it out")
        learned = config.panini.get("degradation", "encoder") == "learned"
        if learned and config.encoder_weights is not None:
            raise ConfigError("panini.degradation=learned has no encoder for encoder_weights")
        trains_encoder = not learned and config.panini.get("interpolate", True)
        if trains_encoder and config.encoder_weights is None and config.batch_size < 2:
            raise ConfigError(
                "an encoder that is trained along is normalised by its batch: batch_size must be "
                "2 or more, or encoder_weights name a trained one"
            )
        self.config = config
        self.vgg = None
        if config.loss.perceptual > 0:
            self.vgg = load_vgg(config.loss.vgg16, "vgg16", [_VGG_LAYER])

    def build(self) -> dict[str, Trained]:
        config = self.config
        torch.manual_seed(config.seed)
        sizes = {"size": config.data.size, "input_size": config.pairs.input_size}
        network = build_enhancer("panini", **sizes, **config.panini).train()
        if config.prior is not None:
            _load_prior(network.prior, config.prior)
        if config.encoder_weights is not None:
            load_same(network.degradation_encoder, config.encoder_weights)
        network.prior.requires_grad_(config.train_prior)
        _freeze_unused(network)
        rate, betas = config.learning_rate, tuple(config.betas)
        learned = [p for p in network.parameters() if p.requires_grad]
        trained = {"panini": Trained(network, torch.optim.Adam(learned, rate, betas))}
        if config.loss.gan > 0:
            discriminator = StyleGAN2Discriminator(size=config.data.size, **config.discriminator)
            if config.discriminator_weights is not None:
                load_same(discriminator, config.discriminator_weights)
            optimizer = torch.optim.Adam(discriminator.parameters(), rate, betas)
            trained["discriminator"] = Trained(discriminator, optimizer, ema=False)
        return trained

    def step(self, networks: dict, batch: dict) -> Iterator[tuple[str, torch.Tensor, dict]]:
        weights, target = self.config.loss, batch["image"]
        network = getattr(networks["panini"], "module", networks["panini"])
        if self.config.encoder_weights is not None:
            network.degradation_encoder.eval()
        restored = networks["panini"](batch["input"]).float()
        terms = {"pixel": pixel_loss(restored, target)}
        if self.vgg is not None:
            vgg = self.vgg.to(target.device)
            made, wanted = (vgg(x)[_VGG_LAYER].float() for x in (restored, target))
            terms["perceptual"] = F.mse_loss(made, wanted)
        if "discriminator" in networks:
            discriminator = networks["discriminator"].requires_grad_(False)
            terms["gan"] = logistic_generator_loss(discriminator(restored))
        loss = sum(getattr(weights, name) * value for name, value in terms.items())
        yield "panini", loss, {f"panini/{n}": v.detach() for n, v in terms.items()}
        if "discriminator" in networks:
            discriminator.requires_grad_(True)
            real, fake = discriminator(target), discriminator(restored.detach())
            yield "discriminator", logistic_discriminator_loss(real, fake), {}

    @torch.no_grad()
    def preview(self, networks: dict, batch: dict) -> torch.Tensor:
        """Three rows: inputs, results, targets."""
        given, target = batch["input"][:8], batch["image"][:8]
        restored = networks["panini"](given).float()
        shown = F.interpolate(given, target.shape[-2:])
        rows = (shown, restored, target)
        return torch.cat([torch.cat(list(row.clamp(-1, 1)), dim=-1) for row in rows], dim=-2)

    def export(self, networks: dict, folder: Path) -> None:
        """A folder that ``build_enhancer`` loads."""
        files.write_folder(folder, networks["panini"].save_pretrained)


def _load_prior(prior: StyleGAN2Generator, folder: str) -> None:
    """Copy all but the mapping network, which is not used: W+ comes from the encoder."""
    config = Path(folder) / "config.json"
    if config.is_file() and json.loads(config.read_text()).get("resample") == "bilinear":
        raise ConfigError(
            f"{folder}: a bilinear ('clean') network; Panini-Net's prior is a StyleGAN2 of the "
            f"fir kind"
        )
    load_same(prior, folder, without="mapping")


def _freeze_unused(network: PaniniNet) -> None:
    """What no gradient reaches must not be trained: several processes would wait for it."""
    network.prior.mapping.requires_grad_(False)  # the encoder gives W+ itself
    if network.config.degradation == "encoder":
        network.degradation_encoder.projection.requires_grad_(False)  # for its pretraining
        if not network.config.interpolate:
            network.degradation_encoder.requires_grad_(False)
    elif not network.config.interpolate:
        network.degradation_vector.requires_grad_(False)
