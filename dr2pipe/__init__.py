"""dr2pipe: robust blind face restoration in two stages (DR2 + enhancer).

Stage 1 removes the degradation with a face diffusion model (Wang et al., "DR2:
Diffusion-based Robust Degradation Remover for Blind Face Restoration", CVPR 2023), stage 2
enhances the coarse face. See ``dr2pipe.diffusion.dr2.remove_degradation`` for the algorithm.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "PhotoRestorer": "dr2pipe.restoration.photo_restorer",
    "DR2Pipeline": "dr2pipe.diffusion.pipeline",
    "remove_degradation": "dr2pipe.diffusion.dr2",
    "build_low_pass": "dr2pipe.diffusion.low_pass",
    "build_scheduler": "dr2pipe.diffusion.timesteps",
    "build_enhancer": "dr2pipe.enhancers",
    "convert_checkpoint": "dr2pipe.convert",
    "DR2Config": "dr2pipe.diffusion.stage1",
    "EnhancerConfig": "dr2pipe.restoration.restorer",
    "Restorer": "dr2pipe.restoration.restorer",
    "build_restorer": "dr2pipe.restoration.restorer",
    "find_model": "dr2pipe.core.models",
}

__all__ = [
    "DR2Config",
    "DR2Pipeline",
    "EnhancerConfig",
    "PhotoRestorer",
    "Restorer",
    "__version__",
    "build_enhancer",
    "build_low_pass",
    "build_restorer",
    "build_scheduler",
    "convert_checkpoint",
    "find_model",
    "remove_degradation",
]


if TYPE_CHECKING:
    from dr2pipe.convert import convert_checkpoint
    from dr2pipe.core.models import find_model
    from dr2pipe.diffusion.dr2 import remove_degradation
    from dr2pipe.diffusion.low_pass import build_low_pass
    from dr2pipe.diffusion.pipeline import DR2Pipeline
    from dr2pipe.diffusion.stage1 import DR2Config
    from dr2pipe.diffusion.timesteps import build_scheduler
    from dr2pipe.enhancers import build_enhancer
    from dr2pipe.restoration.photo_restorer import PhotoRestorer
    from dr2pipe.restoration.restorer import EnhancerConfig, Restorer, build_restorer
else:

    def __getattr__(name: str) -> Any:
        # Lazy: importing the package must not import torch.
        if name in _PUBLIC:
            return getattr(importlib.import_module(_PUBLIC[name]), name)
        raise AttributeError(f"module 'dr2pipe' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
