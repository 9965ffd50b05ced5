"""Load the networks of stage 1, and choose how their attention is computed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from dr2pipe.core.diffusers_types import ModelMixin, SchedulerMixin, UNet2DModel
from dr2pipe.core.errors import ConfigError
from dr2pipe.diffusion.patched_unet import PatchedUNet
from dr2pipe.diffusion.pipeline import DR2Pipeline

ATTENTIONS = ("auto", "sdpa", "xformers")
NETWORKS: dict[str, type[ModelMixin]] = {"UNet2DModel": UNet2DModel, "PatchedUNet": PatchedUNet}


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

    Raises:
        ConfigError: the folder holds neither, or its files cannot be loaded.
    """
    try:
        if (folder / "model_index.json").is_file():
            pipeline = DR2Pipeline.from_pretrained(folder, local_files_only=True)
            return FaceDDPM(pipeline.unet.float(), pipeline.scheduler, pipeline.max_timestep)
        config = folder / "config.json"
        kind = json.loads(config.read_text()).get("_class_name") if config.is_file() else None
        if kind in NETWORKS:
            return FaceDDPM(NETWORKS[kind].from_pretrained(folder).float())
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"cannot load a face DDPM from {folder}: {error}") from error
    raise ConfigError(
        f"{folder} holds {f'a {kind}' if kind else 'no model_index.json'}, not a face DDPM; "
        f"'dr2pipe convert' makes one from an official file"
    )


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
