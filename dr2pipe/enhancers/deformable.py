"""Deformable convolution in plain torch, so that it needs no compiled extension."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class DeformableConv(nn.Module):
    """Modulated deformable convolution 3x3 by bilinear sampling (Zhu et al. 2019, eq. 1).

    Samples outside the picture are 0. Plain torch: it runs on every device.
    """

    TAPS = 9

    def __init__(self, width: int, groups: int):
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(width, width, 3, 3))
        self.bias = nn.Parameter(torch.zeros(width))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        # (dy, dx) of each tap of each group, then how much of the tap is taken.
        self.to_offsets = nn.Conv2d(width, 3 * self.TAPS * groups, 3, padding=1)
        nn.init.zeros_(self.to_offsets.weight)  # training begins with a plain convolution
        nn.init.zeros_(self.to_offsets.bias)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor, motion: torch.Tensor) -> torch.Tensor:
        """(B,C,H,W), sampled where ``motion`` (B,C,H,W) says, to (B,C,H,W)."""
        batch, width, height, columns = x.shape
        made = self.to_offsets(motion)
        moves, amounts = made.split([2 * self.TAPS * self.groups, self.TAPS * self.groups], 1)
        # Groups are moved as pictures of their own.
        moves = moves.reshape(batch * self.groups, self.TAPS, 2, height, columns)
        amounts = amounts.sigmoid().reshape(batch * self.groups, self.TAPS, 1, height, columns)
        parts = x.reshape(batch * self.groups, width // self.groups, height, columns)
        rows, cols = torch.meshgrid(
            torch.arange(height, device=x.device),
            torch.arange(columns, device=x.device),
            indexing="ij",
        )
        place = torch.stack([cols, rows], -1).float()  # (H,W,2) as (x, y)
        size = torch.tensor([columns, height], device=x.device)
        made = self.bias.view(1, -1, 1, 1).expand(batch, width, height, columns)
        for tap in range(self.TAPS):
            row, column = divmod(tap, 3)
            with torch.autocast(x.device.type, enabled=False):  # positions need fp32
                move = moves[:, tap].flip(1).movedim(1, -1).float()  # (B·G,H,W,2) as (x, y)
                step = torch.tensor([column - 1, row - 1], device=x.device)
                grid = (2 * (place + step + move) + 1) / size - 1
                sampled = F.grid_sample(parts.float(), grid, align_corners=False)
                sampled = (sampled * amounts[:, tap].float()).to(x.dtype)
            # One tap at a time: all nine of a 512-pixel level would take 1.2 GB per picture.
            kernel = self.weight[:, :, row, column, None, None]
            made = made + F.conv2d(sampled.reshape(x.shape), kernel)
        return made
