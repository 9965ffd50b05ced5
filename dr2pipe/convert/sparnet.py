"""SPARNet and SPARNetHD files (DR2 and Face-SPARNet releases) as :class:`SPARNet`."""

from __future__ import annotations

import math
import re

import torch

from dr2pipe.convert.state_dicts import CheckpointError, load_exactly
from dr2pipe.enhancers.sparnet import SPARNet

_ATTENTIONS = {"spar": "2d", "spar3d": "3d"}
_NORMS = {"in": "instance", "bn": "batch"}
# Official sizes: (size, max_ch, min_feat_size) of SPARNetHD and of SPARNet.
_OFFICIAL = {"in": (512, 512, 32), "bn": (128, 128, 16)}


def convert_sparnet(
    state_dict: dict[str, torch.Tensor],
    *,
    size: int | None = None,
    ch_in: int = 3,
    min_ch: int = 32,
    max_ch: int | None = None,
    min_feat_size: int | None = None,
    res_depth: int = 10,
    relu_type: str = "leakyrelu",
    norm_type: str | None = None,
    att_name: str | None = None,
    bottleneck_size: int = 4,
) -> SPARNet:
    """Convert; the kind (norm, attention) is read off the keys, the sizes are the official ones.

    Spectral-norm keys (``weight_orig``, ``weight_u``, ``weight_v``) are folded into weights.

    Raises:
        ValueError: an argument that ``SPARNet`` cannot express, named.
        CheckpointError: missing, left-over or misshapen keys.
    """
    if ch_in != 3:
        raise ValueError(f"ch_in={ch_in} cannot be expressed; only 3 (RGB) can")
    if relu_type != "leakyrelu":
        raise ValueError(f"relu_type='{relu_type}' cannot be expressed; only 'leakyrelu' can")
    state_dict = fold_spectral_norm(state_dict)
    if norm_type is None:
        norm_type = "bn" if any(k.endswith("running_mean") for k in state_dict) else "in"
    if att_name is None:
        map_bias = state_dict.get("encoder.1.att_func.out_block.0.conv2d.bias", torch.zeros(1))
        att_name = "spar" if len(map_bias) == 1 else "spar3d"
    for name, value, known in (
        ("norm_type", norm_type, _NORMS),
        ("att_name", att_name, _ATTENTIONS),
    ):
        if value not in known:
            raise ValueError(f"{name}='{value}' cannot be expressed; choose {', '.join(known)}")
    official = _OFFICIAL[norm_type]
    size, max_ch, min_feat_size = (
        given or default
        for given, default in zip((size, max_ch, min_feat_size), official, strict=True)
    )
    halvings = int(math.log2(size // min_feat_size))
    narrowest = max(max_ch // (halvings + 1), min_ch)
    network = SPARNet(
        size=size,
        channels=tuple(min(narrowest << level, max_ch) for level in range(halvings + 1)),
        residual_blocks=res_depth + 3 - halvings,
        attention=_ATTENTIONS[att_name],
        norm=_NORMS[norm_type],
        hourglass_depth=int(math.log2(64 // bottleneck_size)),
    )
    names = {key: _foreign_key(key, network) for key in network.state_dict()}
    native = {foreign: key for key, foreign in names.items()}
    weights = {native.get(key, key): value for key, value in state_dict.items()}
    return load_exactly(network, weights, kind="sparnet", original_names=names)


def fold_spectral_norm(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights divided by their spectral norm uᵀWv (Miyato et al. 2018), u and v removed."""
    folded = {k: v for k, v in state_dict.items() if not re.search(r"weight_(orig|u|v)$", k)}
    for key, weight in state_dict.items():
        if not key.endswith("weight_orig"):
            continue
        stem = key.removesuffix("_orig")
        try:
            u, v = state_dict[f"{stem}_u"].double(), state_dict[f"{stem}_v"].double()
        except KeyError as missing:
            raise CheckpointError(
                f"the checkpoint does not fit 'sparnet': {missing} is missing"
            ) from None
        sigma = u @ weight.double().flatten(1) @ v
        folded[stem] = (weight.double() / sigma).float()
    return folded


def _foreign_key(key: str, network: SPARNet) -> str:
    """The reference's name of a native key."""
    if match := re.match(r"(encoder|inner|decoder)\.(\d+)\.attention\.((?:inner\.)*)(.*)", key):
        part, index, nesting, rest = match.groups()
        block = getattr(network, part)[int(index)]
        depth = _depth(block.attention)
        level = depth - nesting.count("inner.")
        branch = rest.split(".")[0]
        if level == 0:  # the innermost convolution
            rest, branch_name = f"x.{rest}", "b2_plus_1"
        else:
            branch_name = {"same": "b1", "down": "b2", "after": "b3"}[branch] + f"_{level}"
        tail = rest.split(".", 1)[1]
        return f"{_stage(part, index)}.att_func.{branch_name}.{_leaf(tail)}"
    if match := re.match(
        r"(encoder|inner|decoder)\.(\d+)\.(norm|conv1|conv2|to_map|shortcut)\.(.*)", key
    ):
        part, index, module, tail = match.groups()
        if module == "norm":
            return f"{_stage(part, index)}.preact_func.0.norm.{tail}"
        name = {"to_map": "att_func.out_block.0", "shortcut": "shortcut_func"}.get(module, module)
        return f"{_stage(part, index)}.{name}.{_leaf(tail)}"
    first_or_last, tail = key.split(".", 1)
    return {"first": "encoder.0", "last": "out_conv"}[first_or_last] + "." + _leaf(tail)


def _stage(part: str, index: str) -> str:
    if part == "encoder":
        return f"encoder.{int(index) + 1}"  # encoder.0 is the first convolution
    return f"{'res_layers' if part == 'inner' else part}.{index}"


def _leaf(tail: str) -> str:
    """conv.conv.weight -> conv2d.weight, conv.weight -> conv2d.weight, norm.bias -> norm.norm.bias."""
    *module, parameter = tail.split(".")
    return f"norm.norm.{parameter}" if module[0] == "norm" else f"conv2d.{parameter}"


def _depth(hourglass: torch.nn.Module) -> int:
    inner = hourglass.inner
    return 1 + (_depth(inner) if hasattr(inner, "inner") else 0)
