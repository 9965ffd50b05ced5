"""Recipe: GFP-GAN with every loss of the paper (Wang et al. 2021, §3.4).

What the published code does by accident is not repeated: crops of the face parts keep their
values at every size, mirrored landmarks are mirrored about the picture's middle, and degradations
follow the showing, not the worker process.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dr2pipe.core import files
from dr2pipe.core.errors import ConfigError
from dr2pipe.enhancers import build_enhancer
from dr2pipe.features.arcface import load_arcface, to_grey
from dr2pipe.features.vgg import load_vgg
from dr2pipe.losses.adversarial import logistic_discriminator_loss, logistic_generator_loss
from dr2pipe.losses.face_parts import PARTS, component_style_loss, crop_parts
from dr2pipe.losses.identity import identity_loss
from dr2pipe.losses.perceptual import perceptual_loss, style_loss
from dr2pipe.losses.reconstruction import pixel_loss, pyramid_loss
from dr2pipe.stylegan2 import FacePartDiscriminator, StyleGAN2Discriminator
from dr2pipe.training.gan import discriminator_step, draw_noises
from dr2pipe.training.recipe import TrainConfig, Trained
from dr2pipe.training.recipes.enhancer import PairsConfig

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
    pairs: PairsConfig = field(default_factory=PairsConfig)
    landmarks: str | None = None  # csv or .pth, see data/landmarks.py; for the face parts
    landmarks_size: int = 512  # side in pixels of the faces that the csv speaks of
    gfpgan: dict[str, Any] = field(default_factory=dict)  # without size, which data.size tells
    prior: str | None = None  # folder of a StyleGAN2 generator
    train_prior: bool = False
    discriminator: dict[str, Any] = field(default_factory=dict)
    discriminator_weights: str | None = None  # folder to begin from
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
                f"GFP-GAN takes faces of the size it makes: pairs.input_size="
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

    def build(self) -> dict[str, Trained]:
        config = self.config
        torch.manual_seed(config.seed)
        size, rate = config.data.size, config.learning_rate
        network = build_enhancer("gfpgan", size=size, **config.gfpgan).train()
        if config.prior is not None:
            load_same(network.prior, config.prior)
        network.prior.requires_grad_(config.train_prior)
        if network.config.latent_is_w:  # the mapping network is not used then
            network.prior.mapping.requires_grad_(False)
        learned = [p for p in network.parameters() if p.requires_grad]
        trained = {"gfpgan": Trained(network, torch.optim.Adam(learned, rate, (0.0, 0.99)))}
        if config.loss.gan > 0:
            discriminator = StyleGAN2Discriminator(size=size, **config.discriminator)
            if config.discriminator_weights is not None:
                load_same(discriminator, config.discriminator_weights)
            # For a penalty in every r1_every_steps-th step alone, as StyleGAN2 (§3.1).
            share = config.loss.r1_every_steps / (config.loss.r1_every_steps + 1)
            betas = (0.0, 0.99**share)
            optimizer = torch.optim.Adam(discriminator.parameters(), rate * share, betas)
            trained["discriminator"] = Trained(discriminator, optimizer, ema=False)
        if self.uses_parts:
            for name in PARTS:
                part = FacePartDiscriminator()
                betas = tuple(config.component_betas)
                optimizer = torch.optim.Adam(part.parameters(), rate, betas)
                trained[name] = Trained(part, optimizer, ema=False)
        return trained

    def step(self, networks: dict, batch: dict) -> Iterator[tuple[str, torch.Tensor, dict]]:
        target = batch["image"]
        sizes = getattr(networks["gfpgan"], "module", networks["gfpgan"]).prior.noise_sizes
        noise = draw_noises(batch["seed"].tolist(), sizes, target.device)
        restored, pyramid = networks["gfpgan"](batch["input"], noise=noise, return_pyramid=True)
        restored, pyramid = restored.float(), [p.float() for p in pyramid]
        crops = real_crops = {}
        if self.uses_parts:
            crops = crop_parts(restored, batch["parts"])
            real_crops = crop_parts(target, batch["parts"])
        terms = self._generator_terms(networks, restored, target, crops, real_crops)
        if batch["step"] < self.config.loss.pyramid_until_step:
            # The smallest pictures come first; each is compared with the face at its size.
            terms["pyramid"] = pyramid_loss(pyramid, target)
        else:  # the U-Net's pictures lead nowhere then, which several processes may not do
            terms["pyramid"] = 0 * sum(p.mean() for p in pyramid)
        loss = sum(getattr(self.config.loss, name) * value for name, value in terms.items())
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
        networks: dict,
        restored: torch.Tensor,
        target: torch.Tensor,
        crops: dict[str, torch.Tensor],
        real_crops: dict[str, torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        terms = {"pixel": pixel_loss(restored, target)}
        if self.vgg is not None:
            vgg = self.vgg.to(target.device)
            made = {name: maps.float() for name, maps in vgg(restored).items()}
            wanted = {name: maps.float() for name, maps in vgg(target).items()}
            terms["perceptual"] = perceptual_loss(made, wanted, _VGG_LAYERS)
            terms["style"] = style_loss(made, wanted, _VGG_LAYERS)
        if "discriminator" in networks:
            discriminator = networks["discriminator"].requires_grad_(False)
            terms["gan"] = logistic_generator_loss(discriminator(restored))
        if self.uses_parts:
            terms["component"] = terms["component_style"] = 0.0
            for name in PARTS:
                discriminator = networks[name].requires_grad_(False)
                score, made = discriminator(crops[name])
                _, wanted = discriminator(real_crops[name])
                terms["component"] = terms["component"] + logistic_generator_loss(score)
                terms["component_style"] = terms["component_style"] + component_style_loss(
                    [maps.float() for maps in made], [maps.float() for maps in wanted]
                )
        if self.arcface is not None:
            arcface = self.arcface.to(target.device)
            made, wanted = arcface(to_grey(restored)), arcface(to_grey(target))
            terms["identity"] = identity_loss(made.float(), wanted.float())
        return terms

    @torch.no_grad()
    def preview(self, networks: dict, batch: dict) -> torch.Tensor:
        """Three rows: inputs, results, targets."""
        given, target = batch["input"][:8], batch["image"][:8]
        restored = networks["gfpgan"](given).float()
        rows = (given, restored, target)
        return torch.cat([torch.cat(list(row.clamp(-1, 1)), dim=-1) for row in rows], dim=-2)

    def export(self, networks: dict, folder: Path) -> None:
        """A folder that ``build_enhancer`` loads."""
        files.write_folder(folder, networks["gfpgan"].save_pretrained)


def load_same(network: torch.nn.Module, folder: str | Path, *, without: str | None = None) -> None:
    """Copy the weights of a native folder into ``network``.

    Args:
        without: a part that stays as it is; its settings, whose names begin with its own, may
            differ.

    Raises:
        ConfigError: no such folder, or a network of another size or shape.
    """
    folder, kind = Path(folder), type(network)
    if not (folder / "config.json").is_file():
        raise ConfigError(f"no {kind.__name__} folder at {folder} (config.json is missing)")
    made_by = json.loads((folder / "config.json").read_text()).get("_class_name")
    if made_by != kind.__name__:
        raise ConfigError(f"{folder} holds a {made_by}, not a {kind.__name__}")
    found = kind.from_pretrained(folder)
    ignored = ("_",) if without is None else ("_", f"{without}_")
    differing = [
        f"{key}={found.config.get(key)} instead of {value}"
        for key, value in network.config.items()
        if not key.startswith(ignored) and found.config.get(key) != value
    ]
    if differing:
        raise ConfigError(f"{folder} does not fit: {', '.join(differing)}")
    weights = found.state_dict()
    if without is not None:
        weights = {k: v for k, v in weights.items() if not k.startswith(f"{without}.")}
    network.load_state_dict(weights, strict=without is None)
