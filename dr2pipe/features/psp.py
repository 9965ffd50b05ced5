"""Styles of a face: the pSp encoder, an IR-SE-50 whose three scales give the rows of a W+ latent.

Richardson et al., "Encoding in Style: a StyleGAN Encoder for Image-to-Image Translation", CVPR
2021 (§3.1, figure 2); its body: Deng et al., "ArcFace", CVPR 2019, with squeeze-and-excitation
(Hu et al., CVPR 2018). EXE-GAN takes an exemplar's styles from it and compares styles in its loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from dr2pipe.core.diffusers_types import ConfigMixin, ModelMixin, register_to_config
from dr2pipe.core.errors import ConfigError
from dr2pipe.core.model_folders import load_network

_SQUEEZE = 16
# Rows before the first number look at the smallest map, those before the second at the next.
_COARSE_ROWS, _MEDIUM_ROWS = 3, 7


class StyleEncoder(ModelMixin, ConfigMixin):
    """Faces to rows of a W+ latent.

    Args:
        rows: of the latent; each has a head of its own.
        channels: width of a style.
        size: pictures are resized to this side in pixels first, a power of two from 32 on.
        width: channels of the first stage; each later stage has twice as many.
        blocks: residual units of the four stages; (3,4,14,3) is IR-SE-50.

    The defaults are the official encoder for a StyleGAN2 of 1024 px.

    Raises:
        ConfigError: a size that is not a power of two from 32 on.
    """

    mean_latent: torch.Tensor  # (rows,channels)

    @register_to_config
    def __init__(
        self,
        rows: int = 18,
        channels: int = 512,
        size: int = 256,
        width: int = 64,
        blocks: Sequence[int] = (3, 4, 14, 3),
    ):
        super().__init__()
        if size < 32 or size & (size - 1):
            raise ConfigError(f"size={size} is not a power of two from 32 on")
        self.first = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(width)
        self.first_prelu = nn.PReLU(width)
        self.stages = nn.ModuleList()
        widths = [width << stage for stage in range(4)]
        for width_in, width_out, count in zip([width, *widths[:-1]], widths, blocks, strict=True):
            stage = nn.Sequential(SqueezedUnit(width_in, width_out, stride=2))
            stage.extend(SqueezedUnit(width_out, width_out, stride=1) for _ in range(count - 1))
            self.stages.append(stage)
        # The official body ends as wide as a style and needs no change there.
        same = widths[3] == channels
        self.join_coarse = nn.Identity() if same else nn.Conv2d(widths[3], channels, 1)
        self.join_medium = nn.Conv2d(widths[2], channels, 1)
        self.join_fine = nn.Conv2d(widths[1], channels, 1)
        self.heads = nn.ModuleList(
            StyleHead(channels, size // (16 >> _scale_of(row))) for row in range(rows)
        )
        self.register_buffer("mean_latent", torch.zeros(rows, channels))

    def forward(self, x: torch.Tensor, rows: Sequence[int] | None = None) -> torch.Tensor:
        """(B,3,H,W) RGB in [-1,1], any size, to styles (B,len(rows),channels).

        ``rows``: which of the latent, None for all. Heads give differences from the mean latent.

        Raises:
            ValueError: rows that it does not have.
        """
        rows = range(self.config.rows) if rows is None else rows
        if not len(rows) or min(rows) < 0 or max(rows) >= self.config.rows:
            raise ValueError(f"rows {list(rows)}: there are 0..{self.config.rows - 1}")
        side = (self.config.size, self.config.size)
        x = F.interpolate(x, side, mode="bilinear", align_corners=True)  # (B,3,S,S)
        x = self.first_prelu(self.first_norm(self.first(x)))
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        coarse = self.join_coarse(maps[3])  # (B,C,S/16,S/16)
        medium = _enlarge_and_add(coarse, self.join_medium(maps[2]))  # (B,C,S/8,S/8)
        fine = _enlarge_and_add(medium, self.join_fine(maps[1]))  # (B,C,S/4,S/4)
        scales = (coarse, medium, fine)
        styles = [self.heads[row](scales[_scale_of(row)]) for row in rows]
        return torch.stack(styles, dim=1) + self.mean_latent[list(rows)]


class SqueezedUnit(nn.Module):
    """Residual unit that ends with squeeze-and-excitation."""

    def __init__(self, width_in: int, width_out: int, stride: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(width_in)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1, bias=False)
        self.prelu = nn.PReLU(width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width_out)
        squeezed = max(width_out // _SQUEEZE, 1)
        self.squeeze = nn.Linear(width_out, squeezed, bias=False)
        self.excite = nn.Linear(squeezed, width_out, bias=False)
        self.shortcut: nn.Module = nn.MaxPool2d(1, stride)
        if width_in != width_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(width_in, width_out, 1, stride, bias=False), nn.BatchNorm2d(width_out)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B,width_in,H,W) to (B,width_out,H/stride,W/stride)."""
        branch = self.conv2(self.prelu(self.conv1(self.norm1(x))))
        branch = self.norm2(branch)
        gate = self.excite(F.relu(self.squeeze(branch.mean(dim=(2, 3))))).sigmoid()  # (B,C)
        total: torch.Tensor = branch * gate[:, :, None, None] + self.shortcut(x)
        return total


class StyleHead(nn.Module):
    """Halves a map of ``side`` pixels until one pixel is left, which becomes a style."""

    def __init__(self, channels: int, side: int):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, stride=2, padding=1)
            for _ in range(side.bit_length() - 1)
        )
        self.linear = nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B,C,side,side) to (B,C)."""
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.01)
        style: torch.Tensor = self.linear(x.flatten(1))  # from (B,C,1,1)
        return style


def load_style_encoder(folder: str | Path) -> StyleEncoder:
    """A frozen encoder from a native folder.

    Raises:
        CheckpointError: no such folder, or one that holds another network; the message says how
            to make one of the official file.
    """
    network = load_network(
        folder,
        StyleEncoder,
        hint="'dr2pipe convert FILE FOLDER --kind psp_encoder' makes one of the official "
        "psp_ffhq_encode.pt",
    )
    return network.requires_grad_(False).eval()


def _scale_of(row: int) -> int:
    """0, 1 or 2: whether a row looks at the coarse, the medium or the fine map."""
    return (row >= _COARSE_ROWS) + (row >= _MEDIUM_ROWS)


def _enlarge_and_add(smaller: torch.Tensor, larger: torch.Tensor) -> torch.Tensor:
    grown = F.interpolate(smaller, larger.shape[-2:], mode="bilinear", align_corners=True)
    return grown + larger
