"""What an enhancer is, and the two baselines that need no weights."""

from __future__ import annotations

from typing import Protocol

import torch

from dr2pipe.core import images
from dr2pipe.core.diffusers_types import ConfigMixin, ModelMixin, register_to_config


class Enhancer(Protocol):
    """Stage 2: a network that turns a coarse face into the result.

    Every enhancer is a diffusers ``ModelMixin`` + ``ConfigMixin``, so that a folder with
    config.json and safetensors rebuilds it.

    Attributes:
        input_size: side in pixels it takes, or None for any.
        output_size: side in pixels it returns, or None for that of its input.
        conditions: names of further keyword arguments of ``forward``.
    """

    input_size: int | None
    output_size: int | None
    conditions: tuple[str, ...]

    def __call__(self, x: torch.Tensor, **conditions: torch.Tensor) -> torch.Tensor:
        """(B,3,H,W) in [-1,1] to (B,3,H,W) around [-1,1], not clamped."""


class _WithoutWeights(ModelMixin, ConfigMixin):
    """A folder of such a network holds its configuration alone."""

    @classmethod
    def from_pretrained(cls, folder, **_):
        return cls.from_config(cls.load_config(folder))


class NoEnhancer(_WithoutWeights):
    """The coarse face as it is: the baseline that shows what stage 1 alone does."""

    conditions = ()
    input_size = None
    output_size = None

    @register_to_config
    def __init__(self):
        super().__init__()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class BicubicEnhancer(_WithoutWeights):
    """Bicubic enlargement to ``size`` pixels: the baseline for enlarging enhancers."""

    conditions = ()
    input_size = None

    @register_to_config
    def __init__(self, size: int = 512):
        super().__init__()
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"size={size!r} must be a positive whole number")

    @property
    def output_size(self) -> int:
        return self.config.size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return images.resize_tensor(x, self.config.size)
