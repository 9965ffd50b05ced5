"""Recipe: an enhancer on coarse faces and degradations (SPARNetHD's objective, or plain L1)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from dr2pipe.core import files, images
from dr2pipe.core.diffusers_types import ConfigMixin
from dr2pipe.core.errors import ConfigError
from dr2pipe.core.models import find_model
from dr2pipe.enhancers import ENHANCERS, SHARP, Enhancer, build_enhancer
from dr2pipe.losses.adversarial import (
    feature_matching_loss,
    hinge_discriminator_loss,
    hinge_generator_loss,
)
from dr2pipe.losses.reconstruction import pixel_loss
from dr2pipe.losses.total import weighted_sum
from dr2pipe.training.checkpoints import check_same_settings
from dr2pipe.training.gan import MultiScaleDiscriminator
from dr2pipe.training.perceptual import (
    PerceptualConfig,
    PerceptualLoss,
    check_square,
    random_squares,
)
from dr2pipe.training.previews import PREVIEW_PICTURES, tile_rows
from dr2pipe.training.recipe import (
    Batch,
    Loss,
    Networks,
    PairsConfig,
    TrainConfig,
    TrainedNetwork,
    betas_of,
)


@dataclass
class NetworkConfig:
    """The enhancer: its name in ``ENHANCERS`` and its options."""

    name: str = "sparnet"
    options: dict[str, Any] = field(default_factory=dict)
    spectral_norm: bool = False  # of every convolution while training; exported weights are plain
    initial_std: float | None = None  # of convolution weights; null: torch's own initialisation


@dataclass
class LossConfig(PerceptualConfig):
    """Weights; a weight of 0 switches a loss and what it needs off."""

    pixel: float = 1.0
    gan: float = 0.0
    feature_matching: float = 0.0
    # The discriminators see a random square of this side; null: the picture.
    adversarial_px: int | None = None


@dataclass
class DiscriminatorConfig:
    """See :class:`dr2pipe.training.gan.MultiScaleDiscriminator`."""

    scales: int = 3
    width: int = 64
    halvings: int = 4


@dataclass
class EnhancerTrainConfig(TrainConfig):
    """Settings of the recipe."""

    pairs: PairsConfig = field(default_factory=PairsConfig)
    enhancer: NetworkConfig = field(default_factory=NetworkConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    learning_rate: float = 1e-4
    discriminator_learning_rate: float = 4e-4
    betas: list[float] = field(default_factory=lambda: [0.5, 0.99])
    init: str | None = None  # name or folder of an enhancer whose weights training starts from
    # As init, of a faithful enhancer: final/ holds it with the trained one as its sharp variant.
    sharp_of: str | None = None
    export_precision: str = "fp32"  # fp32 | fp16


class EnhancerRecipe:
    """Any enhancer of ``ENHANCERS`` that takes a face alone and gives the size of the training faces.

    GFP-GAN, Panini-Net and VQFR have recipes of their own; here they train on one process.
    """

    def __init__(self, config: EnhancerTrainConfig):
        self.config = config
        if config.enhancer.name not in ENHANCERS:
            build_enhancer(config.enhancer.name)  # raises, naming the valid ones
        conditions = ENHANCERS[config.enhancer.name].conditions
        if conditions:
            raise ConfigError(
                f"enhancer.name={config.enhancer.name} takes {' and '.join(conditions)} besides a "
                "face: train it by a recipe of its own (configs/train)"
            )
        if config.export_precision not in ("fp32", "fp16"):
            raise ConfigError(f"export_precision '{config.export_precision}': choose fp32 or fp16")
        self.adversarial = config.loss.gan > 0 or config.loss.feature_matching > 0
        if config.init is not None and config.sharp_of is not None:
            raise ConfigError("sharp_of starts from that enhancer; leave init out")
        seen = config.discriminator
        if min(seen.scales, seen.width, seen.halvings) < 1:
            raise ConfigError("scales, width and halvings of the discriminator must be at least 1")
        check_square("loss.adversarial_px", config.loss.adversarial_px)
        self.perceptual = None
        if config.loss.perceptual > 0:
            self.perceptual = PerceptualLoss(config.loss)

    def build(self) -> dict[str, TrainedNetwork]:
        """Build ``enhancer``, and ``discriminator`` where a loss needs it."""
        config = self.config
        if config.enhancer.options.get("add_input") and (
            config.enhancer.spectral_norm or config.enhancer.initial_std is not None
        ):
            raise ConfigError(
                "add_input begins with a last convolution of zeros, which enhancer.spectral_norm "
                "and enhancer.initial_std cannot have"
            )
        enhancer = build_enhancer(config.enhancer.name, **config.enhancer.options).train()
        if (start := config.sharp_of or config.init) is not None:
            self._copy_weights(start, enhancer)
        _prepare_convolutions(enhancer, config.enhancer)
        if enhancer.output_size not in (None, config.data.size):
            raise ConfigError(
                f"the enhancer makes {enhancer.output_size}-pixel faces, data.size is "
                f"{config.data.size}; set enhancer.options.size"
            )
        betas = betas_of("betas", config.betas)
        parameters = [p for p in enhancer.parameters() if p.requires_grad]
        if not parameters:
            raise ConfigError(f"the enhancer '{config.enhancer.name}' has nothing to train")
        trained = {
            "enhancer": TrainedNetwork(
                enhancer, torch.optim.Adam(parameters, lr=config.learning_rate, betas=betas)
            )
        }
        self.input_size: int | None = enhancer.input_size
        if self.adversarial:
            d = config.discriminator
            network = MultiScaleDiscriminator(d.scales, d.width, d.halvings)
            side = config.loss.adversarial_px or config.data.size
            if side < network.least_side_px:
                raise ConfigError(
                    f"these discriminators need {network.least_side_px} pixels a side, not {side}; "
                    "set a smaller discriminator.halvings or a larger loss.adversarial_px"
                )
            optimizer = torch.optim.Adam(
                network.parameters(), lr=config.discriminator_learning_rate, betas=betas
            )
            trained["discriminator"] = TrainedNetwork(network, optimizer, ema=False)
        return trained

    def step(self, networks: Networks, batch: Batch) -> Iterator[Loss]:
        """Yield the enhancer's loss, then the discriminator's."""
        target = batch["image"]
        restored = networks["enhancer"](self._resized(batch["input"])).float()
        terms = {"pixel": pixel_loss(restored, target)}
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual(
                restored, target, batch["seed"].tolist(), self.config.precision
            )
        if self.adversarial:
            fake, real = random_squares(
                restored, target, self.config.loss.adversarial_px, batch["seed"].tolist()
            )
            discriminator = networks["discriminator"].requires_grad_(False)
            fake_scores, fake_maps = discriminator(fake)
            _, real_maps = discriminator(real)
            terms["gan"] = hinge_generator_loss(fake_scores)
            terms["feature_matching"] = feature_matching_loss(real_maps, fake_maps)
        loss = weighted_sum(terms, vars(self.config.loss))
        yield "enhancer", loss, {f"enhancer/{n}": v.detach() for n, v in terms.items()}
        if self.adversarial:
            discriminator.requires_grad_(True)
            fake_scores, _ = discriminator(fake.detach())
            real_scores, _ = discriminator(real)
            yield "discriminator", hinge_discriminator_loss(real_scores, fake_scores), {}

    @torch.no_grad()
    def preview(self, networks: Networks, batch: Batch) -> torch.Tensor:
        """Three rows: inputs, results, targets."""
        inputs = self._resized(batch["input"][:PREVIEW_PICTURES])
        restored = networks["enhancer"](inputs)
        shown = images.resize_tensor(inputs, self.config.data.size)
        return tile_rows(shown, restored, batch["image"][:PREVIEW_PICTURES])

    def export(self, networks: Networks, folder: Path) -> None:
        """Write a folder that ``build_enhancer`` loads; with ``sharp_of``, of both variants."""
        trained = copy.deepcopy(networks["enhancer"]).eval()
        if self.config.enhancer.spectral_norm:
            for module in _convolutions(trained):
                parametrize.remove_parametrizations(module, "weight")
        exported: dict[str, torch.nn.Module] = {".": trained}
        if self.config.sharp_of is not None:
            exported = {".": self._load(self.config.sharp_of), SHARP: trained}
        files.write_folder(folder, lambda path: self._save(exported, Path(path)))

    def _save(self, exported: dict[str, torch.nn.Module], folder: Path) -> None:
        for name, network in exported.items():
            fresh = build_enhancer(self.config.enhancer.name, **self.config.enhancer.options)
            fresh.load_state_dict(network.state_dict())
            if self.config.export_precision == "fp16":
                fresh.half()
            fresh.save_pretrained(folder / name)

    def _load(self, model: str) -> Enhancer:
        return build_enhancer(self.config.enhancer.name, find_model(model))

    def _copy_weights(self, model: str, enhancer: Enhancer) -> None:
        """Load the weights of ``model``; ConfigError where it is another network."""
        if self.config.enhancer.initial_std is not None:
            raise ConfigError("enhancer.initial_std would replace the weights that init gives")
        start = self._load(model)
        check_same_settings(start, enhancer, model)
        enhancer.load_state_dict(start.state_dict())

    def _resized(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pictures at the enhancer's input size, resized as a restorer does it."""
        if self.input_size is None:
            return pictures
        return images.resize_tensor(pictures, self.input_size)


def _prepare_convolutions(network: torch.nn.Module, config: NetworkConfig) -> None:
    for module in _convolutions(network):
        if config.initial_std is not None:
            torch.nn.init.normal_(module.weight, std=config.initial_std)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
        if config.spectral_norm:
            spectral_norm(module)
    if config.spectral_norm and isinstance(network, ConfigMixin):
        # A checkpoint without it must not be taken for one of this network.
        network.register_to_config(spectral_norm=True)


def _convolutions(network: torch.nn.Module) -> list[torch.nn.Conv2d]:
    return [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)]
