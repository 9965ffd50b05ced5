"""Recipe: a face DDPM that predicts the noise or the clean face.

With ``prediction: epsilon`` the loss is the weighted error of ε (Ho et al. 2020, eq. 14; P2
weighting); with a learned variance the variational bound is added (improved DDPM, §3.1,
L_hybrid). With ``prediction: sample`` it is the error of x0, weighted by the signal-to-noise
ratio. Networks on patches (``unet.patch`` above 1) need the latter: ε would have to carry
twelve independent numbers a patch through the network.

DR2 enters the chain at ω and never goes above it, so training may be limited to the
timesteps that will be used (``max_timestep``): a small network then spends nothing on
noise levels it will never see.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dr2pipe.core import files
from dr2pipe.core.diffusers_types import UNet2DModel
from dr2pipe.core.errors import ConfigError
from dr2pipe.core.models import find_model
from dr2pipe.data.tones import ToneConfig
from dr2pipe.diffusion.dr2 import estimate_x0
from dr2pipe.diffusion.networks import load_ddpm
from dr2pipe.diffusion.noise import Philox
from dr2pipe.diffusion.patched_unet import PatchedUNet
from dr2pipe.diffusion.pipeline import DR2Pipeline
from dr2pipe.diffusion.timesteps import build_scheduler
from dr2pipe.losses.diffusion import p2_weights, snr_weights, variational_bound
from dr2pipe.training.checkpoints import check_same_settings
from dr2pipe.training.previews import PREVIEW_PICTURES, tile_rows
from dr2pipe.training.recipe import TrainConfig, TrainedNetwork

# What may change when a network is trained further. Without attn_norm_num_groups, norm_num_groups counts.
_FREE_OF_WEIGHTS = ("sample_size", "dropout", "attn_norm_num_groups")


@dataclass
class UNetConfig:
    """Sizes of the UNet; one channel count per resolution, from ``data.size / patch`` downwards."""

    patch: int = 1  # side of the patches of pixels that it works on; above 1 a PatchedUNet
    skip_deviation: float = 0.1  # of PatchedUNet, which explains it
    channels: list[int] = field(default_factory=lambda: [32, 64, 96, 128])
    layers_per_block: int = 1
    attention_sizes: list[int] = field(default_factory=lambda: [16, 8])  # feature map sides, px
    attention_head_channels: int = 32
    norm_groups: int = 8
    dropout: float = 0.0
    scale_shift: bool = False  # the timestep scales and shifts features, as in ADM, not only shifts
    resample_in_blocks: bool = False  # sizes change inside residual blocks, as in ADM


@dataclass
class DDPMConfig(TrainConfig):
    """Settings of the recipe ``ddpm``."""

    unet: UNetConfig = field(default_factory=UNetConfig)
    learning_rate: float = 4e-4
    beta2: float = 0.999  # of AdamW
    init: str | None = None  # name or folder of a model whose weights training starts from
    num_train_timesteps: int = 1000
    max_timestep: int = 999  # the highest timestep trained on, inclusive
    prediction: str = "epsilon"  # epsilon | sample (x0)
    variance: str = "fixed_small"  # fixed_small | fixed_large | learned_range (6 output channels)
    p2_k: float = 1.0  # of the error of epsilon
    p2_gamma: float = 0.0  # 0: all timesteps weigh the same; P2 weighting: 0.5 or 1
    snr_limit: float = 40.0  # of the error of x0, weighted by min(SNR, limit) + offset
    snr_offset: float = 2.0
    # Of a second, slower average of the weights, kept beside that of ema_decay; null: none.
    slow_ema_decay: float | None = None
    tones: ToneConfig = field(default_factory=ToneConfig)
    repeats: dict[str, int] = field(default_factory=dict)  # group of faces: showings in one pass
    export_precision: str = "fp32"  # fp32 | fp16


class DDPMRecipe:
    """A face DDPM on the linear schedule."""

    def __init__(self, config: DDPMConfig):
        _check(config)
        self.config = config
        self.learns_variance = config.variance == "learned_range"
        self.scheduler = build_scheduler(
            "ddpm", variance=config.variance, num_train_timesteps=config.num_train_timesteps
        )
        self._averaged_step = -1
        alpha_bar = self.scheduler.alphas_cumprod
        if config.prediction == "sample":
            self.weights = snr_weights(alpha_bar, config.snr_limit, config.snr_offset)
        else:
            self.weights = p2_weights(alpha_bar, config.p2_k, config.p2_gamma)

    def build(self) -> dict[str, TrainedNetwork]:
        """Build ``unet`` and, for the slower average, ``slow``."""
        config = self.config
        channels = 6 if self.learns_variance else 3
        unet = build_unet(config.unet, config.data.size, out_channels=channels)
        if config.init is not None:
            _copy_weights(find_model(config.init), unet, config.prediction)
        optimizer = torch.optim.AdamW(
            unet.parameters(),
            lr=config.learning_rate,
            betas=(0.9, config.beta2),
            weight_decay=0.0,
        )
        trained = {"unet": TrainedNetwork(unet, optimizer)}
        if config.slow_ema_decay is not None:
            slow = copy.deepcopy(unet).requires_grad_(False)
            trained["slow"] = TrainedNetwork(slow, None, ema=False)
        return trained

    def step(
        self, networks: dict[str, torch.nn.Module], batch: dict[str, Any]
    ) -> Iterator[tuple[str, torch.Tensor, dict[str, torch.Tensor]]]:
        """The loss of one batch."""
        decay = self.config.slow_ema_decay
        if decay is not None and batch["step"] != self._averaged_step:
            # Once before each update, however many parts it is accumulated from.
            self._averaged_step = batch["step"]
            update_average(networks["slow"], networks["unet"], decay, batch["step"])
        clean = batch["image"]
        noise, timesteps = self._draw(batch["seed"], clean)
        noisy = self.scheduler.add_noise(clean, noise, timesteps)
        predicted = networks["unet"](noisy, timesteps).sample.float()
        target = clean if self.config.prediction == "sample" else noise
        error = (predicted[:, :3] - target).square().mean(dim=(1, 2, 3))
        self.weights = self.weights.to(clean.device)  # once
        loss = (self.weights[timesteps] * error).mean()
        scalars = {f"unet/{self.config.prediction}": error.detach().mean()}
        if self.learns_variance:
            bound = variational_bound(
                clean,
                noisy,
                timesteps,
                predicted[:, :3].detach(),
                predicted[:, 3:],
                self.scheduler.alphas_cumprod,
            ).mean()
            # Estimated at one timestep of T, as rescale_learned_sigmas does.
            loss = loss + bound * (self.config.num_train_timesteps / 1000)
            scalars["unet/bound"] = bound.detach()
        yield "unet", loss, scalars

    @torch.no_grad()
    def preview(self, networks: dict[str, torch.nn.Module], batch: dict[str, Any]) -> torch.Tensor:
        """Rows of faces: clean, then noised and their x0 at two timesteps.

        The timesteps are a tenth and a half of the highest one.
        """
        unet = networks["unet"]
        clean = batch["image"][:PREVIEW_PICTURES].to(unet.device)
        noise, _ = self._draw(batch["seed"][:PREVIEW_PICTURES], clean)
        rows = [clean]
        for timestep in (self.config.max_timestep // 10, self.config.max_timestep // 2):
            t = torch.full((len(clean),), timestep, device=clean.device)
            noisy = self.scheduler.add_noise(clean, noise, t)
            output = unet(noisy, t).sample[:, :3].float()
            alpha_bar = self.scheduler.alphas_cumprod[timestep].to(clean.device)
            rows += [noisy, estimate_x0(noisy, output, alpha_bar, self.config.prediction)]
        return tile_rows(*rows)

    def export(self, networks: dict[str, torch.nn.Module], folder: Path) -> None:
        """Write a folder that ``DR2Pipeline.from_pretrained`` loads, and ``slow`` beside it.

        Each has unet/, scheduler/ and model_index.json; the slower average goes to
        ``<folder>_slow``.
        """
        export_model(self.config, networks["unet"], folder)
        if "slow" in networks:
            export_model(self.config, networks["slow"], folder.with_name(f"{folder.name}_slow"))

    def _draw(self, seeds: torch.Tensor, clean: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Noise like ``clean`` and timesteps (B,), by the seeds alone; drawn on its device."""
        philox = Philox(seeds, "ddpm")
        noise = philox.normal(clean.shape, clean.device)
        return noise, philox.integers(self.config.max_timestep + 1, clean.device)


@torch.no_grad()
def update_average(
    average: torch.nn.Module, network: torch.nn.Module, decay: float, step: int
) -> None:
    """Move ``average`` towards ``network``; the decay grows to its value as EMAModel's does."""
    decay = min(decay, (1 + step) / (10 + step))
    for mean, value in zip(average.parameters(), network.parameters(), strict=True):
        mean.lerp_(value.to(mean), 1 - decay)


def _check(config: DDPMConfig) -> None:
    """Raise ConfigError for settings that are not valid or do not fit each other."""
    if not 0 <= config.max_timestep < config.num_train_timesteps:
        raise ConfigError(
            f"max_timestep={config.max_timestep} must lie in 0..{config.num_train_timesteps - 1}"
        )
    if config.export_precision not in ("fp32", "fp16"):
        raise ConfigError(f"export_precision '{config.export_precision}': choose fp32 or fp16")
    if config.prediction not in ("epsilon", "sample"):
        raise ConfigError(f"prediction '{config.prediction}': choose epsilon or sample")
    if config.prediction == "sample" and config.variance == "learned_range":
        raise ConfigError("variance=learned_range needs prediction=epsilon")
    if config.prediction == "sample" and config.p2_gamma:
        raise ConfigError(f"p2_gamma={config.p2_gamma} weights the loss of prediction=epsilon")
    _check_unet(config.unet, config.data.size)
    if config.unet.patch > 1 and config.prediction != "sample":
        raise ConfigError(f"unet.patch={config.unet.patch} needs prediction=sample")
    if config.slow_ema_decay is not None and not 0 < config.slow_ema_decay < 1:
        raise ConfigError(f"slow_ema_decay={config.slow_ema_decay} must lie between 0 and 1")


def _check_unet(config: UNetConfig, size: int) -> None:
    """Raise ConfigError for sizes of which no network for pictures of ``size`` can be built."""
    channels, groups, head = config.channels, config.norm_groups, config.attention_head_channels
    for name in ("patch", "layers_per_block", "norm_groups"):
        if getattr(config, name) < 1:
            raise ConfigError(f"unet.{name}={getattr(config, name)} must be at least 1")
    if not channels or any(width < 1 or width % groups for width in channels):
        raise ConfigError(
            f"unet.channels={channels} must be one or more multiples of unet.norm_groups={groups}"
        )
    # The deepest features always have attention.
    sides = [size // config.patch >> level for level in range(len(channels))]
    attending = [
        w for w, side in zip(channels, sides, strict=True) if side in config.attention_sizes
    ]
    narrowest = min([*attending, channels[-1]])
    if not 1 <= head <= narrowest:
        raise ConfigError(
            f"unet.attention_head_channels={head} must lie in 1..{narrowest}, the fewest channels "
            f"of features with attention"
        )
    if not 0 <= config.dropout < 1:
        raise ConfigError(f"unet.dropout={config.dropout} must be at least 0 and below 1")


def _copy_weights(folder: Path, unet: UNet2DModel | PatchedUNet, prediction: str) -> None:
    """Load the weights of the DDPM in ``folder``; ConfigError where it is another network."""
    found = load_ddpm(folder)
    check_same_settings(found.unet, unet, f"init={folder}", free=_FREE_OF_WEIGHTS)
    scheduler = found.scheduler  # None beside a network alone
    predicts = prediction if scheduler is None else scheduler.config.prediction_type
    if predicts != prediction:
        raise ConfigError(f"init={folder} predicts {predicts}, not prediction={prediction}")
    unet.load_state_dict(found.unet.state_dict())


def export_model(config: DDPMConfig, unet: torch.nn.Module, folder: Path) -> None:
    """Write ``unet`` with a scheduler as a folder that ``DR2Pipeline.from_pretrained`` loads."""
    if not isinstance(unet, UNet2DModel | PatchedUNet):
        raise TypeError(f"a {type(unet).__name__} cannot be exported")
    # DDIM suits few evaluations; a learned variance wants the sampler that uses it. The
    # configuration of a run may choose another.
    name = "ddpm" if config.variance == "learned_range" else "ddim"
    scheduler = build_scheduler(
        name,
        variance=config.variance,
        num_train_timesteps=config.num_train_timesteps,
        prediction_type=config.prediction,
    )
    unet = copy.deepcopy(unet)
    if config.export_precision == "fp16":
        unet.half()
    pipeline = DR2Pipeline(unet, scheduler, max_timestep=config.max_timestep)
    files.write_folder(folder, pipeline.save_pretrained)


def build_unet(
    config: UNetConfig, size: int, *, out_channels: int = 3
) -> UNet2DModel | PatchedUNet:
    """A network for ``size`` x ``size`` RGB pictures; on single pixels a ``UNet2DModel``.

    ``out_channels`` is 3, or 6 for ε and its variance.
    """
    if config.patch > 1:
        return _build_patched_unet(config, size)
    sizes = [size >> level for level in range(len(config.channels))]
    if size % (1 << (len(config.channels) - 1)):
        raise ConfigError(
            f"data.size={size} cannot be halved {len(config.channels) - 1} times for "
            f"{len(config.channels)} unet.channels"
        )
    unknown = sorted(set(config.attention_sizes) - set(sizes))
    if unknown:
        raise ConfigError(f"unet.attention_sizes {unknown} are none of the feature sizes {sizes}")
    with_attention = [s in config.attention_sizes for s in sizes]
    resampling_block = "Resnet{}sampleBlock2D" if config.resample_in_blocks else "{}Block2D"
    down, up = (
        [f"Attn{way}Block2D" if a else resampling_block.format(way) for a in with_attention]
        for way in ("Down", "Up")
    )
    return UNet2DModel(
        sample_size=size,
        in_channels=3,
        out_channels=out_channels,
        layers_per_block=config.layers_per_block,
        block_out_channels=tuple(config.channels),
        down_block_types=tuple(down),
        up_block_types=tuple(reversed(up)),
        norm_num_groups=config.norm_groups,
        attn_norm_num_groups=config.norm_groups,
        downsample_type="resnet" if config.resample_in_blocks else "conv",
        upsample_type="resnet" if config.resample_in_blocks else "conv",
        resnet_time_scale_shift="scale_shift" if config.scale_shift else "default",
        attention_head_dim=config.attention_head_channels,
        dropout=config.dropout,
    )


def _build_patched_unet(config: UNetConfig, size: int) -> PatchedUNet:
    if config.resample_in_blocks:
        raise ConfigError("unet.resample_in_blocks needs unet.patch=1")
    return PatchedUNet(
        sample_size=size,
        patch=config.patch,
        channels=tuple(config.channels),
        layers_per_block=config.layers_per_block,
        attention_sizes=tuple(config.attention_sizes),
        attention_head_channels=config.attention_head_channels,
        norm_groups=config.norm_groups,
        dropout=config.dropout,
        scale_shift=config.scale_shift,
        skip_deviation=config.skip_deviation,
    )
