"""Training checkpoints: native network folders beside one file with everything else."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from dr2pipe.core import files
from dr2pipe.core.config import to_dict
from dr2pipe.core.diffusers_types import ModelMixin
from dr2pipe.core.errors import ConfigError
from dr2pipe.core.model_folders import load_network
from dr2pipe.training.recipe import Networks, TrainConfig, unwrap

logger = logging.getLogger(__name__)

# Settings that may change between the parts of a run without changing what is learned.
_FREE_TO_CHANGE = {
    "output",
    "total_steps",
    "log_every_steps",
    "preview_every_steps",
    "save_every_steps",
    "keep_checkpoints",
    "loader_workers",
    "export_precision",
    "trackers",
}
_WEIGHTS = "diffusion_pytorch_model.safetensors"


def save_checkpoint(output: Path, networks: Networks, state: dict[str, Any], *, keep: int) -> None:
    """Write ``checkpoints/step_<N>`` whole or not at all; only the newest ``keep`` stay.

    Args:
        output: the output folder of the run.
        networks: bare, each is saved as a native folder.
        state: everything else; ``step`` names the checkpoint.
        keep: number of checkpoints, 1 or more.
    """
    checkpoints = output / "checkpoints"
    target = checkpoints / f"step_{state['step']:08d}"
    if target.exists():
        return

    def save(folder: Path) -> None:
        for name, network in networks.items():
            unwrap(network, ModelMixin).save_pretrained(folder / name)
        torch.save(state, folder / "training_state.pt")

    files.write_folder(target, save)
    for old in sorted(checkpoints.glob("step_*"))[:-keep]:
        shutil.rmtree(old)


def load_newest_checkpoint(
    output: Path, networks: Networks, *, recipe: str
) -> dict[str, Any] | None:
    """Load the newest checkpoint's weights into ``networks`` and return the rest of it.

    Returns:
        What :func:`save_checkpoint` got as ``state``; None where there is no checkpoint.

    Raises:
        ConfigError: the checkpoint belongs to another recipe or to other networks.
    """
    found = sorted((output / "checkpoints").glob("step_*"))
    if not found:
        return None
    folder = found[-1]
    state: dict[str, Any] = torch.load(
        folder / "training_state.pt", map_location="cpu", weights_only=True
    )
    if state["recipe"] != recipe:
        raise ConfigError(
            f"{folder} was made by the recipe '{state['recipe']}', not '{recipe}'; "
            f"choose another output folder"
        )
    for name, network in networks.items():
        saved = json.loads((folder / name / "config.json").read_text())
        wanted = json.loads(unwrap(network, ModelMixin).to_json_string())
        keys = sorted({k for k in (*wanted, *saved) if k[0] != "_"})
        differing = [k for k in keys if wanted.get(k) != saved.get(k)]
        if differing:
            raise ConfigError(
                f"{folder}/{name} was trained with another {', '.join(differing)}; "
                f"choose another output folder"
            )
        network.load_state_dict(load_file(folder / name / _WEIGHTS))
    return state


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load an optimizer's moments; rates, betas and the like stay as the configuration has them."""
    settings = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, given in zip(optimizer.param_groups, settings, strict=True):
        group.update(given)


def warn_of_changes(config: TrainConfig, images_per_step: int, state: dict[str, Any]) -> None:
    """Log which settings differ from those that ``state`` was saved with.

    Raises:
        ConfigError: the checkpoint is past the last step.
    """
    if state["step"] > config.total_steps:
        raise ConfigError(
            f"{config.output} has a checkpoint of step {state['step']}, past "
            f"total_steps={config.total_steps}; choose another output folder"
        )
    now = to_dict(config) | {"images_per_step": images_per_step}
    before = state["config"] | {"images_per_step": state["images_per_step"]}
    free = _FREE_TO_CHANGE - ({"total_steps"} if config.schedule == "cosine" else set())
    changed = [k for k in now if k not in free and now[k] != before.get(k)]
    if changed:
        logger.warning(
            "resuming with another %s: the result will differ from that of a run without a stop",
            ", ".join(changed),
        )


def load_matching_weights(
    network: ModelMixin, folder: str | Path, *, without: str | None = None
) -> None:
    """Copy the weights of a native folder into ``network``.

    Args:
        network: of the same class and with the same settings.
        folder: config.json and safetensors.
        without: a part of the network that stays as it is; settings whose names begin with the
            part's name may differ.

    Raises:
        CheckpointError: no such folder, or a network of another class.
        ConfigError: a network with other settings.
    """
    found = load_network(folder, type(network))
    ignored = ("_",) if without is None else ("_", f"{without}_")
    differing = [
        f"{key}={found.config.get(key)} instead of {value}"
        for key, value in network.config.items()
        if not key.startswith(ignored) and found.config.get(key) != value
    ]
    if differing:
        raise ConfigError(f"{folder} does not fit: {', '.join(differing)}")
    weights = found.state_dict()
    if without is not None:
        weights = {k: v for k, v in weights.items() if not k.startswith(f"{without}.")}
    network.load_state_dict(weights, strict=without is None)
