"""Panini-Net files: both networks (mmcv runner files), and the MoCo file of the encoder."""

from __future__ import annotations

import torch

from dr2pipe.convert.stylegan2 import generator_key, load_renamed, without_fir_kernels
from dr2pipe.core.errors import CheckpointError
from dr2pipe.enhancers.degradation_encoder import DegradationEncoder
from dr2pipe.enhancers.panini import PaniniNet

_RRDB, _CBAM = "encoder.0.0.", "encoder.0.1."
_LAYERS = {
    "extract.first": f"{_RRDB}conv_first",
    "extract.last": f"{_RRDB}conv_body",
    "attend.conv": f"{_CBAM}fea_preprocess",
    "attend.squeeze": f"{_CBAM}ChannelGate.mlp.1",
    "attend.excite": f"{_CBAM}ChannelGate.mlp.3",
    "attend.spatial": f"{_CBAM}SpatialGate.spatial.conv",
    "attend.norm": f"{_CBAM}SpatialGate.spatial.bn",
    "select.0": "AFS_maskGen.mapping.0",
    "select.1": "AFS_maskGen.mapping.2",
}


def convert_panini_sr(state_dict: dict[str, torch.Tensor]) -> PaniniNet:
    """The network for 16x super-resolution, 64 to 1024 px.

    Raises:
        CheckpointError: missing, left-over or misshapen keys.
    """
    network = PaniniNet(
        input_size=64, rrdb_channels=64, rrdb_blocks=23, gate_reduction=8, degradation="learned"
    )
    return _load(network, state_dict, "panini_sr")


def convert_panini_mfr(state_dict: dict[str, torch.Tensor]) -> PaniniNet:
    """The network for multiple degradations, 512 to 1024 px.

    Raises:
        CheckpointError: missing, left-over or misshapen keys.
    """
    return _load(PaniniNet(), state_dict, "panini_mfr")


def convert_moco_degradation_encoder(state_dict: dict[str, torch.Tensor]) -> DegradationEncoder:
    """The query encoder of the authors' MoCo file; its queue and key encoder stay behind.

    Raises:
        CheckpointError: missing, left-over or misshapen keys.
    """
    kind, prefix = "moco_degradation_encoder", "encoder_q."
    state_dict = {k.removeprefix("module."): v for k, v in state_dict.items()}
    if any(key.startswith(prefix) for key in state_dict):
        state_dict = {k: v for k, v in state_dict.items() if k.startswith(prefix)}
    else:
        prefix = ""
    network = DegradationEncoder()
    foreign = {key: prefix + _encoder_key(key) for key in network.state_dict()}
    return load_renamed(network, state_dict, foreign, kind)


def _load(network: PaniniNet, state_dict: dict[str, torch.Tensor], kind: str) -> PaniniNet:
    # A runner's file holds the discriminator and the losses' networks too.
    of_runner = any(key.startswith("generator.encoder.") for key in state_dict)
    if of_runner:
        prefix = "generator."
        parts = {k: v for k, v in state_dict.items() if k.startswith(prefix)}
        state_dict = {k.removeprefix(prefix): v for k, v in parts.items()}
    if not any(key.startswith("encoder.0.") for key in state_dict):
        raise CheckpointError(
            f"the checkpoint does not fit '{kind}': no weights of Panini-Net's generator"
        )
    given = "panini_sr" if "choice_vector" in state_dict else "panini_mfr"
    if given != kind:
        raise CheckpointError(f"the checkpoint does not fit '{kind}': its keys are of '{given}'")
    foreign = {key: _key(key) for key in network.state_dict()}
    return load_renamed(network, without_fir_kernels(state_dict), foreign, kind)


def _key(key: str) -> str:
    """The authors' name of a parameter of ``PaniniNet``."""
    if key == "degradation_vector":
        return "choice_vector"
    part, rest = key.split(".", 1)
    if part == "prior":
        return "generator." + generator_key(rest, "mmgen")
    if part == "degradation_encoder":
        return "deg_encoder." + _encoder_key(rest)
    if part == "fusion":
        return f"fusion_out.{rest}"
    layer, leaf = key.rsplit(".", 1)
    if layer in _LAYERS:
        return f"{_LAYERS[layer]}.{leaf}"
    if part == "extract":  # blocks.N.M.convs.K
        _, _, block, dense, _, conv = layer.split(".")
        return f"{_RRDB}body.{block}.rdb{int(dense) + 1}.conv{int(conv) + 1}.{leaf}"
    if part == "reduce":  # activations count in between
        return f"encoder.0.{2 + 2 * int(layer.split('.')[1])}.{leaf}"
    if part == "down":
        return f"encoder.{int(layer.split('.')[1]) + 1}.0.{leaf}"
    return f"encoder.5.{0 if part == 'last' else 3}.{leaf}"


def _encoder_key(key: str) -> str:
    """The authors' name of a parameter of ``DegradationEncoder``."""
    part, index, leaf = key.split(".", 2)
    if part == "projection":
        return f"mlp.{2 * int(index)}.{leaf}"
    return f"E.{3 * int(index) + (1 if part == 'norms' else 0)}.{leaf}"
