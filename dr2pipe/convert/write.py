"""Writing converted networks as folders that inference loads."""

from __future__ import annotations

from pathlib import Path

from dr2pipe.convert import convert_checkpoint
from dr2pipe.core import files
from dr2pipe.core.diffusers_types import UNet2DModel
from dr2pipe.core.errors import ConfigError
from dr2pipe.diffusion.pipeline import DR2Pipeline
from dr2pipe.diffusion.timesteps import build_scheduler


def write_native(source: str | Path, output: str | Path, kind: str, **constructor) -> None:
    """Convert ``source`` and write it to ``output``: a DR2 pipeline or an enhancer folder.

    Raises:
        ConfigError: the output exists already, or as ``convert_checkpoint``.
    """
    output = Path(output)
    if output.exists():
        raise ConfigError(f"{output} exists already; choose another folder or remove it first")
    network = convert_checkpoint(source, kind, **constructor)
    if isinstance(network, UNet2DModel):
        learned = network.config.out_channels == 6
        variance = "learned_range" if learned else "fixed_small"
        network = DR2Pipeline(network, build_scheduler("ddpm", variance=variance))
    files.write_folder(output, network.save_pretrained)
