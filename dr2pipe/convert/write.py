"""Writing converted networks as folders that inference loads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dr2pipe.convert import convert_checkpoint
from dr2pipe.core import files
from dr2pipe.core.diffusers_types import UNet2DModel
from dr2pipe.core.errors import ConfigError
from dr2pipe.diffusion.pipeline import DR2Pipeline
from dr2pipe.diffusion.timesteps import build_scheduler


def write_native(source: str | Path, output: str | Path, kind: str, **constructor: Any) -> None:
    """Convert ``source`` and write the folder ``output``: a DR2 pipeline or a single network.

    Raises:
        ConfigError: the output exists already, or as ``convert_checkpoint``.
    """
    output = Path(output)
    if os.path.lexists(output):
        raise ConfigError(f"{output} exists already; choose another folder or remove it first")
    network = convert_checkpoint(source, kind, **constructor)
    save = network.save_pretrained
    if isinstance(network, UNet2DModel):
        learned = network.config.out_channels == 6
        variance = "learned_range" if learned else "fixed_small"
        save = DR2Pipeline(network, build_scheduler("ddpm", variance=variance)).save_pretrained
    files.write_folder(output, save)
