"""Converting foreign checkpoints to native networks."""

from __future__ import annotations

import inspect
import math
import types
import typing
import warnings
from collections.abc import Callable, Sequence
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
from dr2pipe.convert.vqfr import convert_vqfr_v1
from dr2pipe.core.diffusers_types import ModelMixin
from dr2pipe.core.errors import CheckpointError, ConfigError, Dr2pipeError
from dr2pipe.core.model_folders import within_budget

__all__ = ["CONVERTERS", "convert_checkpoint"]

CONVERTERS: dict[str, Callable[..., ModelMixin]] = {
    "guided_diffusion_unet": convert_guided_diffusion_unet,
    "sparnet": convert_sparnet,
    "gfpgan_clean": convert_gfpgan_clean,
    "gfpgan_original": convert_gfpgan_original,
    "vqfr_v1": convert_vqfr_v1,
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

_MOST_NUMBER = 1 << 17  # of an argument
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
    hints = typing.get_type_hints(convert)
    for name, value in constructor.items():
        if not _fits(value, hints[name]):
            wanted = str(hints[name]).replace("<class '", "").replace("'>", "")
            raise ConfigError(f"{kind}: {name}={value!r} is no {wanted}")
    state_dict = read_state_dict(source, prefer=_PREFERRED.get(kind))
    _try(convert, state_dict, kind, constructor)
    return convert(state_dict, **constructor).eval()


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of ``--set`` is of a parameter's type."""
    choices = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for choice in choices:
        if typing.get_origin(choice) is Sequence:
            # "16,8" and a single number are read too, see guided_diffusion.
            if isinstance(value, str | int | float | list | tuple) and value != []:
                return True
        elif choice is float:
            if isinstance(value, int | float) and not isinstance(value, bool):
                return math.isfinite(value)
        elif choice is int:
            if isinstance(value, int) and not isinstance(value, bool):
                return abs(value) <= _MOST_NUMBER
        elif isinstance(value, choice):
            return True
    return False


def _try(
    convert: Callable[..., ModelMixin],
    state_dict: dict[str, torch.Tensor],
    kind: str,
    constructor: dict[str, Any],
) -> None:
    """Convert without memory for the network, which may not be larger than its weights.

    Here the keys and shapes of the file decide what is built: they can be wrong in any way.

    Raises:
        ConfigError: an argument that the native network cannot express.
        CheckpointError: whatever else goes wrong.
    """
    what = f"the checkpoint does not fit '{kind}': it"
    try:
        with within_budget(len(state_dict), what=what), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nothing is loaded into networks without memory
            convert(state_dict, **constructor)
    except Dr2pipeError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"the checkpoint does not fit '{kind}': {type(error).__name__}: {said}"
        ) from error
