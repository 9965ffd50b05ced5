"""An encoder that describes how a picture is degraded.

Wang et al., "Panini-Net: GAN Prior Based Degradation-Aware Feature Interpolation for Face
Restoration", AAAI 2022, §3.2. It is trained without labels, by contrast: pictures with the same
degradation get similar vectors, others different ones (see
:mod:`dr2pipe.training.recipes.degradation_encoder`, and
:mod:`dr2pipe.training.recipes.degradation_grid` for what small machines can train). That training
compares projected vectors, which depend little on whose face it is. The vector before the
projection, which Panini-Net uses as published, still depends on it.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import nn

from dr2pipe.core.diffusers_types import ConfigMixin, ModelMixin, register_to_config


class DegradationEncoder(ModelMixin, ConfigMixin):
    """Six convolutions with batch normalisation, and the mean over all pixels.

    Args:
        width: channels of the first layers; the vector has four times as many.
        max_size: larger pictures are reduced to this side by averaging.
        projection_width: of the projected vector; None: that of the vector, as published. See
            ``scripts/research/narrow_encoder.py``.
    """

    @register_to_config
    def __init__(self, width: int = 64, max_size: int = 256, projection_width: int | None = None):
        super().__init__()
        widths = (3, width, width, 2 * width, 2 * width, 4 * width, 4 * width)
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for i, (width_in, width_out) in enumerate(itertools.pairwise(widths)):
            stride = 2 if i in (2, 4) else 1
            self.convs.append(nn.Conv2d(width_in, width_out, 3, stride, padding=1))
            self.norms.append(nn.BatchNorm2d(width_out))
        last = widths[-1]
        self.projection = nn.ModuleList(
            [nn.Linear(last, last), nn.Linear(last, projection_width or last)]
        )

    @property
    def channels(self) -> int:
        """Width of the vector."""
        return 4 * int(self.config.width)

    def forward(self, x: torch.Tensor, *, projected: bool = False, groups: int = 1) -> torch.Tensor:
        """(B,3,H,W) RGB in [-1,1] to the degradation vector (B,channels).

        Args:
            x: pictures.
            projected: pass the vector through :meth:`project` as well.
            groups: while training, batch normalisation takes this many groups of consecutive
                pictures, each by itself.
        """
        if max(x.shape[-2:]) > self.config.max_size:
            x = F.adaptive_avg_pool2d(x, self.config.max_size)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            parts = conv(x).chunk(groups) if self.training else [conv(x)]
            x = F.leaky_relu(torch.cat([norm(part) for part in parts]), 0.1)  # (B,C,H',W')
        vector = x.mean(dim=(2, 3))  # (B,channels)
        return self.project(vector) if projected else vector

    def project(self, vector: torch.Tensor) -> torch.Tensor:
        """(B,channels) to what the contrastive loss compares, (B,projection_width)."""
        hidden, out = self.projection
        projected: torch.Tensor = out(F.leaky_relu(hidden(vector), 0.1))
        return projected
