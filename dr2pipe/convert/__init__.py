"""Converting foreign checkpoints to native networks."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dr2pipe.convert.exegan import (
    convert_exegan,
    convert_exegan_discriminator,
    convert_psp_encoder,
    convert_resnet101_identity,
)
from dr2pipe.convert.features import convert_arcface_resnet18
from dr2pipe.convert.gfpgan import convert_gfpgan_clean, convert_gfpgan_original
from dr2pipe.convert.guided_diffusion import convert_guided_diffusion_unet
from dr2pipe.convert.panini import (
    convert_moco_degradation_encoder,
    convert_panini_mfr,
    convert_panini_sr,
)
from dr2pipe.convert.sparnet import convert_sparnet
from dr2pipe.convert.state_dicts import read_state_dict
from dr2pipe.convert.stylegan2 import (
    convert_face_part_discriminator,
    convert_stylegan2_discriminator,
    convert_stylegan2_generator,
)
from dr2pipe.core.diffusers_types import ModelMixin
from dr2pipe.core.errors import ConfigError

__all__ = ["CONVERTERS", "convert_checkpoint"]

CONVERTERS: dict[str, Callable[..., ModelMixin]] = {
    "guided_diffusion_unet": convert_guided_diffusion_unet,
    "sparnet": convert_sparnet,
    "gfpgan_clean": convert_gfpgan_clean,
    "gfpgan_original": convert_gfpgan_original,
    "panini_sr": convert_panini_sr,
    "panini_mfr": convert_panini_mfr,
    "moco_degradation_encoder": convert_moco_degradation_encoder,
    "exegan": convert_exegan,
    "exegan_discriminator": convert_exegan_discriminator,
    "psp_encoder": convert_psp_encoder,
    "resnet101_identity": convert_resnet101_identity,
    "stylegan2_generator": convert_stylegan2_generator,
    "stylegan2_discriminator": convert_stylegan2_discriminator,
    "face_part_discriminator": convert_face_part_discriminator,
    "arcface_resnet18": convert_arcface_resnet18,
}

# Which of several networks in one training file.
_PREFERRED = {"exegan_discriminator": "d"}


def convert_checkpoint(
    source: str | Path | dict[str, torch.Tensor], kind: str, **constructor: Any
) -> ModelMixin:
    """The native network of a foreign checkpoint, in evaluation mode.

    Args:
        source: a file (read with ``weights_only``, so it cannot run code) or a state dict.
        kind: one of ``CONVERTERS``.
        constructor: the reference's own arguments where they differ from the official ones.

    Raises:
        ConfigError: unknown kind or argument, or one that the native network cannot express.
        CheckpointError: unreadable file, or missing, left-over or misshapen keys.
    """
    if kind not in CONVERTERS:
        raise ConfigError(f"unknown kind '{kind}'; choose one of {', '.join(CONVERTERS)}")
    convert = CONVERTERS[kind]
    known = [name for name in inspect.signature(convert).parameters if name != "state_dict"]
    unknown = sorted(set(constructor) - set(known))
    if unknown:
        takes = ", ".join(known) or "none"
        raise ConfigError(f"{kind} has no argument {', '.join(unknown)}; it takes {takes}")
    return convert(read_state_dict(source, prefer=_PREFERRED.get(kind)), **constructor).eval()
