"""Recipe: a face DDPM that predicts the noise, with fixed or learned variance.

The loss is the weighted error of ε (Ho et al. 2020, eq. 14; P2 weighting); with a learned
variance the variational bound is added (improved DDPM, §3.1, L_hybrid).

DR2 enters the chain at ω and never goes above it, so training may be limited to the
timesteps that will be used (``max_timestep``): a small network then spends nothing on
noise levels it will never see.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from dr2pipe.core import files
from dr2pipe.core.diffusers_types import UNet2DModel
from dr2pipe.core.errors import ConfigError
from dr2pipe.diffusion.pipeline import DR2Pipeline
from dr2pipe.diffusion.timesteps import build_scheduler
from dr2pipe.losses.diffusion import p2_weights, variational_bound
from dr2pipe.training.recipe import TrainConfig, TrainedNetwork
from dr2pipe.training.seeding import random_stream


@dataclass
class UNetConfig:
    """Sizes of the UNet; one channel count per resolution, from ``data.size`` downwards."""

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
    unet: UNetConfig = field(default_factory=UNetConfig)
    learning_rate: float = 4e-4
    num_train_timesteps: int = 1000
    max_timestep: int = 999  # the highest timestep trained on, inclusive
    variance: str = "fixed_small"  # fixed_small | fixed_large | learned_range (6 output channels)
    p2_k: float = 1.0
    p2_gamma: float = 0.0  # 0: all timesteps weigh the same; P2 weighting: 0.5 or 1
    export_precision: str = "fp32"  # fp32 | fp16


class DDPMRecipe:
    """ε-prediction on the linear schedule."""

    def __init__(self, config: DDPMConfig):
        if not 0 <= config.max_timestep < config.num_train_timesteps:
            raise ConfigError(
                f"max_timestep={config.max_timestep} must lie in 0..{config.num_train_timesteps - 1}"
            )
        if config.export_precision not in ("fp32", "fp16"):
            raise ConfigError(f"export_precision '{config.export_precision}': choose fp32 or fp16")
        self.config = config
        self.learns_variance = config.variance == "learned_range"
        self.scheduler = build_scheduler(
            "ddpm", variance=config.variance, num_train_timesteps=config.num_train_timesteps
        )
        self.weights = p2_weights(self.scheduler.alphas_cumprod, config.p2_k, config.p2_gamma)

    def build(self, generator: torch.Generator) -> dict[str, TrainedNetwork]:
        """Build ``unet``."""
        channels = 6 if self.learns_variance else 3
        with random_stream(generator):
            unet = build_unet(self.config.unet, self.config.data.size, out_channels=channels)
        optimizer = torch.optim.AdamW(
            unet.parameters(), lr=self.config.learning_rate, weight_decay=0.0
        )
        return {"unet": TrainedNetwork(unet, optimizer)}

    def step(self, networks: dict, batch: dict) -> Iterator[tuple[str, torch.Tensor, dict]]:
        clean = batch["image"]
        noise, timesteps = self._draw(batch["seed"].tolist(), clean.shape[1:])
        noise, timesteps = noise.to(clean.device), timesteps.to(clean.device)
        noisy = self.scheduler.add_noise(clean, noise, timesteps)
        predicted = networks["unet"](noisy, timesteps).sample.float()
        epsilon = predicted[:, :3]
        error = (epsilon - noise).square().mean(dim=(1, 2, 3))
        loss = (self.weights.to(clean.device)[timesteps] * error).mean()
        scalars = {"unet/epsilon": error.detach().mean()}
        if self.learns_variance:
            bound = variational_bound(
                clean,
                noisy,
                timesteps,
                epsilon.detach(),
                predicted[:, 3:],
                self.scheduler.alphas_cumprod,
            ).mean()
            # Estimated at one timestep of T, as rescale_learned_sigmas does.
            loss = loss + bound * (self.config.num_train_timesteps / 1000)
            scalars["unet/bound"] = bound.detach()
        yield "unet", loss, scalars

    @torch.no_grad()
    def preview(self, networks: dict, batch: dict) -> torch.Tensor:
        """Three rows: faces, the same noised to the middle of the range, their x0 estimate."""
        clean = batch["image"][:8].to(networks["unet"].device)
        noise, _ = self._draw(batch["seed"][:8].tolist(), clean.shape[1:])
        middle = torch.full((len(clean),), self.config.max_timestep // 2, device=clean.device)
        noisy = self.scheduler.add_noise(clean, noise.to(clean.device), middle)
        predicted = networks["unet"](noisy, middle).sample[:, :3]
        keep = self.scheduler.alphas_cumprod.to(clean.device)[middle][:, None, None, None]
        estimate = ((noisy - (1 - keep).sqrt() * predicted) / keep.sqrt()).clamp(-1, 1)
        rows = [torch.cat(list(row), dim=-1) for row in (clean, noisy.clamp(-1, 1), estimate)]
        return torch.cat(rows, dim=-2)

    def export(self, networks: dict, folder: Path) -> None:
        """A folder that ``DR2Pipeline.from_pretrained`` loads: unet/, scheduler/, model_index."""
        # DDIM suits few evaluations; a learned variance wants the sampler that uses it. The
        # configuration of a run may choose another.
        scheduler = self.scheduler
        if not self.learns_variance:
            scheduler = build_scheduler("ddim", num_train_timesteps=self.config.num_train_timesteps)
        unet = copy.deepcopy(networks["unet"])
        if self.config.export_precision == "fp16":
            unet.half()
        pipeline = DR2Pipeline(unet, scheduler, max_timestep=self.config.max_timestep)
        files.write_folder(folder, pipeline.save_pretrained)

    def _draw(self, seeds: list[int], shape: torch.Size) -> tuple[torch.Tensor, torch.Tensor]:
        noises, timesteps = [], []
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            noises.append(torch.randn(shape, generator=generator))
            timesteps.append(torch.randint(self.config.max_timestep + 1, (), generator=generator))
        return torch.stack(noises), torch.stack(timesteps)


def build_unet(config: UNetConfig, size: int, *, out_channels: int = 3) -> UNet2DModel:
    """A ``UNet2DModel`` for ``size`` x ``size`` RGB pictures: ε, or ε and variance (6 channels)."""
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
