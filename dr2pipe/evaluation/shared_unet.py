"""A network that makes each call once for all settings that need it.

Chains that start at the same ω begin with the same call, and a chain to a smaller τ passes
through the larger ones. A call is recognised by its timestep and the content of its input, so
results equal those of separate runs.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Any

import torch

from dr2pipe.core.diffusers_types import ModelMixin, UNet2DOutput

_MOST_BYTES = 1 << 29  # of outputs kept for later
_Key = tuple[int, torch.dtype, torch.Size, bytes]


class SharedUNet(ModelMixin):
    """A network that remembers its latest outputs.

    Args:
        unet: the network itself.

    Attributes:
        requested: calls so far, counted in pictures.
        computed: those of them that the network had to compute.
    """

    def __init__(self, unet: ModelMixin) -> None:
        super().__init__()
        self.unet = unet
        self.requested = self.computed = 0
        self._kept: OrderedDict[_Key, UNet2DOutput] = OrderedDict()
        self._bytes = 0

    @property
    def config(self) -> Any:
        """The config of the network itself."""
        return self.unet.config

    @property
    def class_embedding(self) -> torch.nn.Module | None:
        """The class embedding of the network itself; None for an unconditional one."""
        return getattr(self.unet, "class_embedding", None)

    def forward(self, sample: torch.Tensor, timestep: int) -> UNet2DOutput:
        """Return what the network returns for (B,3,S,S) at a timestep."""
        content = sample.detach().contiguous().view(torch.uint8).cpu().numpy()
        digest = hashlib.blake2b(content.data, digest_size=16).digest()
        key = (int(timestep), sample.dtype, sample.shape, digest)
        self.requested += len(sample)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        self.computed += len(sample)
        output: UNet2DOutput = self.unet(sample, timestep)
        self._kept[key] = output
        self._bytes += output.sample.nbytes
        while self._bytes > _MOST_BYTES:
            self._bytes -= self._kept.popitem(last=False)[1].sample.nbytes
        return output
