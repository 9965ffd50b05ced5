"""Training checkpoints: native network folders beside one file with everything else."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from dr2pipe.config import ConfigError

_WEIGHTS = "diffusion_pytorch_model.safetensors"


def save_checkpoint(
    output: Path, networks: dict[str, torch.nn.Module], state: dict[str, Any], *, keep: int
) -> None:
    """Write ``checkpoints/step_<N>`` whole or not at all; only the newest ``keep`` stay."""
    checkpoints = output / "checkpoints"
    target, partial = checkpoints / f"step_{state['step']:08d}", checkpoints / "partial"
    if target.exists():
        return
    shutil.rmtree(partial, ignore_errors=True)
    for name, network in networks.items():
        network.save_pretrained(partial / name)
    torch.save(state, partial / "training_state.pt")
    os.replace(partial, target)
    for old in sorted(checkpoints.glob("step_*"))[:-keep]:
        shutil.rmtree(old)


def load_newest_checkpoint(
    output: Path, networks: dict[str, torch.nn.Module], *, recipe: str
) -> dict[str, Any] | None:
    """Load the newest checkpoint's weights into ``networks`` and return the rest of it.

    Raises:
        ConfigError: the checkpoint belongs to another recipe or to other networks.
    """
    found = sorted((output / "checkpoints").glob("step_*"))
    if not found:
        return None
    folder = found[-1]
    state = torch.load(folder / "training_state.pt", map_location="cpu", weights_only=True)
    if state["recipe"] != recipe:
        raise ConfigError(
            f"{folder} was made by the recipe '{state['recipe']}', not '{recipe}'; "
            f"choose another output folder"
        )
    for name, network in networks.items():
        saved = json.loads((folder / name / "config.json").read_text())
        wanted = json.loads(network.to_json_string())
        differing = [k for k in wanted if k[0] != "_" and wanted[k] != saved.get(k)]
        if differing:
            raise ConfigError(
                f"{folder}/{name} was trained with another {', '.join(differing)}; "
                f"choose another output folder"
            )
        network.load_state_dict(load_file(folder / name / _WEIGHTS))
    return state
