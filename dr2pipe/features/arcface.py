"""ArcFace embeddings: the ResNet-18 with which GFP-GAN compares the identities of faces.

Deng et al., "ArcFace", CVPR 2019, §3 (improved residual units). Parameter names are those of
the official file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from dr2pipe.core.diffusers_types import ConfigMixin, ModelMixin, register_to_config
from dr2pipe.core.errors import CheckpointError
from dr2pipe.core.model_folders import load_network
from dr2pipe.features.weights import read_weights

SIZE = 128
FILE = "arcface_resnet18.pth"
_LUMA = (0.2989, 0.5870, 0.1140)
_WIDTHS = (64, 128, 256, 512)


class ArcFaceResNet(ModelMixin, ConfigMixin):
    """Grey faces of 128 pixels to embeddings.

    Args:
        blocks: residual blocks of each of the four stages; (2,2,2,2) is the official file.
        squeeze: with squeeze-and-excitation in every block.
    """

    @register_to_config
    def __init__(self, blocks: Sequence[int] = (2, 2, 2, 2), squeeze: bool = False):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.prelu = nn.PReLU()
        width_in = 64
        for stage, (count, width) in enumerate(zip(blocks, _WIDTHS, strict=True), 1):
            layer = nn.Sequential()
            for i in range(count):
                stride = 2 if stage > 1 and i == 0 else 1
                layer.append(ResidualUnit(width_in, width, stride, squeeze))
                width_in = width
            self.add_module(f"layer{stage}", layer)
        self.bn4 = nn.BatchNorm2d(512)
        self.fc5 = nn.Linear(512 * 8 * 8, 512)
        self.bn5 = nn.BatchNorm1d(512)

    def forward(self, grey: torch.Tensor) -> torch.Tensor:
        """(B,1,128,128) in [-1,1], see :func:`to_grey`, to (B,512), not normalised."""
        x = self.prelu(self.bn1(self.conv1(grey)))  # (B,64,128,128)
        x = F.max_pool2d(x, 2)  # (B,64,64,64)
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        embeddings: torch.Tensor = self.fc5(self.bn4(x).flatten(1))  # from (B,512,8,8)
        normalised: torch.Tensor = self.bn5(embeddings)  # (B,512)
        return normalised


class ResidualUnit(nn.Module):
    """Improved residual unit (ArcFace, §3): a norm before the first and after each convolution."""

    def __init__(self, width_in: int, width_out: int, stride: int, squeeze: bool):
        super().__init__()
        self.bn0 = nn.BatchNorm2d(width_in)
        self.conv1 = nn.Conv2d(width_in, width_in, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width_in)
        self.prelu = nn.PReLU()
        self.conv2 = nn.Conv2d(width_in, width_out, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width_out)
        self.se = SqueezeExcitation(width_out) if squeeze else nn.Identity()
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or width_in != width_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(width_in, width_out, 1, stride, bias=False), nn.BatchNorm2d(width_out)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B,width_in,H,W) to (B,width_out,H/stride,W/stride)."""
        branch = self.prelu(self.bn1(self.conv1(self.bn0(x))))
        branch = self.se(self.bn2(self.conv2(branch)))
        total: torch.Tensor = self.prelu(branch + self.downsample(x))
        return total


class SqueezeExcitation(nn.Module):
    """Scales each channel by a gate made from the means of all (Hu et al., CVPR 2018, §3)."""

    def __init__(self, width: int):
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(width, width // 16), nn.PReLU(), nn.Linear(width // 16, width), nn.Sigmoid()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B,width,H,W) to the same shape."""
        gates: torch.Tensor = self.fc(x.mean(dim=(2, 3)))  # (B,width)
        return x * gates[:, :, None, None]


def to_grey(pictures: torch.Tensor) -> torch.Tensor:
    """(B,3,H,W) RGB in [-1,1] to luma (B,1,128,128) in [-1,1], resized bilinearly."""
    weights = pictures.new_tensor(_LUMA).view(1, 3, 1, 1)
    grey = (pictures * weights).sum(dim=1, keepdim=True)
    return F.interpolate(grey, (SIZE, SIZE), mode="bilinear", align_corners=False)


def load_arcface(path: str | Path | None) -> ArcFaceResNet:
    """A frozen network from the official file, or from a converted folder.

    Raises:
        CheckpointError: no such file, or one that holds another network; the message names it.
    """
    if path is None or not Path(path).exists():
        raise CheckpointError(
            f"comparing identities needs GFP-GAN's file {FILE} ({path or 'no path'} given); "
            f"'dr2pipe fetch arcface_resnet18' downloads it"
        )
    if Path(path).is_dir():
        network = load_network(path, ArcFaceResNet)
    else:
        weights = read_weights(path)
        network = ArcFaceResNet()
        try:
            network.load_state_dict({k.removeprefix("module."): v for k, v in weights.items()})
        except (RuntimeError, AttributeError) as error:
            raise CheckpointError(f"{path} is not {FILE}: {str(error).splitlines()[0]}") from None
    return network.requires_grad_(False).eval()
