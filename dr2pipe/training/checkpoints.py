"""Training checkpoints: native network folders beside one file with everything else."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from dr2pipe.core import files
from dr2pipe.core.config import to_dict
from dr2pipe.core.diffusers_types import ModelMixin
from dr2pipe.core.errors import CheckpointError, ConfigError, UnreadableFileError
from dr2pipe.core.foreign import read_object
from dr2pipe.core.model_folders import CONFIG, WEIGHTS, load_network
from dr2pipe.core.weights import check_checksums, read_tensors
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
    "compile",
    "export_precision",
    "trackers",
}
_STATE, _HASHES = "training_state.pt", "weights_sha256"
_STATE_KEYS = ("recipe", "config", "step", "images_per_step", "optimizers", "emas", "window")


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

    def save(folder: Path) -> None:
        hashes = {}
        for name, network in networks.items():
            unwrap(network, ModelMixin).save_pretrained(folder / name)
            hashes[name] = files.sha256(folder / name / WEIGHTS)
        torch.save(state | {_HASHES: hashes}, folder / _STATE)

    files.write_folder(target, save)
    for old in _checkpoints_of(output)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)


def _checkpoints_of(output: Path) -> list[Path]:
    """The checkpoints of a run, the newest last."""
    found = [p for p in (output / "checkpoints").glob("step_*") if p.name[5:].isdecimal()]
    return sorted(found, key=lambda p: int(p.name[5:]))


def load_newest_checkpoint(
    output: Path, networks: Networks, *, recipe: str
) -> dict[str, Any] | None:
    """Load the newest whole checkpoint's weights into ``networks`` and return the rest of it.

    Damaged ones, such as a power cut may leave, are passed over with a warning.

    Returns:
        What :func:`save_checkpoint` got as ``state``; None where there is no checkpoint.

    Raises:
        ConfigError: the checkpoint belongs to another recipe or to other networks.
        CheckpointError: there are checkpoints, and all are damaged.
    """
    found = _checkpoints_of(output)
    for folder in reversed(found):
        try:
            state, weights = _read_checkpoint(folder, networks, recipe)
        except (CheckpointError, UnreadableFileError) as error:
            logger.warning("%s is damaged and was passed over: %s", folder, error)
            continue
        for name, tensors in weights.items():
            networks[name].load_state_dict(tensors)
        return state
    if found:
        raise CheckpointError(
            f"all checkpoints in {output / 'checkpoints'} are damaged, the newest is {found[-1]}; "
            "remove them to begin anew, or choose another output folder"
        )
    return None


def read_newest_state(output: Path) -> dict[str, Any]:
    """What the newest checkpoint of a run holds beside its networks.

    Raises:
        Dr2pipeError: there is none, or it is damaged.
    """
    found = _checkpoints_of(output)
    if not found:
        raise ConfigError(f"no checkpoint in {output}")
    for folder in reversed(found[1:]):
        try:
            return _read_state(folder)
        except (CheckpointError, UnreadableFileError):
            continue  # load_newest_checkpoint will say so
    return _read_state(found[0])


def _read_state(folder: Path) -> dict[str, Any]:
    check_checksums(folder / _STATE)
    try:
        state = read_tensors(folder / _STATE)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{folder / _STATE}: {str(error).splitlines()[0]}") from None
    missing = [name for name in _STATE_KEYS if not isinstance(state, dict) or name not in state]
    if missing:
        raise CheckpointError(f"{folder / _STATE} has no {', '.join(missing)}")
    assert isinstance(state, dict)
    return state


def _read_checkpoint(
    folder: Path, networks: Networks, recipe: str
) -> tuple[dict[str, Any], dict[str, dict[str, torch.Tensor]]]:
    """State and weights by network of one checkpoint; CheckpointError where it is damaged."""
    state = _read_state(folder)
    if state["recipe"] != recipe:
        raise ConfigError(
            f"{folder} was made by the recipe '{state['recipe']}', not '{recipe}'; "
            f"choose another output folder"
        )
    hashes = state.pop(_HASHES, {})
    added = sorted(networks.keys() - hashes.keys())
    if hashes and added:
        raise ConfigError(
            f"{folder} has no {', '.join(added)}: these settings train more networks than those of "
            "the run; choose another output folder, or the settings it had"
        )
    weights = {}
    for name, network in networks.items():
        saved = read_object(folder / name / CONFIG)
        wanted = json.loads(unwrap(network, ModelMixin).to_json_string())
        keys = sorted({k for k in (*wanted, *saved) if k[0] != "_"})
        differing = [k for k in keys if wanted.get(k) != saved.get(k)]
        if differing:
            raise ConfigError(
                f"{folder}/{name} was trained with another {', '.join(differing)}; "
                f"choose another output folder"
            )
        path = folder / name / WEIGHTS
        tensors = read_tensors(path)
        expected = network.state_dict()
        if {k: v.shape for k, v in tensors.items()} != {k: v.shape for k, v in expected.items()}:
            raise CheckpointError(f"{path} does not fit its config.json")
        if name in hashes and files.sha256(path) != hashes[name]:
            raise CheckpointError(f"{path} has changed since it was saved")
        weights[name] = tensors
    return state, weights


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load an optimizer's moments; rates, betas and the like stay as the configuration has them."""
    settings = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, given in zip(optimizer.param_groups, settings, strict=True):
        group.update(given)


def warn_of_changes(
    config: TrainConfig, images_per_step: int, state: dict[str, Any], *, showings: int
) -> None:
    """Log which settings, or numbers of faces, differ from those that ``state`` was saved with.

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
    if "showings" in state:
        now, before = (
            now | {"number of faces": showings},
            before | {"number of faces": state["showings"]},
        )
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
    part = None if without is None else f"{without}_"
    free = [key for key in network.config if part is not None and key.startswith(part)]
    check_same_settings(found, network, str(folder), free=free)
    weights = found.state_dict()
    if without is not None:
        weights = {k: v for k, v in weights.items() if not k.startswith(f"{without}.")}
    network.load_state_dict(weights, strict=without is None)


def check_same_settings(
    found: ModelMixin, network: ModelMixin, what: str, *, free: Collection[str] = ()
) -> None:
    """See that weights of ``found`` mean the same in ``network``: shapes alone do not say so.

    Args:
        found: whose weights are wanted.
        network: that is to have them.
        what: where ``found`` is from; begins the message.
        free: settings that may differ.

    Raises:
        ConfigError: another setting differs.
    """
    if type(found) is not type(network):
        names = [type(one).__name__ for one in (found, network)]
        raise ConfigError(f"{what} does not fit: it is a {names[0]}, not a {names[1]}")
    theirs, ours = _settings_of(found), _settings_of(network)
    differing = [
        f"{key}={theirs.get(key)} instead of {value}"
        for key, value in ours.items()
        if key not in free and theirs.get(key) != value
    ]
    if differing:
        raise ConfigError(f"{what} does not fit: {', '.join(differing)}")


def _settings_of(network: ModelMixin) -> dict[str, Any]:
    """What built a network; settings of a network inside it are joined by a dot."""
    settings: dict[str, Any] = {}
    for key, value in json.loads(network.to_json_string()).items():
        if key == "attention_sizes":  # a set
            value = sorted(value)
        inner = {f"{key}.{name}": v for name, v in value.items()} if isinstance(value, dict) else {}
        settings |= inner or {key: value}
    return {key: value for key, value in settings.items() if key[0] != "_"}
