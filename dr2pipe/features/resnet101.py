"""The ResNet-101 that EXE-GAN compares identities with.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016 (§4.1, bottleneck units),
with the stride in the 3x3 convolution. Parameter names are those of the official file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from dr2pipe.core.diffusers_types import ConfigMixin, ModelMixin, register_to_config
from dr2pipe.core.errors import CheckpointError
from dr2pipe.core.model_folders import class_in_folder, load_network

FILE = "Arcface.pth"
SIZE = 112
_EXPANSION = 4  # a unit's output has this many times the channels of its 3x3 convolution


class IdentityResNet(ModelMixin, ConfigMixin):
    """Faces to identity vectors.

    Args:
        blocks: units of the four stages; (3,4,23,3) is the official file.
        channels: width of the vector.
    """

    @register_to_config
    def __init__(self, blocks: Sequence[int] = (3, 4, 23, 3), channels: int = 256):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        width_in = 64
        for stage, count in enumerate(blocks):
            layer, width = nn.Sequential(), 64 << stage
            for i in range(count):
                layer.append(Bottleneck(width_in, width, 2 if stage and i == 0 else 1))
                width_in = width * _EXPANSION
            self.add_module(f"layer{stage + 1}", layer)
        self.fc = nn.Linear(width_in, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B,3,H,W) RGB in [-1,1], any size, to (B,channels), not normalised."""
        x = F.interpolate(x, (SIZE, SIZE), mode="bilinear", align_corners=False)
        x = F.relu(self.bn1(self.conv1(x)))  # (B,64,56,56)
        x = F.max_pool2d(x, 3, 2, padding=1)  # (B,64,28,28)
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        vectors: torch.Tensor = self.fc(x.mean(dim=(2, 3)))  # from (B,C,4,4)
        return vectors


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a shortcut (He et al. 2016, figure 5)."""

    def __init__(self, width_in: int, width: int, stride: int):
        super().__init__()
        width_out = width * _EXPANSION
        self.conv1 = nn.Conv2d(width_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width_out)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or width_in != width_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(width_in, width_out, 1, stride, bias=False), nn.BatchNorm2d(width_out)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B,width_in,H,W) to (B,4·width,H/stride,W/stride)."""
        branch = F.relu(self.bn1(self.conv1(x)))
        branch = F.relu(self.bn2(self.conv2(branch)))
        return F.relu(self.bn3(self.conv3(branch)) + self.downsample(x))


def load_identity_resnet(path: str | Path | None) -> IdentityResNet:
    """A frozen network from a converted folder.

    Raises:
        CheckpointError: no such folder; the message says how to make one from the official file.
    """
    if path is None or class_in_folder(path) != IdentityResNet.__name__:
        raise CheckpointError(
            f"comparing identities needs a folder made from EXE-GAN's file {FILE} "
            f"({path or 'no path'} given): 'dr2pipe convert {FILE} FOLDER --kind resnet101_identity'"
        )
    return load_network(path, IdentityResNet).requires_grad_(False).eval()
