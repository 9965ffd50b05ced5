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
_DATA_DEVIATION = 0.5  # of face pictures in [-1,1]


class PatchedUNet(ModelMixin, ConfigMixin):
    """A ``UNet2DModel`` between pixel-unshuffle and pixel-shuffle; it predicts x0 ("sample").

    The network gets the noisy picture at unit variance. Its output F has unit variance too and
    corrects the share a of the noisy picture that is kept (after EDM, Karras et al., NeurIPS
    2022, section 5, with two deviations in place of one):

        x0 = a x_t / sqrt(alpha_bar) + c F(x_t / sqrt(d**2 alpha_bar + 1 - alpha_bar), t)
        a = s**2 / (s**2 + sigma**2),  c**2 = ((1 - a) d)**2 + (a sigma)**2
        sigma**2 = (1 - alpha_bar) / alpha_bar,  d = 0.5 (deviation of faces in [-1,1])

    s, the ``skip_deviation``, is how much a pixel differs from what its neighbours predict. It
    decides how much of the noise must pass through the network to be removed. With s = d that is EDM,
    with s = 1 nearly v; both leave the twelve independent numbers that the noise has in a patch
    to the network, and learn to remove it slowly. Faces lie on few dimensions, so F is mostly
    the face where a is small. With s = 0 the network has to draw the finest detail itself.

    Args:
        sample_size: side of the pictures in pixels.
        patch: side of a patch in pixels.
        channels: widths, one for each resolution, from ``sample_size / patch`` downwards.
        attention_sizes: sides of the feature maps with attention.
        skip_deviation: s, in the unit of pixels in [-1,1].
        chain_timesteps, beta_start, beta_end, beta_schedule: the chain, as for a scheduler of
            diffusers; alpha_bar comes from it.
        in_channels: 3; 6 where the network sees a second picture, which stays as it is.
        out_channels: 3; stated for code that reads it from any face DDPM.
        num_class_embeds: number of classes that it is told; None for none.

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
        skip_deviation: float = 0.1,
        chain_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        in_channels: int = CHANNELS,
        out_channels: int = CHANNELS,
        num_class_embeds: int | None = None,
    ):
        super().__init__()
        if in_channels not in (CHANNELS, 2 * CHANNELS) or out_channels != CHANNELS:
            raise ConfigError(
                f"in_channels={in_channels} must be {CHANNELS} or {2 * CHANNELS}, and "
                f"out_channels={out_channels} must be {CHANNELS}"
            )
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
            in_channels=in_channels * patch**2,
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
            num_class_embeds=num_class_embeds,
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
                the UNet's deepest reduction. With six channels, the last three are the second
                picture, in about [-1,1].
            timestep: one for all pictures or (B,), indices into the chain.
            return_dict: an object with ``sample``; else a tuple.
            **kwargs: passed to ``UNet2DModel``.

        Returns:
            x0 in about [-1,1], (B,3,S,S), in the type of ``sample``.
        """
        self._alpha_bar = self._alpha_bar.to(sample.device)  # once
        x, second = sample[:, :CHANNELS].float(), sample[:, CHANNELS:]
        alpha_bar = self._alpha_bar
        timesteps = torch.as_tensor(timestep, device=sample.device)
        alpha_bar = alpha_bar[timesteps.long()].reshape(-1, 1, 1, 1)
        noise_variance = (1 - alpha_bar) / alpha_bar
        share = self.config.skip_deviation**2 / (self.config.skip_deviation**2 + noise_variance)
        scale = (((1 - share) * _DATA_DEVIATION) ** 2 + share**2 * noise_variance).sqrt()
        given = x / (_DATA_DEVIATION**2 * alpha_bar + 1 - alpha_bar).sqrt()
        seen = torch.cat([given.to(sample.dtype), second], dim=1)
        patches = F.pixel_unshuffle(seen, self.config.patch)  # (B,12,S/2,S/2) for patches of two
        correction = self.unet(patches, timesteps, **kwargs).sample
        correction = F.pixel_shuffle(correction, self.config.patch).float()  # (B,3,S,S)
        estimate = (share * x / alpha_bar.sqrt() + scale * correction).to(sample.dtype)
        return UNet2DOutput(sample=estimate) if return_dict else (estimate,)
