"""Any face-restoration or enlarging network that the library spandrel recognises.

spandrel (MIT) reads the files of many networks. It needs torchvision, so it is imported only
when it is used. ``spandrel_extra_arches`` adds networks whose licences restrict their use,
CodeFormer among them.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dr2pipe.core.errors import (
    CheckpointError,
    ConfigError,
    Dr2pipeError,
    MissingPackageError,
)
from dr2pipe.core.extras import needs_extra
from dr2pipe.core.seeding import random_stream
from dr2pipe.core.weights import check_sizes
from dr2pipe.enhancers.base import Enhancer

if TYPE_CHECKING:
    from typing import Self

logger = logging.getLogger(__name__)

_OUTPUT_SIZE = 512  # what face networks are made for


class SpandrelEnhancer(Enhancer):
    """A network that spandrel loaded, behind the contract of an enhancer.

    It stays in its authors' file: ``save_pretrained`` has nothing to write that would rebuild it.

    Args:
        descriptor: what ``spandrel.ModelLoader`` returned, a network from one picture to another.
    """

    def __init__(self, descriptor: Any):
        super().__init__()
        self.descriptor, self.network = descriptor, descriptor.model
        # What a run's settings say about the network; its weights are hashed besides.
        self.register_to_config(
            architecture=descriptor.architecture.name, scale=int(descriptor.scale)
        )

    @property
    def input_size(self) -> int:
        """Side in pixels of the pictures that it takes, so that 512 pixels come out."""
        return _OUTPUT_SIZE // int(self.config.scale)

    @property
    def output_size(self) -> int:
        """Side in pixels of its results."""
        return self.input_size * int(self.config.scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B,3,H,W) RGB in [-1,1] to (B,3,scale·H,scale·W)."""
        pictures = (x.clamp(-1, 1) + 1) / 2  # the networks take [0,1], one picture at a time
        results = []
        for picture in pictures:
            # Some of them draw noise, from the global stream alone. For each picture it begins
            # anew, so that results repeat.
            with random_stream(torch.Generator().manual_seed(0), picture.device):
                results.append(self.descriptor(picture[None]))  # (1,3,scale·H,scale·W)
        return torch.cat(results) * 2 - 1

    def to(self, *args: Any, dtype: torch.dtype | None = None, **options: Any) -> Self:
        """As every module's; ConfigError for a precision that the network does not support."""
        refused = [
            *([] if self.descriptor.supports_half else [torch.float16]),
            *([] if self.descriptor.supports_bfloat16 else [torch.bfloat16]),
        ]
        if dtype in refused:
            name = self.config.architecture
            raise ConfigError(f"{name} does not support {dtype}; choose precision=fp32")
        if dtype is not None:
            options["dtype"] = dtype
        return super().to(*args, **options)


def load_spandrel(path: str | Path) -> SpandrelEnhancer:
    """The network of an official file, whatever spandrel recognises.

    Raises:
        ConfigError: spandrel or torchvision cannot be imported.
        CheckpointError: no such file, or not a network from one RGB picture to another.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"no file at {path}; the enhancer 'spandrel' reads official files")
    try:
        with needs_extra("spandrel"):
            import spandrel
    except MissingPackageError:
        raise
    except Exception as error:  # a torchvision of another build than torch fails in many ways
        raise Dr2pipeError(
            f"the enhancer 'spandrel' needs a torchvision that fits torch {torch.__version__}: "
            f"{error}"
        ) from None
    try:
        import spandrel_extra_arches
    except ImportError:
        pass
    else:
        spandrel_extra_arches.install(ignore_duplicates=True)
    try:
        check_sizes(path)
        descriptor = spandrel.ModelLoader(device="cpu").load_from_file(str(path))
    except Exception as error:  # many kinds; all mean that it cannot be used
        raise CheckpointError(
            f"spandrel cannot load {path}: {error or type(error).__name__}. CodeFormer and other "
            f"networks with restricted licences need 'pip install spandrel_extra_arches'"
        ) from None
    channels = (descriptor.input_channels, descriptor.output_channels)
    if not isinstance(descriptor, spandrel.ImageModelDescriptor) or channels != (3, 3):
        raise CheckpointError(f"{path} is not a network from one RGB picture to another")
    name = descriptor.architecture.name
    logger.warning("%s comes under its authors' licence; see what that allows", name)
    return SpandrelEnhancer(descriptor).eval()
