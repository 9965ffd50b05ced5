"""Features of a face DDPM: what its decoder sees in a picture with a little noise.

Baranchuk et al., "Label-Efficient Semantic Segmentation with Diffusion Models", ICLR 2022: the
decoder's activations at small timesteps describe a picture. The network knows faces, and its
weights may be given away with what was trained by it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dr2pipe.core.diffusers_types import ModelMixin, UNet2DModel
from dr2pipe.core.errors import ConfigError
from dr2pipe.diffusion.networks import FaceDDPM
from dr2pipe.diffusion.patched_unet import PatchedUNet
from dr2pipe.diffusion.timesteps import build_scheduler


class UNetFeatures(nn.Module):
    """Outputs of the decoder's blocks, ``up_0`` (the coarsest) and on; the network is frozen.

    Args:
        ddpm: a face DDPM; its network is changed to evaluation mode.
        timestep: how much noise the pictures get, an index of the network's chain.

    Raises:
        ConfigError: a timestep that the network was not trained on, or a network of another kind.
    """

    def __init__(self, ddpm: FaceDDPM, timestep: int):
        super().__init__()
        scheduler = ddpm.scheduler or build_scheduler("ddpm")
        last = int(scheduler.config.num_train_timesteps) - 1
        last = last if ddpm.max_timestep is None else min(last, ddpm.max_timestep)
        if not 0 <= timestep <= last:
            raise ConfigError(f"the timestep {timestep} must lie in 0..{last}")
        self.network: ModelMixin = ddpm.unet
        inner: Any = ddpm.unet.unet if isinstance(ddpm.unet, PatchedUNet) else ddpm.unet
        if not isinstance(inner, UNet2DModel):
            raise ConfigError(f"features of a {type(inner).__name__} are not known")
        self._found: dict[str, torch.Tensor] = {}
        for place, block in enumerate(inner.up_blocks):
            block.register_forward_hook(self._keep(f"up_{place}"))
        self.timestep = timestep
        self.alpha_bar = float(scheduler.alphas_cumprod[timestep])
        self.requires_grad_(False).eval()

    def _keep(self, name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: torch.Tensor) -> None:
            self._found[name] = output

        return hook

    def forward(self, x: torch.Tensor, noise: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B,3,S,S) RGB in [-1,1] to the maps (B,C,h,w) by name.

        Args:
            x: S is a multiple of what the network needs; other sides than those of its training
                are possible.
            noise: (B,3,S,S), standard normal. Pictures that are compared need the same.
        """
        noisy = self.alpha_bar**0.5 * x + (1 - self.alpha_bar) ** 0.5 * noise  # (B,3,S,S)
        self.network(noisy, self.timestep)
        found, self._found = self._found, {}
        return found
