"""VQFR v1 files as :class:`VQFR`."""

from __future__ import annotations

import re
from typing import Any

import torch

from dr2pipe.convert.state_dicts import load_exactly
from dr2pipe.core.errors import CheckpointError
from dr2pipe.enhancers.vqfr import VQFR

_KIND = "vqfr_v1"
_PATCH = 32  # side of a code in pixels, which the names of the quantizer's keys state
_QUANTIZER = f"quantizer.quantize_dict.Level_{_PATCH}"

# native: the reference's; # is the number of a level, and {} how many times smaller it is. The
# reference counts activations as layers.
_NAMES = {
    "input_features": "inpfeat_extraction.conv",
    "encoder.first": "encoder.conv_in",
    "encoder.levels.#": "encoder.encoder_dict.Level_{}",
    "encoder.down.#": "encoder.pre_downsample_dict.Level_{}.conv",
    "encoder.last.0": f"encoder.enc_convout_dict.Level_{_PATCH}.0",
    "encoder.last.1": f"encoder.enc_convout_dict.Level_{_PATCH}.2",
    "codebook.to_code": f"{_QUANTIZER}.quant_conv",
    "codebook.codes": f"{_QUANTIZER}.embedding.weight",
    "codebook.from_code": f"{_QUANTIZER}.post_quant_conv",
    "texture_decoder.levels.#": "decoder.decoder_dict.Level_{}",
    "texture_decoder.up.#": "decoder.pre_upsample_dict.Level_{}.conv",
    "texture_decoder.last.0": "decoder.conv_out.0",
    "texture_decoder.last.1": "decoder.conv_out.2",
    "main_decoder.warp.#": "main_decoder.align_func_dict.Level_{}",
    "main_decoder.up.#": "main_decoder.pre_upsample_dict.Level_{}.conv",
    "main_decoder.fuse.#": "main_decoder.decoder_dict.Level_{}",
    "main_decoder.last_norm": "main_decoder.conv_out_1.0",
    "main_decoder.last": "main_decoder.conv_out.0",
}
_WARP = {
    "condition": "downsample.conv",
    "compare.0": "offset_conv1.0",
    "compare.1": "offset_conv1.1",
    "compare.2": "offset_conv1.3",
    "compare.3": "offset_conv1.4",
    "compare.4": "offset_conv1.6",
    "motion": "offset_conv2.0",
    "motion_norm": "offset_conv2.1",
    "deform.to_offsets": "dcn.conv_offset",
    "deform": "dcn",
}


def convert_vqfr_v1(state_dict: dict[str, torch.Tensor], *, size: int = 512) -> VQFR:
    """Convert; the keys tell the architecture, and ``size`` is the side in pixels.

    Raises:
        CheckpointError: missing, left-over or misshapen keys.
    """
    network = VQFR(size=size, **_architecture(state_dict))
    names = {key: _foreign_key(key, len(network.encoder.levels)) for key in network.state_dict()}
    native = {foreign: key for key, foreign in names.items()}
    weights = {native.get(key, key): value for key, value in state_dict.items()}
    return load_exactly(network, weights, kind=_KIND, original_names=names)


def _architecture(state_dict: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Constructor arguments of ``VQFR``, read off the keys."""
    try:
        first = state_dict["encoder.conv_in.weight"]
        codes = state_dict["quantizer.quantize_dict.Level_32.embedding.weight"]
        condition = state_dict["inpfeat_extraction.conv.weight"]
        offsets = state_dict["main_decoder.align_func_dict.Level_1.dcn.conv_offset.weight"]
        widths = [
            len(state_dict[f"encoder.encoder_dict.Level_{1 << level}.0.norm1.weight"])
            for level in range(_PATCH.bit_length())
        ]
    except KeyError as missing:
        raise CheckpointError(
            f"the checkpoint does not fit '{_KIND}': {missing} is missing"
        ) from None
    return {
        "base_channels": len(first),
        "channel_multipliers": [width // len(first) for width in widths],
        "encoder_blocks": _count(state_dict, r"encoder\.encoder_dict\.Level_1\.(\d+)\."),
        "decoder_blocks": _count(state_dict, r"decoder\.decoder_dict\.Level_1\.(\d+)\."),
        "num_codes": len(codes),
        "code_channels": codes.shape[1],
        "condition_channels": len(condition),
        "deformable_groups": len(offsets) // 27,
    }


def _count(state_dict: dict[str, torch.Tensor], pattern: str) -> int:
    return len({match[1] for key in state_dict if (match := re.match(pattern, key))})


def _foreign_key(key: str, levels: int) -> str:
    """The reference's name of a native key."""
    part, _, _ = key.partition(".")
    numbered = re.sub(r"^(\w+\.(?:levels|down|up|warp|fuse))\.\d+", r"\1.#", key)
    stem = max((stem for stem in _NAMES if f"{numbered}.".startswith(f"{stem}.")), key=len)
    tail = numbered.removeprefix(stem)
    side = 1
    if stem.endswith("#"):
        place = int(key.removeprefix(stem[:-1]).partition(".")[0])
        # The encoder counts its levels from the full size down, the decoders from the smallest up.
        side = 1 << (place if part == "encoder" else levels - 1 - place)
        if stem.endswith((".up.#", ".fuse.#")):  # named by the level that they make
            side //= 2
        elif stem.endswith(".down.#"):
            side *= 2
    if stem == "main_decoder.warp.#":
        name = max((name for name in _WARP if tail.startswith(f".{name}.")), key=len)
        tail = f".{_WARP[name]}{tail.removeprefix(f'.{name}')}"
    return _NAMES[stem].format(side) + tail.replace(".shortcut.", ".shortcut_conv.")
