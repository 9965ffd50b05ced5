"""GFP-GAN files: v1 (FIR resampling, as in the paper) and the clean v1.2, v1.3, v1.4."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dr2pipe.convert.stylegan2 import generator_key, generator_layout, load_renamed
from dr2pipe.core.errors import CheckpointError, ConfigError
from dr2pipe.enhancers.gfpgan import GFPGAN

_PRIOR = "stylegan_decoder."
_STEMS = {
    "first": "conv_body_first",
    "last": "final_conv",
    "to_latent": "final_linear",
    "down": "conv_body_down",
    "up": "conv_body_up",
    "to_rgbs": "toRGB",
    "to_scale": "condition_scale",
    "to_shift": "condition_shift",
}


def convert_gfpgan_clean(
    state_dict: dict[str, torch.Tensor],
    *,
    out_size: int = 512,
    num_style_feat: int = 512,
    channel_multiplier: int = 2,
    decoder_load_path: str | None = None,
    fix_decoder: bool = False,
    num_mlp: int = 8,
    input_is_latent: bool = True,
    different_w: bool = True,
    narrow: float = 1,
    sft_half: bool = True,
) -> GFPGAN:
    """``GFPGANv1Clean``: the files of versions 1.2, 1.3 and 1.4.

    Args:
        decoder_load_path, fix_decoder: of training; accepted and without effect.

    Raises:
        ConfigError: a size that is not a power of two.
        CheckpointError: missing, left-over or misshapen keys.
    """
    network = GFPGAN(
        size=out_size,
        channel_multiplier=channel_multiplier,
        narrow=narrow,
        resample="bilinear",
        style_channels=num_style_feat,
        mapping_layers=num_mlp,
        latent_per_layer=different_w,
        latent_is_w=input_is_latent,
        split_channels=sft_half,
    )
    return _load(network, state_dict, "gfpgan_clean", "clean")


def convert_gfpgan_original(
    state_dict: dict[str, torch.Tensor],
    *,
    out_size: int = 512,
    num_style_feat: int = 512,
    channel_multiplier: int = 1,
    resample_kernel: Sequence[int] = (1, 3, 3, 1),
    decoder_load_path: str | None = None,
    fix_decoder: bool = True,
    num_mlp: int = 8,
    lr_mlp: float = 0.01,
    input_is_latent: bool = True,
    different_w: bool = True,
    narrow: float = 1,
    sft_half: bool = True,
) -> GFPGAN:
    """``GFPGANv1``: the file of version 1.

    Raises:
        ConfigError: a size that is not a power of two, or another filter than [1,3,3,1].
        CheckpointError: missing, left-over or misshapen keys.
    """
    if list(resample_kernel) != [1, 3, 3, 1]:
        raise ConfigError(f"resample_kernel={list(resample_kernel)}: only [1, 3, 3, 1] exists")
    network = GFPGAN(
        size=out_size,
        channel_multiplier=channel_multiplier,
        narrow=narrow,
        resample="fir",
        style_channels=num_style_feat,
        mapping_layers=num_mlp,
        mapping_lr=lr_mlp,
        latent_per_layer=different_w,
        latent_is_w=input_is_latent,
        split_channels=sft_half,
    )
    return _load(network, state_dict, "gfpgan_original", "basicsr")


def _load(network: GFPGAN, state_dict: dict[str, torch.Tensor], kind: str, layout: str) -> GFPGAN:
    found = generator_layout(state_dict, _PRIOR)
    if found != layout:
        other = {"clean": "gfpgan_clean", "basicsr": "gfpgan_original"}.get(found, found)
        raise CheckpointError(f"the checkpoint does not fit '{kind}': its keys are of '{other}'")
    foreign = {}
    for key in network.state_dict():
        if key.startswith("prior."):
            foreign[key] = _PRIOR + generator_key(key.removeprefix("prior."), layout)
        else:
            foreign[key] = _unet_key(key, clean=layout == "clean")
    return load_renamed(network, state_dict, foreign, kind, unequalised=layout == "clean")


def _unet_key(key: str, *, clean: bool) -> str:
    part, *middle, leaf = key.split(".")
    stem = ".".join([_STEMS[part], *middle]).replace("shortcut", "skip")
    if part in ("to_scale", "to_shift"):  # the activation between the two counts there
        return f"{stem.removesuffix('.1')}.2.{leaf}" if middle[-1] == "1" else f"{stem}.{leaf}"
    if clean or part in ("to_latent", "to_rgbs"):
        return f"{stem}.{leaf}"
    # In the original, layers are sequences of filter, convolution and activation.
    if part == "up" and middle[-1] != "conv1":
        return f"{stem}.{leaf}" if leaf == "weight" else f"{stem}.activation.bias"
    place = 1 if part == "down" and middle[-1] != "conv1" else 0
    return f"{stem}.{place}.weight" if leaf == "weight" else f"{stem}.{place + 1}.bias"
