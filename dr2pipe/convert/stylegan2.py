"""StyleGAN2 files of four code bases as the family's one generator and discriminator.

BasicSR and GFP-GAN (original and "clean"), MMGeneration (Panini-Net) and the PyTorch port that
EXE-GAN grew from name the same parameters differently; that is all that differs, but for the
clean networks: their layers are not equalised and their leaky ReLUs have no factor, which is
divided out of the weights here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from dr2pipe.convert.state_dicts import Network, load_exactly
from dr2pipe.core.errors import CheckpointError
from dr2pipe.stylegan2 import FacePartDiscriminator, StyleGAN2Discriminator, StyleGAN2Generator
from dr2pipe.stylegan2.layers import (
    LEAKY_RELU_GAIN,
    EqualConv2d,
    EqualLinear,
    ModulatedConv2d,
    ResidualBlock,
    StyledConv,
)


@dataclass(frozen=True)
class GeneratorNames:
    """How a code base calls the generator's parameters; ``{}`` stands for a number."""

    mapping: str
    start: str
    first_conv: str
    convs: str
    first_rgb: str
    rgbs: str
    modulated: str  # prefix of the modulated convolution in its layer
    modulation: str  # prefix of its linear layer
    noise_strength: str
    activation_bias: str
    noise: str
    weight: str = "weight"
    linear_weight: str = "weight"


_BASICSR = GeneratorNames(
    mapping="style_mlp.{}",
    start="constant_input.weight",
    first_conv="style_conv1",
    convs="style_convs.{}",
    first_rgb="to_rgb1",
    rgbs="to_rgbs.{}",
    modulated="modulated_conv",
    modulation="modulation",
    noise_strength="weight",
    activation_bias="activate.bias",
    noise="noises.noise{}",
)
_GENERATORS = {
    "basicsr": _BASICSR,
    "clean": dataclasses.replace(_BASICSR, activation_bias="bias"),
    "mmgen": GeneratorNames(
        mapping="style_mapping.{}",
        start="constant_input.input",
        first_conv="conv1",
        convs="convs.{}",
        first_rgb="to_rgb1",
        rgbs="to_rgbs.{}",
        modulated="conv",
        modulation="style_modulation",
        noise_strength="noise_injector.weight",
        activation_bias="activate.bias",
        noise="injected_noise_{}",
        weight="weight_orig",
        linear_weight="linear.weight_orig",
    ),
    "rosinality": GeneratorNames(
        mapping="style.{}",
        start="input.input",
        first_conv="conv1",
        convs="convs.{}",
        first_rgb="to_rgb1",
        rgbs="to_rgbs.{}",
        modulated="conv",
        modulation="modulation",
        noise_strength="noise.weight",
        activation_bias="activate.bias",
        noise="noises.noise_{}",
    ),
}


@dataclass(frozen=True)
class DiscriminatorNames:
    """What a code base calls the layers of its discriminator.

    Attributes:
        first: the first convolution.
        blocks: pattern of the residual blocks, the first of which has number ``first_block``.
        weight: leaf of a convolution's weight.
        linear_weight: leaf of a linear layer's weight.
    """

    first: str
    blocks: str
    first_block: int
    weight: str = "weight"
    linear_weight: str = "weight"


_DISCRIMINATORS = {
    "basicsr": DiscriminatorNames("conv_body.0", "conv_body.{}", 1),
    "mmgen": DiscriminatorNames("convs.0", "convs.{}", 1, "conv.weight_orig", "linear.weight_orig"),
    "exegan": DiscriminatorNames("encoder_input_convs", "encoder_convs.{}", 0),
    "rosinality": DiscriminatorNames("convs.0", "convs.{}", 1),
}


def convert_stylegan2_generator(
    state_dict: dict[str, torch.Tensor], *, lr_mlp: float = 0.01
) -> StyleGAN2Generator:
    """A generator of any of the four code bases; the keys tell which, and all sizes.

    Of a training file of MMGeneration it takes the averaged generator where there is one.

    Args:
        lr_mlp: learning rate multiplier of the mapping network, which no key tells.

    Raises:
        CheckpointError: missing, left-over or misshapen keys.
    """
    state_dict = _part_of(state_dict, "generator_ema.", "generator.")
    layout = generator_layout(state_dict)
    state_dict = without_fir_kernels(state_dict)
    names = _GENERATORS[layout]
    stage = f"{names.modulated}.{names.modulation}.{names.linear_weight}"
    modulation = _wanted(state_dict, f"{names.first_conv}.{stage}")
    rgb_prefix = names.rgbs.format("")
    levels = {k.removeprefix(rgb_prefix).split(".")[0] for k in state_dict if rgb_prefix in k}
    mapping = [k for k in state_dict if k.startswith(names.mapping.format("")) and ".bias" in k]
    size = 4 << len(levels)
    narrow = len(modulation) / 512
    network = StyleGAN2Generator(
        size=size,
        style_channels=modulation.shape[1],
        mapping_layers=len(mapping),
        mapping_lr=lr_mlp,
        channel_multiplier=_multiplier(state_dict, names, size, narrow),
        narrow=narrow,
        resample="bilinear" if layout == "clean" else "fir",
    )
    foreign = {key: generator_key(key, layout) for key in network.state_dict()}
    return load_renamed(network, state_dict, foreign, "stylegan2_generator", layout == "clean")


def convert_stylegan2_discriminator(state_dict: dict[str, torch.Tensor]) -> StyleGAN2Discriminator:
    """A discriminator of any of the four code bases; the keys tell which, and all sizes.

    Raises:
        CheckpointError: missing, left-over or misshapen keys.
    """
    state_dict = _part_of(state_dict, "discriminator.")
    layout = _discriminator_layout(state_dict)
    state_dict = without_fir_kernels(state_dict)
    names = _DISCRIMINATORS[layout]
    blocks = [key for key in state_dict if key.endswith(f"skip.1.{names.weight}")]
    size = 4 << len(blocks)
    narrow = len(_wanted(state_dict, f"final_conv.0.{names.weight}")) / 512
    widest = len(_wanted(state_dict, f"{names.first}.0.{names.weight}"))
    multiplier = max(round(widest * size / (16384 * narrow)), 1) if size > 32 else 1
    network = StyleGAN2Discriminator(size=size, channel_multiplier=multiplier, narrow=narrow)
    foreign = {key: _discriminator_key(key, names) for key in network.state_dict()}
    return load_renamed(network, state_dict, foreign, "stylegan2_discriminator")


def convert_face_part_discriminator(state_dict: dict[str, torch.Tensor]) -> FacePartDiscriminator:
    """GFP-GAN's discriminator of an eye or a mouth.

    Raises:
        CheckpointError: missing, left-over or misshapen keys.
    """
    network = FacePartDiscriminator()
    foreign = {}
    for i in range(len(network.convs)):
        place = 1 if network.convs[i].change else 0  # behind the filter
        foreign[f"convs.{i}.weight"] = f"conv{i + 1}.{place}.weight"
        foreign[f"convs.{i}.bias"] = f"conv{i + 1}.{place + 1}.bias"
    for leaf in ("weight", "bias"):
        foreign[f"score.{leaf}"] = f"final_conv.0.{leaf}"
    return load_renamed(network, state_dict, foreign, "face_part_discriminator")


def generator_layout(state_dict: Mapping[str, torch.Tensor], prefix: str = "") -> str:
    """Which code base the keys below ``prefix`` come from.

    Raises:
        CheckpointError: from none of them.
    """
    if f"{prefix}style_conv1.bias" in state_dict:
        return "clean"
    for layout, names in _GENERATORS.items():
        if layout != "clean" and f"{prefix}{names.start}" in state_dict:
            return layout
    starts = ", ".join(prefix + names.start for names in _GENERATORS.values())
    raise CheckpointError(f"no StyleGAN2 generator: it has none of the keys {starts}")


def _discriminator_layout(state_dict: Mapping[str, torch.Tensor]) -> str:
    for layout, names in _DISCRIMINATORS.items():
        if f"{names.first}.0.{names.weight}" in state_dict:
            return layout
    raise CheckpointError(
        "no StyleGAN2 discriminator: it has none of the keys "
        + ", ".join(f"{n.first}.0.{n.weight}" for n in _DISCRIMINATORS.values())
    )


def generator_key(key: str, layout: str) -> str:
    """The foreign name of a native generator key."""
    names = _GENERATORS[layout]
    part, _, rest = key.partition(".")
    if part == "start":
        return names.start
    if part.startswith("noise_"):
        return names.noise.format(part.removeprefix("noise_"))
    if part == "mapping":
        _, index, leaf = rest.split(".")
        # The clean network counts its activations too.
        number = 2 * int(index) + 1 if layout == "clean" else int(index) + 1
        leaf = names.linear_weight if leaf == "weight" else leaf
        return f"{names.mapping.format(number)}.{leaf}"
    index, _, leaf = rest.partition(".")
    first, others = {
        "convs": (names.first_conv, names.convs),
        "to_rgbs": (names.first_rgb, names.rgbs),
    }[part]
    layer = first if index == "0" else others.format(int(index) - 1)
    activation_bias = names.activation_bias if part == "convs" else "bias"
    return (
        f"{layer}."
        + {
            "conv.weight": f"{names.modulated}.{names.weight}",
            "conv.modulation.weight": f"{names.modulated}.{names.modulation}.{names.linear_weight}",
            "conv.modulation.bias": f"{names.modulated}.{names.modulation}.bias",
            "noise_strength": names.noise_strength,
            "bias": activation_bias,
        }[leaf]
    )


def _discriminator_key(key: str, names: DiscriminatorNames) -> str:
    layer, leaf = key.rsplit(".", 1)
    if layer in ("hidden", "score"):
        leaf = names.linear_weight if leaf == "weight" else leaf
        return f"final_linear.{0 if layer == 'hidden' else 1}.{leaf}"
    stem = {"from_rgb": names.first, "last": "final_conv"}.get(layer)
    if stem is None:
        _, index, conv = layer.split(".")
        conv = {"shortcut": "skip"}.get(conv, conv)
        stem = f"{names.blocks.format(int(index) + names.first_block)}.{conv}"
    place = 0 if stem.endswith(("conv1", names.first, "final_conv")) else 1  # the filter is 0
    return f"{stem}.{place}.{names.weight}" if leaf == "weight" else f"{stem}.{place + 1}.bias"


def load_renamed(
    network: Network,
    state_dict: Mapping[str, torch.Tensor],
    foreign: Mapping[str, str],
    kind: str,
    unequalised: bool = False,
) -> Network:
    """Load ``state_dict`` by the names of ``foreign`` (native key to foreign key).

    Code bases differ in axes of length one, so a shape may differ in those.

    Args:
        unequalised: the file's weights are not scaled at run time as the native layers' are
            (StyleGAN2's equalised learning rate); divide them by the native layers' factors.

    Raises:
        CheckpointError: missing, left-over or misshapen keys.
    """
    native = {name: key for key, name in foreign.items()}
    expected = network.state_dict()
    factors = used_factors(network) if unequalised else {}
    weights = {}
    for name, value in state_dict.items():
        key = native.get(name, name)
        like = expected.get(key)
        if like is not None and _without_ones(value) == _without_ones(like):
            value = value.reshape(like.shape)
        weights[key] = value / factors[key] if key in factors else value
    return load_exactly(network, weights, kind=kind, original_names=foreign)


def used_factors(network: nn.Module) -> dict[str, float]:
    """What the equalised layers of ``network`` multiply their parameters with, by key."""
    factors: dict[str, float] = {}
    for name, module in network.named_modules():
        if isinstance(module, EqualLinear | EqualConv2d):
            gain = LEAKY_RELU_GAIN if module.activate else 1.0
            factors[f"{name}.weight"] = module.weight_scale * gain
            factors[f"{name}.bias"] = module.bias_scale * gain
        elif isinstance(module, ModulatedConv2d):
            factors[f"{name}.weight"] = module.weight_scale
        elif isinstance(module, StyledConv):
            factors[f"{name}.noise_strength"] = factors[f"{name}.bias"] = LEAKY_RELU_GAIN
    for name, module in network.named_modules():
        if isinstance(module, ResidualBlock):  # (branch + shortcut) / sqrt(2)
            for key in ("conv2.weight", "conv2.bias", "shortcut.weight"):
                factors[f"{name}.{key}"] /= math.sqrt(2)
    return factors


def without_fir_kernels(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without the filters that some code bases store; they must be [1,3,3,1]."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], device="cpu")
    for key, value in state_dict.items():
        if key.endswith(".kernel"):
            expected = taps[:, None] * taps[None, :]
            if value.shape != (4, 4) or not torch.allclose(
                value / value.sum(), expected / expected.sum(), atol=1e-6
            ):
                raise CheckpointError(f"{key} is not the filter [1,3,3,1]")
    return {k: v for k, v in state_dict.items() if not k.endswith(".kernel")}


def _part_of(state_dict: Mapping[str, torch.Tensor], *prefixes: str) -> dict[str, torch.Tensor]:
    """The network below the first of ``prefixes`` that has one; all, where there is none."""
    for prefix in prefixes:
        part = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
        if part:
            return part
    return dict(state_dict)


def _multiplier(
    state_dict: Mapping[str, torch.Tensor], names: GeneratorNames, size: int, narrow: float
) -> int:
    if size < 64:
        return 1  # widths are 512 whatever it is
    last_rgb = names.rgbs.format(int(math.log2(size)) - 3)
    width = _wanted(state_dict, f"{last_rgb}.{names.modulated}.{names.weight}").shape[-3]
    return max(round(width * size / (16384 * narrow)), 1)


def _wanted(state_dict: Mapping[str, torch.Tensor], key: str) -> torch.Tensor:
    if key not in state_dict:
        raise CheckpointError(f"the checkpoint is incomplete: {key} is missing")
    return state_dict[key]


def _without_ones(tensor: torch.Tensor) -> list[int]:
    return [side for side in tensor.shape if side != 1]
