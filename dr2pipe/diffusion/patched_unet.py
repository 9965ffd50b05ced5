"""A UNet that works on small patches of pixels instead of single pixels.

Every patch of ``patch`` x ``patch`` pixels becomes one place with ``3 * patch**2`` channels, so a
picture of 128 px costs what one of 64 px does. Noise, schedule and estimate still are those of
the pixels: rearranging them changes no value.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from dr2pipe.core.diffusers_types import (
    ConfigMixin,
    DDPMScheduler,
    ModelMixin,
    UNet2DModel,
    UNet2DOutput,
    register_to_config,
)
from dr2pipe.core.errors import ConfigError

CHANNELS = 3


class PatchedUNet(ModelMixin, ConfigMixin):
    """A ``UNet2DModel`` between pixel-unshuffle and pixel-shuffle; it predicts x0 ("sample").

    With ``data_deviation`` s > 0 the network gets the noisy picture at unit variance, and its
    output corrects the best linear estimate of x0 from one noisy pixel (Karras et al., EDM,
    NeurIPS 2022, table 1, written for a variance-preserving chain):

        x0 = k x_t + s sqrt((1 - alpha_bar) / v) F(x_t / sqrt(v), t)
        v = alpha_bar s**2 + 1 - alpha_bar,  k = sqrt(alpha_bar) s**2 / v

    So the noise that a patch holds need not pass through the network where there is little of
    it, and nothing is amplified where there is much. With 0 the network's output is x0 itself.

    Args:
        sample_size: side of the pictures in pixels.
        patch: side of a patch in pixels.
        channels: widths, one for each resolution, from ``sample_size / patch`` downwards.
        attention_sizes: sides of the feature maps with attention.
        data_deviation: s, the standard deviation of clean pictures in [-1,1].
        chain_timesteps, beta_start, beta_end, beta_schedule: the chain, as for a scheduler of
            diffusers; alpha_bar comes from it.
        in_channels, out_channels: 3; stated for code that reads them from any face DDPM.

    Raises:
        ConfigError: sizes that do not fit each other.
    """

    class_embedding = None

    @register_to_config
    def __init__(
        self,
        sample_size: int,
        patch: int = 2,
        channels: tuple[int, ...] = (64, 96, 160, 224),
        layers_per_block: int = 1,
        attention_sizes: tuple[int, ...] = (16, 8),
        attention_head_channels: int = 32,
        norm_groups: int = 8,
        dropout: float = 0.0,
        scale_shift: bool = False,
        data_deviation: float = 0.5,
        chain_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        in_channels: int = CHANNELS,
        out_channels: int = CHANNELS,
    ):
        super().__init__()
        if in_channels != CHANNELS or out_channels != CHANNELS:
            raise ConfigError(f"pictures have {CHANNELS} channels, not {in_channels}")
        deepest = patch << (len(channels) - 1)
        if sample_size % deepest:
            raise ConfigError(f"sample_size={sample_size} is no multiple of {deepest}")
        sizes = [sample_size // patch >> level for level in range(len(channels))]
        unknown = sorted(set(attention_sizes) - set(sizes))
        if unknown:
            raise ConfigError(f"attention_sizes {unknown} are none of the feature sizes {sizes}")
        kinds = ["Attn" if side in attention_sizes else "" for side in sizes]
        self.unet = UNet2DModel(
            sample_size=sizes[0],
            in_channels=CHANNELS * patch**2,
            out_channels=CHANNELS * patch**2,
            layers_per_block=layers_per_block,
            block_out_channels=tuple(channels),
            down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
            up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
            norm_num_groups=norm_groups,
            attn_norm_num_groups=norm_groups,
            attention_head_dim=attention_head_channels,
            dropout=dropout,
            resnet_time_scale_shift="scale_shift" if scale_shift else "default",
        )
        chain = DDPMScheduler(
            num_train_timesteps=chain_timesteps,
            beta_start=beta_start,
            beta_end=beta_end,
            beta_schedule=beta_schedule,
        )
        # No buffer: half precision would round it.
        self._alpha_bar = chain.alphas_cumprod.float()

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        """Estimate x0 of noisy pictures.

        Args:
            sample: x_t, (B,3,S,S), about [-1,1] and noise; S is a multiple of the patch times
                the UNet's deepest reduction.
            timestep: one for all pictures or (B,), indices into the chain.
            return_dict: an object with ``sample``; else a tuple.
            **kwargs: passed to ``UNet2DModel``.

        Returns:
            x0 in about [-1,1], (B,3,S,S), in the type of ``sample``.
        """
        patch, deviation = self.config.patch, self.config.data_deviation
        timesteps = torch.as_tensor(timestep, device=sample.device)
        if deviation == 0:
            estimate = self._run(sample, timesteps, patch, kwargs)
        else:
            alpha_bar = self._alpha_bar.to(sample.device)[timesteps.long()].reshape(-1, 1, 1, 1)
            variance = alpha_bar * deviation**2 + 1 - alpha_bar
            scaled = (sample.float() / variance.sqrt()).to(sample.dtype)
            correction = self._run(scaled, timesteps, patch, kwargs)
            keep = alpha_bar.sqrt() * deviation**2 / variance
            scale = deviation * ((1 - alpha_bar) / variance).sqrt()
            estimate = (keep * sample.float() + scale * correction.float()).to(sample.dtype)
        return UNet2DOutput(sample=estimate) if return_dict else (estimate,)

    def _run(
        self, pixels: torch.Tensor, timesteps: torch.Tensor, patch: int, kwargs: dict[str, Any]
    ) -> torch.Tensor:
        patches = F.pixel_unshuffle(pixels, patch)  # (B,3 p p,S/p,S/p)
        return F.pixel_shuffle(self.unet(patches, timesteps, **kwargs).sample, patch)
