"""Recipe: Panini-Net (Wang et al., AAAI 2022, §3.4) with the published weights of its losses.

Some accidents of the published code are not repeated: VGG gets pictures normalised for it, a
trained degradation encoder uses its running statistics and not those of a batch of one picture,
and an average of the weights (EMA) is kept. As published, the gate of the spatial attention is
normalised by the batch while training, even if that is one picture. Over all places of one picture
this equals instance normalisation; it is meaningful from the first step on, and running statistics
are not. Restoring uses the running statistics.
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
from dr2pipe.enhancers.panini import PaniniNet
from dr2pipe.features.vgg import load_vgg
from dr2pipe.losses.adversarial import logistic_discriminator_loss, logistic_generator_loss
from dr2pipe.losses.reconstruction import pixel_loss
from dr2pipe.losses.total import weighted_sum
from dr2pipe.stylegan2 import StyleGAN2Discriminator
from dr2pipe.training.checkpoints import load_matching_weights
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
    """Settings of the recipe; the defaults are the published ones."""

    pairs: PairsConfig = field(default_factory=PairsConfig)
    # Options of PaniniNet; data.size and pairs.input_size give its size and input_size.
    panini: dict[str, Any] = field(default_factory=dict)
    prior: str | None = None  # name or folder of a StyleGAN2; null: trained along from noise
    train_prior: bool = True  # as in the published code, against its comments
    encoder_weights: str | None = None  # name or folder of a degradation encoder
    discriminator: dict[str, Any] = field(default_factory=dict)
    discriminator_weights: str | None = None  # name or folder to begin from
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
                raise ConfigError(f"panini.{option} is set by {told_by}; leave it out")
        learned = config.panini.get("degradation", "encoder") == "learned"
        if learned and config.encoder_weights is not None:
            raise ConfigError("panini.degradation=learned has no encoder for encoder_weights")
        trains_encoder = not learned and config.panini.get("interpolate", True)
        if trains_encoder and config.encoder_weights is None and config.batch_size < 2:
            raise ConfigError(
                "an encoder under training is normalised by its batch: set batch_size to 2 or "
                "more, or encoder_weights to the folder of a trained one"
            )
        self.config = config
        self.vgg = None
        if config.loss.perceptual > 0:
            self.vgg = load_vgg(config.loss.vgg16, "vgg16", [_VGG_LAYER])

    def build(self) -> dict[str, TrainedNetwork]:
        """Build ``panini``, and ``discriminator`` where a loss needs it."""
        config = self.config
        options = config.panini | {
            "size": config.data.size,
            "input_size": config.pairs.input_size,
        }
        network = unwrap(build_enhancer("panini", **options), PaniniNet).train()
        if config.prior is not None:
            # The mapping network is not used: the encoder gives W+ itself.
            load_matching_weights(network.prior, find_model(config.prior), without="mapping")
        if config.encoder_weights is not None:
            encoder = find_model(config.encoder_weights)
            # The projection serves the encoder's own training alone.
            load_matching_weights(network.degradation_encoder, encoder, without="projection")
        network.prior.requires_grad_(config.train_prior)
        _freeze_unused(network)
        rate, betas = config.learning_rate, betas_of("betas", config.betas)
        learned = [p for p in network.parameters() if p.requires_grad]
        trained = {"panini": TrainedNetwork(network, torch.optim.Adam(learned, rate, betas))}
        if config.loss.gan > 0:
            discriminator = StyleGAN2Discriminator(size=config.data.size, **config.discriminator)
            if config.discriminator_weights is not None:
                load_matching_weights(discriminator, find_model(config.discriminator_weights))
            optimizer = torch.optim.Adam(discriminator.parameters(), rate, betas)
            trained["discriminator"] = TrainedNetwork(discriminator, optimizer, ema=False)
        return trained

    def step(self, networks: Networks, batch: Batch) -> Iterator[Loss]:
        """Yield the generator's loss, then the discriminator's."""
        target = batch["image"]
        if self.config.encoder_weights is not None:
            unwrap(networks["panini"], PaniniNet).degradation_encoder.eval()
        restored = networks["panini"](batch["input"]).float()
        terms = {"pixel": pixel_loss(restored, target)}
        if self.vgg is not None:
            vgg = self.vgg.to(target.device)
            features, target_features = (
                vgg(pictures)[_VGG_LAYER].float() for pictures in (restored, target)
            )
            terms["perceptual"] = F.mse_loss(features, target_features)
        if "discriminator" in networks:
            discriminator = networks["discriminator"].requires_grad_(False)
            terms["gan"] = logistic_generator_loss(discriminator(restored))
        loss = weighted_sum(terms, vars(self.config.loss))
        yield "panini", loss, {f"panini/{n}": v.detach() for n, v in terms.items()}
        if "discriminator" in networks:
            discriminator.requires_grad_(True)
            real, fake = discriminator(target), discriminator(restored.detach())
            yield "discriminator", logistic_discriminator_loss(real, fake), {}

    @torch.no_grad()
    def preview(self, networks: Networks, batch: Batch) -> torch.Tensor:
        """Three rows: inputs, results, targets."""
        inputs, target = (batch[name][:PREVIEW_PICTURES] for name in ("input", "image"))
        restored = networks["panini"](inputs)
        return tile_rows(F.interpolate(inputs, target.shape[-2:]), restored, target)

    def export(self, networks: Networks, folder: Path) -> None:
        """Write a folder that ``build_enhancer`` loads."""
        files.write_folder(folder, unwrap(networks["panini"], ModelMixin).save_pretrained)


def _freeze_unused(network: PaniniNet) -> None:
    """Freeze the parameters that get no gradient: several processes would wait for it forever."""
    network.prior.mapping.requires_grad_(False)  # the encoder gives W+ itself
    if network.config.degradation == "encoder":
        network.degradation_encoder.projection.requires_grad_(False)  # for its pretraining
        if not network.config.interpolate:
            network.degradation_encoder.requires_grad_(False)
    elif not network.config.interpolate:
        network.degradation_vector.requires_grad_(False)
