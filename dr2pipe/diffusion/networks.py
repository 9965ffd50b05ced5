"""Loading the networks of stage 1, and how their attention is computed."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from dr2pipe.core.diffusers_types import SchedulerMixin, UNet2DModel
from dr2pipe.core.errors import ConfigError
from dr2pipe.diffusion.pipeline import DR2Pipeline

ATTENTIONS = ("auto", "sdpa", "xformers")


def use_attention(unet: UNet2DModel, attention: str, device: torch.device) -> str:
    """Set the attention of ``unet``; returns what is used (``sdpa`` or ``xformers``)."""
    if attention not in ATTENTIONS:
        raise ConfigError(f"attention '{attention}': choose {', '.join(ATTENTIONS)}")
    if attention != "xformers":
        return "sdpa"  # torch's own, the diffusers default
    reason = why_no_xformers(device)
    if reason:
        raise ConfigError(f"attention=xformers cannot be used: {reason}")
    unet.enable_xformers_memory_efficient_attention()
    return "xformers"


def why_no_xformers(device: torch.device) -> str | None:
    """Why xformers' attention cannot be used on ``device``; None when it can."""
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


def load_unet(folder: Path) -> tuple[UNet2DModel, SchedulerMixin | None]:
    """The network of a folder in float32, with its scheduler where the folder has one."""
    try:
        if (folder / "model_index.json").is_file():
            pipeline = DR2Pipeline.from_pretrained(folder, local_files_only=True)
            return pipeline.unet.float(), pipeline.scheduler
        config = folder / "config.json"
        if config.is_file() and json.loads(config.read_text()).get("_class_name") == "UNet2DModel":
            return UNet2DModel.from_pretrained(folder).float(), None
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"cannot load a face DDPM from {folder}: {error}") from error
    raise ConfigError(
        f"{folder} holds no diffusers model (model_index.json); "
        f"'dr2pipe convert' makes one from an official file"
    )
