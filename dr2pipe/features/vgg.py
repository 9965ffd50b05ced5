"""VGG features without torchvision: its state dicts are loaded by path.

Simonyan and Zisserman, "Very Deep Convolutional Networks", ICLR 2015, configurations D and E.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from dr2pipe.core.errors import CheckpointError, ConfigError
from dr2pipe.features.weights import read_weights

# Convolutions per stage; every stage ends in a 2x2 maximum and has the width below.
_STAGES = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
_WIDTHS = (64, 128, 256, 512, 512)
# torchvision's files; the name ends with the first digits of the sha256.
FILES = {"vgg16": "vgg16-397923af.pth", "vgg19": "vgg19-dcbb9e9d.pth"}
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class VGGFeatures(nn.Module):
    """Named feature maps (``conv3_4``: before its ReLU, ``relu3_4``: after it).

    Args:
        name: ``vgg16`` or ``vgg19``.
        layers: the maps to return.

    Raises:
        ConfigError: an unknown network, or a layer that it does not have.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, name: str = "vgg19", layers: Sequence[str] = ("conv5_4",)):
        super().__init__()
        if name not in _STAGES:
            raise ConfigError(f"unknown network '{name}'; choose {', '.join(_STAGES)}")
        self.convolutions = nn.ModuleDict()
        width_in = 3
        for stage, (count, width) in enumerate(zip(_STAGES[name], _WIDTHS, strict=True), 1):
            for i in range(1, count + 1):
                self.convolutions[f"conv{stage}_{i}"] = nn.Conv2d(width_in, width, 3, padding=1)
                width_in = width
        known = [n.replace("conv", kind) for n in self.convolutions for kind in ("conv", "relu")]
        unknown = [layer for layer in layers if layer not in known]
        if unknown:
            raise ConfigError(
                f"{name} has no layer {', '.join(unknown)}; it has {', '.join(known)}"
            )
        self.name, self.layers = name, tuple(layers)
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B,3,H,W) RGB in [-1,1] to the maps (B,C,h,w) of ``layers`` by name."""
        x = ((x + 1) / 2 - self.mean) / self.std
        found, remaining = {}, set(self.layers)
        for name, convolution in self.convolutions.items():
            if name.endswith("_1") and name != "conv1_1":
                x = F.max_pool2d(x, 2)
            x = convolution(x)
            for kind in ("conv", "relu"):
                if kind == "relu":
                    x = F.relu(x)
                key = name.replace("conv", kind)
                if key in remaining:
                    found[key] = x
                    remaining.discard(key)
            if not remaining:
                return found
        return found


def load_vgg(
    path: str | Path | None, name: str = "vgg19", layers: Sequence[str] = ("conv5_4",)
) -> VGGFeatures:
    """VGG with torchvision's weights from ``path``.

    Raises:
        CheckpointError: no such file, or one that holds another network; the message names the
            file to get.
    """
    file = FILES.get(name, name)
    if path is None or not Path(path).is_file():
        raise CheckpointError(
            f"{name} needs torchvision's file {file} ({path or 'no path'} given): "
            f"torchvision.models.{name}(weights='IMAGENET1K_V1') downloads it into torch's cache, "
            f"hub/checkpoints; its sha256 begins with {file.split('-')[-1][:8]}"
        )
    network = VGGFeatures(name, layers)
    weights = read_weights(path)
    # torchvision numbers the convolutions, ReLUs and poolings of `features` consecutively.
    place = 0
    for key, convolution in network.convolutions.items():
        if key.endswith("_1") and key != "conv1_1":
            place += 1
        for part in ("weight", "bias"):
            stored = weights.get(f"features.{place}.{part}")
            parameter = getattr(convolution, part)
            if stored is None or stored.shape != parameter.shape:
                raise CheckpointError(f"{path} is not {name}: features.{place}.{part} does not fit")
            parameter.data.copy_(stored)
        place += 2
    return network
