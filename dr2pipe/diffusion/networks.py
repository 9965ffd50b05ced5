"""Load the networks of stage 1, and choose how their attention is computed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from dr2pipe.core.diffusers_types import ModelMixin, SchedulerMixin, UNet2DModel
from dr2pipe.core.errors import CheckpointError, ConfigError
from dr2pipe.core.model_folders import (
    CONFIG,
    WEIGHTS,
    check_network,
    class_in_folder,
    load_network,
    read_config,
)
from dr2pipe.diffusion.patched_unet import PatchedUNet
from dr2pipe.diffusion.timesteps import SCHEDULERS

ATTENTIONS = ("auto", "sdpa", "xformers")
NETWORKS: dict[str, type[ModelMixin]] = {"UNet2DModel": UNet2DModel, "PatchedUNet": PatchedUNet}
PIPELINE_SCHEDULERS: dict[str, type[SchedulerMixin]] = {
    kind.__name__: kind for kind in SCHEDULERS.values()
}
INDEX = "model_index.json"


@dataclass
class FaceDDPM:
    """What a model folder holds.

    Attributes:
        unet: the network, in float32.
        scheduler: None where the folder holds a network alone.
        max_timestep: the highest timestep the network was trained on; None for all of them.
    """

    unet: ModelMixin
    scheduler: SchedulerMixin | None = None
    max_timestep: int | None = None


def load_ddpm(folder: Path) -> FaceDDPM:
    """Load a pipeline folder, or the folder of one of ``NETWORKS``.

    Only the classes that this module names are built, from data alone.

    Raises:
        ConfigError: the folder holds neither.
        CheckpointError: its files cannot be loaded.
    """
    index = folder / INDEX
    if index.exists():
        network, scheduler = check_index(index)
        unet, steps = _parts_of(folder)
        return FaceDDPM(
            load_network(unet, NETWORKS[network]).float(),
            _load_scheduler(steps / "scheduler_config.json", scheduler),
            _max_timestep(index),
        )
    kind = class_in_folder(folder)
    if kind in NETWORKS:
        return FaceDDPM(load_network(folder, NETWORKS[kind]).float())
    found = f"a {kind}, not a face DDPM" if kind else "no diffusers model (model_index.json)"
    raise ConfigError(f"{folder} holds {found}; 'dr2pipe convert' makes one from an official file")


def check_index(path: Path) -> tuple[str, str]:
    """Check the ``model_index.json`` of a pipeline folder.

    Returns:
        The names of its network, of ``NETWORKS``, and of its scheduler.

    Raises:
        CheckpointError: a part of another class, or no name of a pipeline.
    """
    content = read_config(path)
    if not isinstance(content.get("_class_name"), str):  # a list would name code of the folder
        raise CheckpointError(f"{path}: '_class_name' must be the name of a pipeline")
    found = []
    for part, known in (("unet", NETWORKS), ("scheduler", PIPELINE_SCHEDULERS)):
        entry = content.get(part)
        library, name = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
        # diffusers would import the library, whatever it is.
        if not isinstance(name, str) or name not in known or library not in _libraries(known[name]):
            raise CheckpointError(
                f"{path}: '{part}' is {entry}; the classes that can be loaded are "
                f"{', '.join(known)}"
            )
        found.append(name)
    extra = [
        name
        for name, entry in content.items()
        if isinstance(entry, list) and name not in ("unet", "scheduler") and entry != [None, None]
    ]
    if extra:
        raise CheckpointError(f"{path}: a face DDPM has no {', '.join(extra)}")
    return found[0], found[1]


def check_folder(folder: Path) -> None:
    """Check a pipeline folder before diffusers sees it.

    Raises:
        CheckpointError: parts of other classes, impossible configs, or weights that cannot fill
            what the config describes.
    """
    network, scheduler = check_index(folder / INDEX)
    unet, steps = _parts_of(folder)
    if (unet / WEIGHTS).exists():
        check_network(unet, NETWORKS[network])
    else:  # weights of another precision, which diffusers finds by its own names
        read_config(unet / CONFIG)
    _load_scheduler(steps / "scheduler_config.json", scheduler)


def _parts_of(folder: Path) -> tuple[Path, Path]:
    """The folders of network and scheduler; old models of the hub keep all files side by side."""
    unet, steps = (folder / part for part in ("unet", "scheduler"))
    return unet if unet.is_dir() else folder, steps if steps.is_dir() else folder


def _libraries(kind: type) -> tuple[str, ...]:
    """What stands for the module of a class in a ``model_index.json``."""
    module = kind.__module__
    return (module, "diffusers") if module.startswith("diffusers.") else (module,)


def _load_scheduler(path: Path, name: str) -> SchedulerMixin:
    config = {key: value for key, value in read_config(path).items() if key[0] != "_"}
    try:
        scheduler: SchedulerMixin = PIPELINE_SCHEDULERS[name].from_config(config)
    except Exception as error:  # whatever foreign values make of it
        raise CheckpointError(f"{path} describes no {name}: {error}") from None
    return scheduler


def _max_timestep(index: Path) -> int | None:
    value = read_config(index).get("max_timestep")
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise CheckpointError(f"{index}: max_timestep is {value!r}, not a whole number")
    return value


def use_attention(unet: ModelMixin, attention: str, device: torch.device) -> str:
    """Set the attention of ``unet`` and return what is used, ``sdpa`` or ``xformers``.

    Raises:
        ConfigError: an unknown name, or xformers where it cannot be used.
    """
    if attention not in ATTENTIONS:
        raise ConfigError(f"attention '{attention}': choose {', '.join(ATTENTIONS)}")
    if attention != "xformers":
        return "sdpa"  # torch's own, the default of diffusers
    reason = why_no_xformers(device)
    if reason:
        raise ConfigError(f"attention=xformers cannot be used: {reason}")
    unet.enable_xformers_memory_efficient_attention()
    return "xformers"


def why_no_xformers(device: torch.device) -> str | None:
    """Return why the attention of xformers cannot be used on ``device``; None when it can."""
    if device.type != "cuda":
        return f"it needs a CUDA device, this run uses {device.type}"
    try:
        import xformers.ops

        probe = torch.zeros(1, 8, 1, 32, device=device, dtype=torch.float16)
        xformers.ops.memory_efficient_attention(probe, probe, probe)
    except ImportError as error:
        return f"it is not installed for this torch ({error})"
    except (RuntimeError, NotImplementedError) as error:
        return f"its operator does not run here ({str(error).splitlines()[0]})"
    return None
