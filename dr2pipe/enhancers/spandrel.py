"""Any face-restoration or enlarging network that the library spandrel recognises.

spandrel (MIT) reads the files of many networks; it needs torchvision, so it is imported when it
is used and not before. ``spandrel_extra_arches`` adds those whose licences restrict their use,
CodeFormer among them.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import nn

from dr2pipe.core.errors import Dr2pipeError, MissingPackageError
from dr2pipe.core.extras import needs_extra

logger = logging.getLogger(__name__)

_OUTPUT_SIZE = 512  # what face networks are made for


class SpandrelEnhancer(nn.Module):
    """A network that spandrel loaded, behind the contract of an enhancer.

    Args:
        descriptor: what ``spandrel.ModelLoader`` returned for one picture in, one out.
    """

    conditions = ()

    def __init__(self, descriptor):
        super().__init__()
        self.descriptor, self.network = descriptor, descriptor.model

    @property
    def config(self) -> dict[str, str | int]:
        """What a run's settings say of it; its weights are hashed besides."""
        name = self.descriptor.architecture.name
        return {"architecture": name, "scale": self.descriptor.scale}

    @property
    def input_size(self) -> int:
        """So that 512 pixels come out."""
        return _OUTPUT_SIZE // self.descriptor.scale

    @property
    def output_size(self) -> int:
        return self.input_size * self.descriptor.scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B,3,H,W) RGB in [-1,1] to (B,3,scale·H,scale·W)."""
        # It takes one picture at a time, in [0,1].
        pictures = (x.clamp(-1, 1) + 1) / 2
        made = []
        for picture in pictures:
            with torch.random.fork_rng():  # some draw noise; a result is to repeat
                torch.manual_seed(0)
                made.append(self.descriptor(picture[None]))
        return torch.cat(made) * 2 - 1

    def to(self, *args, dtype: torch.dtype | None = None, **options):
        """As every module's; ValueError for a precision that the network does not support."""
        refused = {
            torch.float16: not self.descriptor.supports_half,
            torch.bfloat16: not self.descriptor.supports_bfloat16,
        }
        if refused.get(dtype, False):
            name = self.descriptor.architecture.name
            raise ValueError(f"{name} does not support {dtype}; choose precision=fp32")
        return super().to(*args, **({} if dtype is None else {"dtype": dtype}), **options)


def load_spandrel(path: str | Path) -> SpandrelEnhancer:
    """The network of an official file, whatever spandrel recognises.

    Raises:
        ValueError: spandrel or torchvision cannot be imported, no such file, or a network that
            is no picture-to-picture one in RGB.
    """
    if not Path(path).is_file():
        raise ValueError(f"no file at {path}; the enhancer 'spandrel' reads official files")
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
        descriptor = spandrel.ModelLoader(device="cpu").load_from_file(str(path))
    except Exception as error:  # many kinds; all mean that it cannot be used
        raise ValueError(
            f"spandrel cannot load {path}: {error or type(error).__name__}. CodeFormer and other "
            f"networks with restricted licences need 'pip install spandrel_extra_arches'"
        ) from None
    channels = (descriptor.input_channels, descriptor.output_channels)
    if not isinstance(descriptor, spandrel.ImageModelDescriptor) or channels != (3, 3):
        raise ValueError(f"{path} is no network from one RGB picture to another")
    name = descriptor.architecture.name
    logger.warning("%s comes under its authors' licence; see what that allows", name)
    return SpandrelEnhancer(descriptor).eval()
