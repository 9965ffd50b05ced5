"""UNets of guided-diffusion (ADM), ILVR, P2-weighting and DR2 as ``UNet2DModel``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from dr2pipe.convert.state_dicts import load_exactly
from dr2pipe.core.diffusers_types import UNet2DModel
from dr2pipe.core.errors import ConfigError

_KIND = "guided_diffusion_unet"
# The default widths of guided-diffusion's scripts where channel_mult is left open.
_DEFAULT_CHANNEL_MULT = {256: (1, 1, 2, 2, 4, 4), 128: (1, 1, 2, 3, 4), 64: (1, 2, 3, 4)}
_RESNET_PARTS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def convert_guided_diffusion_unet(
    state_dict: dict[str, torch.Tensor],
    *,
    image_size: int = 256,
    in_channels: int = 3,
    model_channels: int = 128,
    out_channels: int = 6,
    num_res_blocks: int = 1,
    attention_resolutions: Sequence[int] = (16,),
    dropout: float = 0.0,
    channel_mult: Sequence[float] | None = None,
    conv_resample: bool = True,
    dims: int = 2,
    num_classes: int | None = None,
    use_checkpoint: bool = False,
    use_fp16: bool = False,
    num_heads: int = 4,
    num_head_channels: int = 64,
    num_heads_upsample: int = -1,
    use_scale_shift_norm: bool = True,
    resblock_updown: bool = True,
    use_new_attention_order: bool = False,
) -> UNet2DModel:
    """Convert; the defaults are those of DR2_FFHQ.pkl, ffhq_10m.pt and the P2 FFHQ files.

    Args:
        attention_resolutions: down-sampling factors (16 = the 16-pixel maps of 256 pixels).
        use_checkpoint, use_fp16: accepted and without effect on the result.

    Raises:
        ConfigError: an option that ``UNet2DModel`` cannot express, named.
        CheckpointError: missing, left-over or misshapen keys.
    """
    if channel_mult is None:
        if image_size not in _DEFAULT_CHANNEL_MULT:
            raise ConfigError(f"channel_mult must be given for image_size={image_size}")
        channel_mult = _DEFAULT_CHANNEL_MULT[image_size]
    multipliers = _numbers(channel_mult, "channel_mult")
    factors = _numbers(attention_resolutions, "attention_resolutions")
    attends = [2**level in factors for level in range(len(multipliers))]
    _check_expressible(multipliers, dims, conv_resample, resblock_updown)
    widths = [int(m * model_channels) for m in multipliers]
    head_channels = _head_channels(
        [w for w, a in zip(widths, attends, strict=True) if a] + [widths[-1]],
        num_heads,
        num_head_channels,
        num_heads_upsample,
    )
    resample = "Resnet{}sampleBlock2D" if resblock_updown else "{}Block2D"
    down = ["AttnDownBlock2D" if a else resample.format("Down") for a in attends]
    up = ["AttnUpBlock2D" if a else resample.format("Up") for a in reversed(attends)]
    unet = UNet2DModel(
        sample_size=image_size,
        in_channels=in_channels,
        out_channels=out_channels,
        layers_per_block=num_res_blocks,
        block_out_channels=tuple(widths),
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        downsample_type="resnet" if resblock_updown else "conv",
        upsample_type="resnet" if resblock_updown else "conv",
        resnet_time_scale_shift="scale_shift" if use_scale_shift_norm else "default",
        attention_head_dim=head_channels,
        norm_num_groups=32,
        attn_norm_num_groups=32,
        norm_eps=1e-5,
        dropout=dropout,
        num_class_embeds=num_classes,
        flip_sin_to_cos=True,  # the embedding holds cosines first
        freq_shift=0,
    )
    return _load(unet, state_dict, head_channels, use_new_attention_order)


def _check_expressible(
    multipliers: list[float], dims: int, conv_resample: bool, resblock_updown: bool
) -> None:
    """Raise ConfigError for an option that ``UNet2DModel`` does not have."""
    if dims != 2:
        raise ConfigError(f"dims={dims} cannot be expressed by UNet2DModel; only 2 can")
    if multipliers[0] != 1:
        raise ConfigError(
            f"channel_mult[0]={multipliers[0]} cannot be expressed by UNet2DModel, whose "
            f"timestep embedding is as wide as its first block; only 1 can"
        )
    if not conv_resample and not resblock_updown:
        raise ConfigError(
            "conv_resample=False cannot be expressed by UNet2DModel, which always resamples by "
            "a convolution or a residual block"
        )


def _load(
    unet: UNet2DModel,
    state_dict: dict[str, torch.Tensor],
    head_channels: int | None,
    new_attention_order: bool,
) -> UNet2DModel:
    names = dict(_key_pairs(unet))
    left_over = dict(state_dict)
    weights = {n: left_over.pop(f) for n, f in names.items() if f in left_over}
    for attention, foreign in _attention_pairs(unet):
        for part in ("weight", "bias"):
            fused_key, out_key = f"{foreign}.qkv.{part}", f"{foreign}.proj_out.{part}"
            names |= {f"{attention}.to_{x}.{part}": fused_key for x in "qkv"}
            names[f"{attention}.to_out.0.{part}"] = out_key
            if out_key in left_over:
                out = left_over.pop(out_key)
                weights[f"{attention}.to_out.0.{part}"] = (
                    out.squeeze(-1) if part == "weight" else out
                )
            if fused_key not in left_over:
                continue
            parts = _split_qkv(left_over[fused_key], head_channels, new_attention_order)
            if parts is not None:  # else misshapen: reported with everything else left over
                del left_over[fused_key]
                weights |= {
                    f"{attention}.to_{x}.{part}": p for x, p in zip("qkv", parts, strict=True)
                }
    return load_exactly(unet, weights | left_over, kind=_KIND, original_names=names)


def _numbers(value: Sequence[float] | float | str, name: str) -> list[float]:
    """Numbers given as a list, as one number, or as the reference's "16,8"."""
    parts = value.split(",") if isinstance(value, str) else value
    try:
        return [float(part) for part in (parts if isinstance(parts, Sequence) else [parts])]
    except (TypeError, ValueError):
        raise ConfigError(f"{name}={value!r} must be numbers, such as [16,8] or 16,8") from None


def _head_channels(
    widths: list[int], num_heads: int, num_head_channels: int, num_heads_upsample: int
) -> int | None:
    """The one head width that all attention layers share, as ``UNet2DModel`` wants it."""
    if num_head_channels != -1:
        return num_head_channels
    if num_heads == 1 and num_heads_upsample in (-1, 1):
        return None  # one head as wide as its layer
    if num_heads_upsample not in (-1, num_heads):
        raise ConfigError(
            f"num_heads_upsample={num_heads_upsample} beside num_heads={num_heads} cannot be "
            f"expressed by UNet2DModel, which has one head width for both halves"
        )
    if len({w // num_heads for w in widths}) > 1:
        raise ConfigError(
            f"num_heads={num_heads} over layers of {sorted(set(widths))} channels cannot be "
            f"expressed by UNet2DModel, which has one head width for all; give num_head_channels"
        )
    return widths[-1] // num_heads


def _split_qkv(
    fused: torch.Tensor, head_channels: int | None, new_order: bool
) -> list[torch.Tensor] | None:
    """Rows of q, k and v from the fused 1-D convolution (3C, C, 1) or its bias (3C,).

    None when they are not 3 x heads of ``head_channels`` (all channels if that is None).
    """
    fused = fused.squeeze(-1) if fused.ndim == 3 else fused
    channels = fused.shape[0] // 3
    head_channels = head_channels or channels
    if fused.shape[0] % 3 or channels % head_channels:
        return None
    if new_order:
        return list(fused.chunk(3))
    # Legacy order: the rows of each head hold its q, k and v.
    by_head = fused.reshape(channels // head_channels, 3, head_channels, *fused.shape[1:])
    return [by_head[:, i].reshape(channels, *fused.shape[1:]) for i in range(3)]


def _places(unet: UNet2DModel) -> Iterator[tuple[str, str]]:
    """(native module, foreign module) for every residual block, attention and resampler."""
    place = 1  # input_blocks.0 is the first convolution
    for i, block in enumerate(unet.down_blocks):
        for j in range(len(block.resnets)):
            yield f"down_blocks.{i}.resnets.{j}", f"input_blocks.{place}.0"
            if hasattr(block, "attentions"):
                yield f"down_blocks.{i}.attentions.{j}", f"input_blocks.{place}.1"
            place += 1
        if block.downsamplers is not None:
            yield f"down_blocks.{i}.downsamplers.0", f"input_blocks.{place}.0"
            place += 1
    yield "mid_block.resnets.0", "middle_block.0"
    yield "mid_block.attentions.0", "middle_block.1"
    yield "mid_block.resnets.1", "middle_block.2"
    place = 0
    for i, block in enumerate(unet.up_blocks):
        has_attention = hasattr(block, "attentions")
        for j in range(len(block.resnets)):
            yield f"up_blocks.{i}.resnets.{j}", f"output_blocks.{place}.0"
            if has_attention:
                yield f"up_blocks.{i}.attentions.{j}", f"output_blocks.{place}.1"
            last = j == len(block.resnets) - 1
            if last and block.upsamplers is not None:
                yield f"up_blocks.{i}.upsamplers.0", f"output_blocks.{place}.{1 + has_attention}"
            place += 1


def _attention_pairs(unet: UNet2DModel) -> list[tuple[str, str]]:
    return [(native, foreign) for native, foreign in _places(unet) if ".attentions." in native]


def _key_pairs(unet: UNet2DModel) -> Iterator[tuple[str, str]]:
    """(native key, foreign key) for everything that is copied as it is."""
    modules = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    for native, foreign in _places(unet):
        resampler = "samplers." in native
        if ".attentions." in native:
            modules[f"{native}.group_norm"] = f"{foreign}.norm"
        elif resampler and not hasattr(unet.get_submodule(native), "conv1"):
            modules[f"{native}.conv"] = f"{foreign}.op" if "down" in native else f"{foreign}.conv"
        else:
            modules |= {f"{native}.{n}": f"{foreign}.{f}" for n, f in _RESNET_PARTS.items()}
    existing = unet.state_dict()
    for native, foreign in modules.items():
        for part in ("weight", "bias"):
            if f"{native}.{part}" in existing:
                yield f"{native}.{part}", f"{foreign}.{part}"
    if unet.class_embedding is not None:
        yield "class_embedding.weight", "label_emb.weight"
