"""Files of the feature networks that losses and metrics compare pictures with."""

from __future__ import annotations

import re

import torch

from dr2pipe.convert.state_dicts import load_exactly
from dr2pipe.features.arcface import ArcFaceResNet


def convert_arcface_resnet18(state_dict: dict[str, torch.Tensor]) -> ArcFaceResNet:
    """GFP-GAN's identity network; the keys tell the number of blocks.

    Raises:
        CheckpointError: missing, left-over or misshapen keys.
    """
    blocks = [0, 0, 0, 0]
    for key in state_dict:
        if match := re.match(r"layer([1-4])\.(\d+)\.", key):
            stage, index = int(match[1]) - 1, int(match[2])
            blocks[stage] = max(blocks[stage], index + 1)
    network = ArcFaceResNet(blocks, squeeze=any(".se." in key for key in state_dict))
    return load_exactly(network, state_dict, kind="arcface_resnet18")
