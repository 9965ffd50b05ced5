"""SPARNet and SPARNetHD: residual encoder-decoder with spatial attention in every block.

Chen et al., "Learning Spatial Attention for Face Super-Resolution", TIP 2020 (§III). The
inference network: spectral normalisation belongs to training, so weights are plain here.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from dr2pipe.core.diffusers_types import register_to_config
from dr2pipe.core.errors import ConfigError
from dr2pipe.enhancers.base import Enhancer

NORMS = {"instance": nn.InstanceNorm2d, "batch": nn.BatchNorm2d}


class SPARNet(Enhancer):
    """Face enhancer with spatial attention.

    Args:
        size: side in pixels of input and output. Fully convolutional: other sides that are
            multiples of patch * 2**(len(channels) - 1) work too.
        channels: width at full size and after each halving.
        residual_blocks: blocks at the smallest size.
        attention: ``2d``, one map for all channels, or ``3d``, one map for each.
        norm: ``instance`` (SPARNetHD) or ``batch`` (SPARNet for 128 pixels).
        hourglass_depth: halvings inside the attention of the first encoder block; one less
            in each following block, one more in each decoder block.
        hourglass_channels: width inside the attention. The attention runs at full size, so a
            small network is fast only if this is small.
        patch: the network works at ``size / patch``: squares of this side become channels
            before the first convolution, and channels become squares after the last. 2 is
            enough for a picture that was enlarged by 2, at a quarter of the cost.
        add_input: the network computes a correction that is added to the picture. Instance
            norms remove brightness and colour, and a network needs many faces to learn to
            restore them.

    The defaults are SPARNetHD for 512 pixels.
    """

    @register_to_config
    def __init__(
        self,
        size: int = 512,
        channels: Sequence[int] = (102, 204, 408, 512, 512),
        residual_blocks: int = 9,
        attention: str = "2d",
        norm: str = "instance",
        hourglass_depth: int = 4,
        hourglass_channels: int = 64,
        patch: int = 1,
        add_input: bool = False,
    ):
        super().__init__()
        if norm not in NORMS:
            raise ConfigError(f"unknown norm '{norm}'; choose one of {', '.join(NORMS)}")
        if attention not in ("2d", "3d"):
            raise ConfigError(f"unknown attention '{attention}'; choose 2d or 3d")
        if patch < 1 or size % (patch << (len(channels) - 1)):
            raise ConfigError(
                f"size={size} cannot be cut into patches of {patch} and halved "
                f"{len(channels) - 1} times"
            )
        side, halvings = size // patch, len(channels) - 1
        depths = {side >> min(halvings, 1): hourglass_depth}
        depths[side >> halvings] = max(hourglass_depth - halvings + 1, 1)
        if hourglass_depth < 1 or min(-(-side >> depth) for side, depth in depths.items()) < 2:
            raise ConfigError(
                f"hourglass_depth={hourglass_depth} does not fit size={size}, patch={patch} and "
                f"{len(channels)} channels: at least 1, and 2 pixels must be left"
            )
        block = functools.partial(
            AttentionBlock,
            norm=norm,
            per_channel=attention == "3d",
            hourglass_channels=hourglass_channels,
        )
        depth = hourglass_depth
        self.first = SameConv(3 * patch**2, channels[0])
        self.encoder = nn.ModuleList()
        for width_in, width_out in itertools.pairwise(channels):
            self.encoder.append(block(width_in, width_out, depth, resample="down"))
            depth = max(depth - 1, 1)
        # The inner blocks see maps of the last encoder block's output size, so its depth.
        depth = max(hourglass_depth - len(self.encoder) + 1, 1)
        self.inner = nn.ModuleList(
            block(channels[-1], channels[-1], depth) for _ in range(residual_blocks)
        )
        self.decoder = nn.ModuleList()
        widths = list(reversed(channels))
        for width_in, width_out in itertools.pairwise(widths):
            depth += 1
            self.decoder.append(block(width_in, width_out, depth, resample="up"))
        self.last = SameConv(channels[0], 3 * patch**2)
        if add_input:  # training begins with the picture as it is
            for parameter in self.last.parameters():
                nn.init.zeros_(parameter)

    @property
    def input_size(self) -> int:
        """Side in pixels of the pictures that it takes."""
        return int(self.config.size)

    @property
    def output_size(self) -> int:
        """Side in pixels of its results."""
        return int(self.config.size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B,3,H,W) RGB in [-1,1] to (B,3,H,W), not clamped."""
        features = self.first(F.pixel_unshuffle(x, self.config.patch))  # (B,3·patch²,H',W')
        for block in (*self.encoder, *self.inner, *self.decoder):
            features = block(features)  # (B,C,H'',W''), halved in the encoder, doubled after
        made = F.pixel_shuffle(self.last(features), self.config.patch)  # (B,3,H,W)
        return x + made if self.config.add_input else made

    def align_channels(self) -> None:
        """Widen layers to multiples of 8 channels with zeros, in place: the same function.

        The widths of SPARNetHD (102, 204) make a GPU copy most feature maps before a convolution.
        """
        # An attention map of one channel is broadcast to all.
        blocks = [module for module in self.modules() if isinstance(module, AttentionBlock)]
        maps = [block.to_map.conv for block in blocks if block.to_map.conv.out_channels == 1]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                keep_out = module is self.last.conv or any(module is conv for conv in maps)
                _widen_conv(module, keep_in=module is self.first.conv, keep_out=keep_out)
            elif isinstance(module, nn.InstanceNorm2d | nn.BatchNorm2d):
                _widen_norm(module)


class SameConv(nn.Module):
    """Convolution 3x3 with reflected borders; ``stride`` 2 halves the size."""

    def __init__(self, width_in: int, width_out: int, *, stride: int = 1, bias: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(width_in, width_out, 3, stride, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B,width_in,H,W) to (B,width_out,H/stride,W/stride), rounded up."""
        out: torch.Tensor = self.conv(F.pad(x, (1, 1, 1, 1), mode="reflect"))
        return out


class NormedConv(nn.Module):
    """Convolution without bias, normalisation, and leaky ReLU where ``activate``."""

    def __init__(
        self, width_in: int, width_out: int, norm: str, *, stride: int = 1, activate: bool = True
    ):
        super().__init__()
        self.conv = SameConv(width_in, width_out, stride=stride, bias=False)
        self.norm = NORMS[norm](width_out, affine=True)
        self.activate = activate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B,width_in,H,W) to (B,width_out,H/stride,W/stride), rounded up."""
        x = self.norm(self.conv(x))
        return F.leaky_relu(x, 0.2) if self.activate else x


class AttentionBlock(nn.Module):
    """Pre-activation residual block whose branch is weighted by a spatial attention map.

    The paper's face attention unit: shortcut(x) + map · branch(x).
    """

    def __init__(
        self,
        width_in: int,
        width_out: int,
        hourglass_depth: int,
        *,
        norm: str,
        per_channel: bool,
        hourglass_channels: int,
        resample: str | None = None,
    ):
        super().__init__()
        stride = 2 if resample == "down" else 1
        self.grows = resample == "up"
        self.norm = NORMS[norm](width_in, affine=True)
        self.conv1 = NormedConv(width_in, width_out, norm)
        self.conv2 = NormedConv(width_out, width_out, norm, stride=stride, activate=False)
        self.attention = Hourglass(width_out, hourglass_channels, norm, hourglass_depth)
        self.to_map = SameConv(hourglass_channels, width_out if per_channel else 1)
        changes = resample is not None or width_in != width_out
        self.shortcut = SameConv(width_in, width_out, stride=stride) if changes else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B,width_in,H,W) to (B,width_out,H',W'): the same size, half or double, as built."""
        branch: torch.Tensor = F.leaky_relu(self.norm(x), 0.2)  # (B,width_in,H,W)
        if self.grows:
            x, branch = (F.interpolate(t, scale_factor=2, mode="nearest") for t in (x, branch))
        branch = self.conv2(self.conv1(branch))  # (B,width_out,H',W')
        attention_map = self.to_map(self.attention(branch)).sigmoid()  # (B,1 or width_out,H',W')
        out: torch.Tensor = branch * attention_map + self.shortcut(x)
        return out


class Hourglass(nn.Module):
    """``depth`` nested halvings, each added back to a branch of its own size.

    Newell et al. 2016, "Stacked Hourglass Networks"; it sees faces at several scales at once.
    """

    def __init__(self, width_in: int, width: int, norm: str, depth: int):
        super().__init__()
        self.same = NormedConv(width_in, width, norm)
        self.down = NormedConv(width_in, width, norm, stride=2)
        self.inner = (
            Hourglass(width, width, norm, depth - 1)
            if depth > 1
            else NormedConv(width, width, norm)
        )
        self.after = NormedConv(width, width, norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B,width_in,H,W) to (B,width,H,W)."""
        low = F.interpolate(self.inner(self.down(x)), scale_factor=2, mode="nearest")
        low = self.after(low)
        if low.shape[-2:] != x.shape[-2:]:  # odd sides come back one pixel too large
            low = F.interpolate(low, size=x.shape[-2:], mode="nearest")
        out: torch.Tensor = self.same(x) + low
        return out


_ALIGNED = 8  # channels: 16 bytes of a low precision, which matrix units load at once


def _missing(channels: int) -> int:
    return -channels % _ALIGNED


def _widen_conv(conv: nn.Conv2d, *, keep_in: bool, keep_out: bool) -> None:
    more_in = 0 if keep_in else _missing(conv.in_channels)
    more_out = 0 if keep_out else _missing(conv.out_channels)
    conv.in_channels += more_in
    conv.out_channels += more_out
    conv.weight = nn.Parameter(
        F.pad(conv.weight.detach(), (0, 0, 0, 0, 0, more_in, 0, more_out)), requires_grad=False
    )
    if conv.bias is not None:
        conv.bias = nn.Parameter(F.pad(conv.bias.detach(), (0, more_out)), requires_grad=False)


def _widen_norm(norm: nn.InstanceNorm2d | nn.BatchNorm2d) -> None:
    """Zeros stay zeros: weight and bias of the new channels are 0."""
    more = _missing(norm.num_features)
    norm.num_features += more
    for name, tensor in (*norm.named_parameters(), *norm.named_buffers()):
        if tensor.ndim == 0:  # the number of batches seen
            continue
        wider = F.pad(tensor.detach(), (0, more), value=float(name == "running_var"))
        is_weight = isinstance(tensor, nn.Parameter)
        setattr(norm, name, nn.Parameter(wider, requires_grad=False) if is_weight else wider)
