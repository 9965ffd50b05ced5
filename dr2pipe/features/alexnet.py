"""AlexNet features without torchvision: its state dict is loaded by path.

Krizhevsky, "One weird trick for parallelizing convolutional neural networks", arXiv 1404.5997.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from dr2pipe.core.errors import CheckpointError
from dr2pipe.features.weights import read_weights

FILE = (
    "alexnet-owt-7be5be79.pth"  # torchvision's; the name ends with the first digits of the sha256
)
LAYERS = ("relu1", "relu2", "relu3", "relu4", "relu5")
WIDTHS = (64, 192, 384, 256, 256)
LEAST_SIDE_PX = 31  # smaller pictures leave the second maximum nothing
_KERNELS, _STRIDES, _PADDINGS = (11, 5, 3, 3, 3), (4, 1, 1, 1, 1), (2, 2, 1, 1, 1)
_AFTER_A_MAXIMUM = (1, 2)  # these convolutions see 3x3 maxima at every second place
_PLACES = (0, 3, 6, 8, 10)  # of the convolutions in torchvision's `features`


class AlexFeatures(nn.Module):
    """The five feature maps after the ReLUs, ``relu1`` to ``relu5``; weights frozen."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleDict()
        sizes = zip(LAYERS, (3, *WIDTHS[:-1]), WIDTHS, _KERNELS, _STRIDES, _PADDINGS, strict=True)
        for layer, width_in, width, kernel, stride, padding in sizes:
            name = layer.replace("relu", "conv")
            self.convolutions[name] = nn.Conv2d(width_in, width, kernel, stride, padding)
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.ones(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B,3,H,W) RGB in [-1,1] to the maps (B,C,h,w) by name; H, W ≥ ``LEAST_SIDE_PX``."""
        x = ((x + 1) / 2 - self.mean) / self.std
        found = {}
        for i, convolution in enumerate(self.convolutions.values()):
            if i in _AFTER_A_MAXIMUM:
                x = F.max_pool2d(x, 3, stride=2)
            found[LAYERS[i]] = x = F.relu(convolution(x))
        return found


def load_alexnet(path: str | Path | None) -> AlexFeatures:
    """AlexNet with torchvision's weights from ``path``.

    Raises:
        CheckpointError: no such file, or one that holds another network; the message names the
            file to get.
    """
    if path is None or not Path(path).is_file():
        raise CheckpointError(
            f"AlexNet needs torchvision's file {FILE} ({path or 'no path'} given): "
            "torchvision.models.alexnet(weights='IMAGENET1K_V1') downloads it into torch's cache, "
            "hub/checkpoints"
        )
    network, weights = AlexFeatures(), read_weights(path)
    for place, convolution in zip(_PLACES, network.convolutions.values(), strict=True):
        for part in ("weight", "bias"):
            stored = weights.get(f"features.{place}.{part}")
            parameter = convolution.get_parameter(part)
            if stored is None or stored.shape != parameter.shape:
                raise CheckpointError(
                    f"{path} is not AlexNet: features.{place}.{part} does not fit"
                )
            parameter.data.copy_(stored)
    return network
