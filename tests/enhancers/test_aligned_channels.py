"""Layers widened for the matrix units of a GPU: the same function."""

from __future__ import annotations

import copy

import pytest
import torch

from dr2pipe.enhancers import build_enhancer

_BASE = {"size": 32, "residual_blocks": 1, "hourglass_depth": 2}


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("attention", ["2d", "3d"])
def test_aligned_sparnet_is_the_same_function(norm: str, attention: str) -> None:
    torch.manual_seed(0)
    network = build_enhancer(
        "sparnet",
        **_BASE,
        channels=[6, 12, 16],
        hourglass_channels=5,
        norm=norm,
        attention=attention,
    ).eval()
    with torch.no_grad():  # norms that do something, as after training
        for name, tensor in (*network.named_parameters(), *network.named_buffers()):
            if "norm" in name and tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    aligned = copy.deepcopy(network)
    aligned.align_channels()
    picture = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        before, after = network(picture), aligned(picture)
    assert torch.allclose(before, after, atol=1e-5), (before - after).abs().max()
    assert dict(aligned.config) == dict(network.config)  # what a record says of it
    widths = {
        side
        for module in aligned.modules()
        if isinstance(module, torch.nn.Conv2d)
        for side in (module.in_channels, module.out_channels)
    }
    assert widths <= {1, 3, 8, 16}  # of an attention map, of a picture, of the layers


def test_a_hourglass_of_one_channel_is_widened_too() -> None:
    network = build_enhancer("sparnet", **_BASE, channels=[6, 8], hourglass_channels=1).eval()
    picture = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        before = network(picture)
        network.align_channels()
        assert torch.allclose(before, network(picture), atol=1e-5)


def test_aligned_channels_stay_where_widths_fit() -> None:
    network = build_enhancer("sparnet", **_BASE, channels=[8, 16], hourglass_channels=8)
    before = {name: tensor.shape for name, tensor in network.state_dict().items()}
    network.align_channels()
    assert {name: tensor.shape for name, tensor in network.state_dict().items()} == before
