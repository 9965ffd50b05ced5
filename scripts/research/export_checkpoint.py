"""The averaged weights of a running or stopped DDPM training, as a model folder.

python scripts/research/export_checkpoint.py RUN OUT [--average fast|slow|none]

Reads the newest checkpoint of RUN and leaves the run alone. ``fast`` is the average of
``ema_decay``, ``slow`` that of ``slow_ema_decay``, ``none`` the weights as they were.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from dr2pipe.cli import report_errors
from dr2pipe.core.config import from_dict
from dr2pipe.core.errors import ConfigError
from dr2pipe.training.recipes.ddpm import DDPMConfig, build_unet, export_model

AVERAGES = ("fast", "slow", "none")


def export_checkpoint(run: Path, output: Path, average: str) -> int:
    """Write the model folder ``output`` and return the step that it is of.

    Raises:
        ConfigError: no checkpoint, or not the average that is asked for.
    """
    found = sorted((run / "checkpoints").glob("step_*"))
    if not found:
        raise ConfigError(f"no checkpoint in {run}")
    folder = found[-1]
    state = torch.load(folder / "training_state.pt", map_location="cpu", weights_only=True)
    config = from_dict(DDPMConfig, state["config"])
    unet = build_unet(config.unet, config.data.size, out_channels=_channels(config))
    name = "slow" if average == "slow" else "unet"
    if not (folder / name).is_dir():
        raise ConfigError(f"{folder} has no slow average; set slow_ema_decay")
    unet.load_state_dict(load_file(folder / name / "diffusion_pytorch_model.safetensors"))
    if average == "fast":
        averaged = state["emas"]["unet"]["shadow_params"]
        for parameter, value in zip(unet.parameters(), averaged, strict=True):
            parameter.data.copy_(value)
    export_model(config, unet.eval(), output)
    return int(state["step"])


def _channels(config: DDPMConfig) -> int:
    return 6 if config.variance == "learned_range" else 3


def main() -> int:
    """Read the arguments, export, and print what was done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--average", default="fast", choices=AVERAGES)
    options = parser.parse_args()
    step = export_checkpoint(options.run, options.output, options.average)
    print(f"step {step}, average {options.average} -> {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(report_errors(main))
