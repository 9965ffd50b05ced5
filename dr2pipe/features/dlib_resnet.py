"""dlib's face recognition network in PyTorch, read from the file that dlib's authors published.

He et al., "Deep Residual Learning", CVPR 2016, with 29 convolutions; King, "High Quality Face
Recognition with Deep Metric Learning", dlib's blog, 2017. The authors state 99.38 % on LFW, where
two photos count as one person below a distance of 0.6. Weights: CC0.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from dr2pipe.core import files
from dr2pipe.core.errors import CheckpointError, UnreadableFileError

SIZE = 150  # side of its pictures in pixels
_MAX_BYTES = 1 << 26
# Width, number of blocks, and whether the first of them halves the sides.
_STAGES = ((32, 3, False), (64, 4, True), (128, 3, True), (256, 3, True), (256, 1, True))
_EMBEDDING = 128
_MEAN = (122.782, 117.001, 104.298)  # of red, green and blue; what is left is divided by 256
_SCALE = 256.0


class DlibResNet(nn.Module):
    """Faces to embeddings whose Euclidean distance says how much two people differ; frozen.

    The file's affine layers (batch norms, made constant) are part of the convolutions here.
    """

    mean: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, _STAGES[0][0], 7, stride=2)
        blocks = []
        width_in = _STAGES[0][0]
        for width, count, halves in _STAGES:
            for place in range(count):
                blocks.append(_Block(width_in, width, halves and place == 0))
                width_in = width
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Linear(width_in, _EMBEDDING, bias=False)
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, levels: torch.Tensor) -> torch.Tensor:
        """Chips (B,3,150,150), RGB levels 0..255, to (B,128); lengths are about 1.4."""
        x = F.relu(self.first((levels - self.mean) / _SCALE))  # (B,32,72,72)
        x = F.max_pool2d(x, 3, stride=2)  # (B,32,35,35)
        x = self.blocks(x)
        embeddings: torch.Tensor = self.last(x.mean(dim=(2, 3)))  # from (B,256,2,2)
        return embeddings


class _Block(nn.Module):
    """Two convolutions and a short cut without weights."""

    def __init__(self, width_in: int, width: int, halves: bool):
        super().__init__()
        self.halves = halves
        # dlib pads convolutions of stride 1 alone.
        stride, padding = (2, 0) if halves else (1, 1)
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B,width_in,H,W) to (B,width,H,W), or half of the sides."""
        branch = self.conv2(F.relu(self.conv1(x)))
        if self.halves:
            x = F.avg_pool2d(x, 2)
        # dlib adds maps of different sizes as if zeros followed the smaller one.
        shape = [max(a, b) for a, b in zip(x.shape[1:], branch.shape[1:], strict=True)]
        return F.relu(_enlarged(x, shape) + _enlarged(branch, shape))


def _enlarged(x: torch.Tensor, shape: list[int]) -> torch.Tensor:
    """(B,C,H,W) with zeros added after the last channel, row and column up to ``shape``."""
    more = [wanted - have for wanted, have in zip(shape, x.shape[1:], strict=True)]
    return F.pad(x, [0, more[2], 0, more[1], 0, more[0]]) if any(more) else x


def load_dlib_resnet(path: str | Path) -> DlibResNet:
    """The network with the weights of ``dlib_face_recognition_resnet_model_v1.dat``.

    Raises:
        CheckpointError: no such file, or one that holds another network.
    """
    try:
        reader = _Reader(files.read_regular(path, max_bytes=_MAX_BYTES))
    except UnreadableFileError as error:
        raise CheckpointError(f"cannot read dlib's network: {error}") from None
    network = DlibResNet()
    try:
        for layer in network.modules():  # in the order of the file
            if isinstance(layer, nn.Conv2d):
                _fill(layer, reader)
        weight = reader.tensor(b"fc_2", numbers_before=2, count=network.last.weight.numel())
    except ValueError as error:
        raise CheckpointError(f"{path} is not dlib's face recognition network: {error}") from None
    network.last.weight.copy_(weight.view(-1, _EMBEDDING).T)
    return network


def _fill(convolution: nn.Conv2d, reader: _Reader) -> None:
    """Read a convolution and the affine layer after it, and make one of them."""
    width, bias = convolution.out_channels, convolution.bias
    size = convolution.weight.numel()
    stored = reader.tensor(b"con_4", numbers_before=0, count=size + width)
    affine = reader.tensor(b"affine_", numbers_before=0, count=2 * width)
    gain, shift = affine[:width], affine[width:]
    assert bias is not None
    convolution.weight.copy_(stored[:size].view_as(convolution.weight) * gain.view(-1, 1, 1, 1))
    bias.copy_(stored[size:] * gain + shift)


class _Reader:
    """Finds tensors by the names of layers, from the first layer to the last.

    dlib writes a name or a number as its length in bytes and these bytes, the lowest first. A
    tensor is the version 2, four sides, and float32 values.
    """

    def __init__(self, content: bytes):
        self.content, self.place = content, 0

    def tensor(self, layer: bytes, *, numbers_before: int, count: int) -> torch.Tensor:
        """The ``count`` values after the next layer of this name.

        Raises:
            ValueError: there is no such layer, or it has other sides.
        """
        start = self.content.find(bytes([1, len(layer)]) + layer, self.place)
        if start < 0:
            raise ValueError(f"a layer {layer.decode()} is missing")
        self.place = start + 2 + len(layer)
        for _ in range(numbers_before):
            self._number()
        version, *sides = [self._number() for _ in range(5)]
        end = self.place + 4 * count
        found = 1
        for side in sides:
            found *= side
        if version != 2 or found != count or end > len(self.content):
            raise ValueError(f"a layer {layer.decode()} has {found} values instead of {count}")
        values = np.frombuffer(self.content[self.place : end], "<f4").copy()
        if not np.isfinite(values).all():
            raise ValueError(f"a layer {layer.decode()} has values that are no numbers")
        self.place = end
        return torch.from_numpy(values)

    def _number(self) -> int:
        length = self.content[self.place] if self.place < len(self.content) else 0
        if not 1 <= length <= 8:  # the highest bit would say that it is negative
            raise ValueError("a side of a layer cannot be read")
        self.place += 1 + length
        return int.from_bytes(self.content[self.place - length : self.place], "little")
