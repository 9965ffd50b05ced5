"""What an enhancer is, and the two baselines that need no weights."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch

from dr2pipe.core import images
from dr2pipe.core.diffusers_types import ConfigMixin, ModelMixin, register_to_config
from dr2pipe.core.errors import ConfigError, PictureError

if TYPE_CHECKING:
    from typing import Self


class Enhancer(ModelMixin, ConfigMixin):
    """Stage 2: a network that turns a coarse face into the result.

    A subclass writes ``forward``: (B,3,H,W) RGB in [-1,1], and the keyword arguments that
    ``conditions`` names, to (B,3,H,W) around [-1,1], not clamped. A folder with config.json and
    safetensors rebuilds it.

    Attributes:
        conditions: names of further keyword arguments of ``forward``.
        has_weights: False for a baseline that its options alone describe.
    """

    conditions: tuple[str, ...] = ()
    has_weights = True

    if TYPE_CHECKING:

        def __call__(self, x: torch.Tensor, **conditions: Any) -> torch.Tensor:
            """The same as ``forward``."""
            ...

    @property
    def input_size(self) -> int | None:
        """Side in pixels of the pictures that it takes; None for any."""
        return None

    @property
    def output_size(self) -> int | None:
        """Side in pixels of its results; None for that of its input."""
        return None

    def align_channels(self) -> None:
        """Widen layers to what the matrix units of a GPU like, in place; by default, nothing.

        It stays the same function. Called before a network computes in low precision on a GPU.
        """

    def notes(self, x: torch.Tensor) -> list[dict[str, Any]]:
        """What the manifest should say about each picture of a batch; here, nothing.

        Args:
            x: (B,3,H,W), as ``forward`` takes it.

        Returns:
            One dict per picture, of plain numbers, texts, and dicts of them.
        """
        return [{} for _ in x]


def check_side(x: torch.Tensor, side: int) -> None:
    """Check that pictures (B,3,H,W) have ``side`` rows and columns.

    Raises:
        PictureError: another size.
    """
    if x.shape[-2:] != (side, side):
        raise PictureError(f"pictures of {tuple(x.shape[-2:])} instead of {(side, side)} pixels")


class _WithoutWeights(Enhancer):
    """A network whose folder holds its configuration alone."""

    has_weights = False

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], **kwargs: Any) -> Self:
        return cls.from_config(cls.load_config(path))


class NoEnhancer(_WithoutWeights):
    """The coarse face as it is: the baseline that shows what stage 1 alone does."""

    @register_to_config
    def __init__(self) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x``."""
        return x


class BicubicEnhancer(_WithoutWeights):
    """Bicubic enlargement to ``size`` pixels: the baseline for enlarging enhancers."""

    @register_to_config
    def __init__(self, size: int = 512):
        super().__init__()
        if not isinstance(size, int) or size < 1:
            raise ConfigError(f"size={size!r} must be a positive whole number")

    @property
    def output_size(self) -> int:
        """Side in pixels of its results."""
        return int(self.config.size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B,3,H,W) to (B,3,size,size)."""
        return images.resize_tensor(x, self.config.size)
