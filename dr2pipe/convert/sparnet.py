"""SPARNet and SPARNetHD files (DR2 and Face-SPARNet releases) as :class:`SPARNet`."""

from __future__ import annotations

import re

import torch

from dr2pipe.convert.state_dicts import load_exactly
from dr2pipe.core.errors import CheckpointError, ConfigError
from dr2pipe.enhancers.sparnet import SPARNet

_KIND = "sparnet"
_ATTENTIONS = {"spar": "2d", "spar3d": "3d"}
_NORMS = {"in": "instance", "bn": "batch"}
_OFFICIAL_SIZES = {"in": 512, "bn": 128}


def convert_sparnet(
    state_dict: dict[str, torch.Tensor],
    *,
    size: int | None = None,
    ch_in: int = 3,
    min_ch: int | None = None,
    max_ch: int | None = None,
    min_feat_size: int | None = None,
    res_depth: int | None = None,
    relu_type: str = "leakyrelu",
    norm_type: str | None = None,
    att_name: str | None = None,
    bottleneck_size: int | None = None,
) -> SPARNet:
    """Convert; the keys tell the architecture, so that ``size`` is all that may be wanted.

    Spectral-norm keys (``weight_orig``, ``weight_u``, ``weight_v``) are folded into weights.

    Args:
        size: side in pixels; 512 for instance norm and 128 for batch norm unless given.
        norm_type, att_name: accepted if the keys agree.
        min_ch, max_ch, min_feat_size, res_depth, bottleneck_size: accepted, told by the keys.

    Raises:
        ConfigError: an argument that ``SPARNet`` cannot express or the keys contradict, named.
        CheckpointError: missing, left-over or misshapen keys.
    """
    if ch_in != 3:
        raise ConfigError(f"ch_in={ch_in} cannot be expressed; only 3 (RGB) can")
    if relu_type != "leakyrelu":
        raise ConfigError(f"relu_type='{relu_type}' cannot be expressed; only 'leakyrelu' can")
    state_dict = fold_spectral_norm(state_dict)
    is_batch_norm = any(key.endswith("running_mean") for key in state_dict)
    map_bias = state_dict.get("encoder.1.att_func.out_block.0.conv2d.bias", torch.zeros(1))
    told = {
        "norm_type": "bn" if is_batch_norm else "in",
        "att_name": "spar" if len(map_bias) == 1 else "spar3d",
    }
    for name, given in (("norm_type", norm_type), ("att_name", att_name)):
        if given not in (None, told[name]):
            raise ConfigError(f"{name}='{given}', but the keys are those of '{told[name]}'")
    channels, residual_blocks, hourglass_depth = _architecture(state_dict)
    network = SPARNet(
        size=size or _OFFICIAL_SIZES[told["norm_type"]],
        channels=channels,
        residual_blocks=residual_blocks,
        attention=_ATTENTIONS[told["att_name"]],
        norm=_NORMS[told["norm_type"]],
        hourglass_depth=hourglass_depth,
    )
    names = {key: _foreign_key(key, network) for key in network.state_dict()}
    native = {foreign: key for key, foreign in names.items()}
    weights = {native.get(key, key): value for key, value in state_dict.items()}
    return load_exactly(network, weights, kind=_KIND, original_names=names)


def _architecture(state_dict: dict[str, torch.Tensor]) -> tuple[tuple[int, ...], int, int]:
    """(channels, residual blocks, hourglass depth), read off the keys."""
    widths: dict[int, int] = {}
    for key, value in state_dict.items():
        if match := re.fullmatch(r"encoder\.(\d+)\.(?:conv1\.)?conv2d\.weight", key):
            widths[int(match[1])] = len(value)
    inner = {m[1] for key in state_dict if (m := re.match(r"res_layers\.(\d+)\.", key))}
    levels = [
        int(m[1]) for key in state_dict if (m := re.match(r"encoder\.1\.att_func\.b1_(\d+)\.", key))
    ]
    if sorted(widths) != list(range(len(widths))) or len(widths) < 2 or not levels:
        wanted = (
            "encoder.0.conv2d.weight, encoder.1.conv1.conv2d.weight, encoder.1.att_func.b1_4, ..."
        )
        raise CheckpointError(
            f"the checkpoint does not fit '{_KIND}': missing are {wanted}; "
            f"left over are {', '.join(list(state_dict)[:8])}, ..."
        )
    return tuple(widths[i] for i in sorted(widths)), len(inner), max(levels)


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
    inner = hourglass.get_submodule("inner")
    return 1 + (_depth(inner) if hasattr(inner, "inner") else 0)
