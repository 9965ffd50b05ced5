"""EXE-GAN files: the generator and discriminator, the pSp encoder, and the identity network."""

from __future__ import annotations

import math
import re

import torch

from dr2pipe.convert.state_dicts import load_exactly
from dr2pipe.convert.stylegan2 import (
    convert_stylegan2_discriminator,
    generator_key,
    load_renamed,
    without_fir_kernels,
)
from dr2pipe.core.errors import CheckpointError
from dr2pipe.enhancers.exegan import ExeGAN
from dr2pipe.features.psp import StyleEncoder
from dr2pipe.features.resnet101 import IdentityResNet
from dr2pipe.stylegan2 import StyleGAN2Discriminator

_IR_SE_50 = (3, 4, 14, 3)
_STYLE_LAYERS = {
    "first": "input_layer.0",
    "first_norm": "input_layer.1",
    "first_prelu": "input_layer.2",
    "join_medium": "latlayer1",
    "join_fine": "latlayer2",
}
_UNIT_LAYERS = {
    "norm1": "res_layer.0",
    "conv1": "res_layer.1",
    "prelu": "res_layer.2",
    "conv2": "res_layer.3",
    "norm2": "res_layer.4",
    "squeeze": "res_layer.5.fc1",
    "excite": "res_layer.5.fc2",
    "shortcut.0": "shortcut_layer.0",
    "shortcut.1": "shortcut_layer.1",
}


def convert_exegan(state_dict: dict[str, torch.Tensor], *, psp_start_latent: int = 4) -> ExeGAN:
    """The generator (``g_ema`` of a training file); the keys tell the size and all widths.

    Args:
        psp_start_latent: the first row of the W+ latent that the exemplar gives.

    Raises:
        CheckpointError: missing, left-over or misshapen keys.
    """
    state_dict = without_fir_kernels(state_dict)
    try:
        widest = len(state_dict["down_from_big.0.weight"])
        code = len(state_dict["final_linear.0.weight"])
        style_channels = len(state_dict["style.1.weight"])
    except KeyError as error:
        message = f"the checkpoint does not fit 'exegan': {error} is missing"
        raise CheckpointError(message) from None
    levels = _count(state_dict, r"to_rgbs\.(\d+)\.")
    size = 4 << levels
    network = ExeGAN(
        size=size,
        style_channels=style_channels,
        global_channels=code,
        mapping_layers=_count(state_dict, r"style\.(\d+)\.") - 1,  # the first is no layer
        channel_multiplier=max(widest * size // 16384, 1) if size > 32 else 1,
        first_exemplar_row=psp_start_latent,
    )
    foreign = {key: _generator_key(key) for key in network.state_dict()}
    return load_renamed(network, state_dict, foreign, "exegan")


def convert_exegan_discriminator(state_dict: dict[str, torch.Tensor]) -> StyleGAN2Discriminator:
    """The discriminator (``d`` of a training file), which sees completed pictures.

    Raises:
        CheckpointError: missing, left-over or misshapen keys.
    """
    return convert_stylegan2_discriminator(state_dict)


def convert_psp_encoder(state_dict: dict[str, torch.Tensor]) -> StyleEncoder:
    """The encoder of ``psp_ffhq_encode.pt`` with the file's mean latent; its decoder stays behind.

    Raises:
        CheckpointError: missing, left-over or misshapen keys.
    """
    mean = state_dict.get("latent_avg")
    prefix = "encoder." if any(key.startswith("encoder.") for key in state_dict) else ""
    weights = {
        key.removeprefix(prefix): value
        for key, value in state_dict.items()
        if key.startswith(prefix) and key != "latent_avg"
    }
    rows = _count(weights, r"styles\.(\d+)\.")
    if mean is None:
        raise CheckpointError("the checkpoint does not fit 'psp_encoder': latent_avg is missing")
    weights["latent_avg"] = mean
    network = StyleEncoder(rows=rows or 18, blocks=_IR_SE_50)
    foreign = {key: _style_key(key) for key in network.state_dict()}
    # Its last layers are equalised: used with this factor.
    for key in [key for key in weights if key.endswith(".linear.weight")]:
        weights[key] = weights[key] / math.sqrt(weights[key].shape[1])
    return load_renamed(network, weights, foreign, "psp_encoder")


def convert_resnet101_identity(state_dict: dict[str, torch.Tensor]) -> IdentityResNet:
    """The identity network (``Arcface.pth``, which is no ArcFace by its layers).

    Raises:
        CheckpointError: missing, left-over or misshapen keys.
    """
    blocks = [_count(state_dict, rf"layer{stage}\.(\d+)\.") for stage in range(1, 5)]
    channels = len(state_dict["fc.weight"]) if "fc.weight" in state_dict else 256
    network = IdentityResNet(blocks, channels)
    return load_exactly(network, state_dict, kind="resnet101_identity")


def _count(state_dict: dict[str, torch.Tensor], pattern: str) -> int:
    """One more than the largest number in keys that begin so; 0 where none does."""
    numbers = (re.match(pattern, key) for key in state_dict)
    return max((int(match[1]) + 1 for match in numbers if match), default=0)


def _generator_key(key: str) -> str:
    """The authors' name of a parameter of ``ExeGAN``."""
    part, rest = key.split(".", 1)
    if part == "synthesis":
        return generator_key(rest, "rosinality")
    leaf = rest.rsplit(".", 1)[-1]
    if part in ("look", "down"):
        # Convolutions that look and that reduce take turns; the latter begin with a filter.
        number = 2 * int(rest.split(".")[0]) + (part == "down")
        place = int(leaf == "bias") + (part == "down")
        return f"encoder_convs.{number}.{place}.{leaf}"
    if part == "to_code":
        return f"final_linear.0.{leaf}"
    if part == "to_start":
        return f"final_transfer.{leaf}"
    stem = {"first": "down_from_big", "last": "final_layer"}[part]
    return f"{stem}.{int(leaf == 'bias')}.{leaf}"


def _style_key(key: str) -> str:
    """The authors' name of a parameter of ``StyleEncoder``."""
    if key == "mean_latent":
        return "latent_avg"
    layer, leaf = key.rsplit(".", 1)
    if layer in _STYLE_LAYERS:
        return f"{_STYLE_LAYERS[layer]}.{leaf}"
    part, index, rest = layer.split(".", 2)
    if part == "stages":
        unit, inner = rest.split(".", 1)
        number = sum(_IR_SE_50[: int(index)]) + int(unit)
        return f"body.{number}.{_UNIT_LAYERS[inner]}.{leaf}"
    if rest.startswith("convs."):  # activations count in between
        rest = f"convs.{2 * int(rest.removeprefix('convs.'))}"
    return f"styles.{index}.{rest}.{leaf}"
