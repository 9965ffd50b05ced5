import json

import pytest
import torch

from dr2pipe.enhancers import ENHANCERS, build_enhancer

SMALL = {"size": 32, "channels": (8, 16, 16), "residual_blocks": 2, "hourglass_depth": 2}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("none", {}),
        ("bicubic", {"size": 64}),
        ("sparnet", SMALL),
        ("sparnet", SMALL | {"attention": "3d"}),
        ("sparnet", SMALL | {"norm": "batch"}),
    ],
)
def test_contract(name, options, tmp_path):
    enhancer = build_enhancer(name, **options)
    assert isinstance(enhancer, ENHANCERS[name])
    assert enhancer.conditions == ()
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        out = enhancer(x)
        side = enhancer.output_size or 32
        assert out.shape == (2, 3, side, side)
        enhancer.save_pretrained(tmp_path / "e")
        again = build_enhancer(name, tmp_path / "e")  # a folder alone rebuilds it
        assert torch.equal(again(x), out)
        # Batch normalisation uses its running statistics: singles equal the batch.
        assert torch.allclose(enhancer(x[:1]), out[:1], atol=1e-5)


def test_sparnet_takes_other_sides():
    enhancer = build_enhancer("sparnet", **SMALL)
    with torch.no_grad():
        assert enhancer(torch.zeros(1, 3, 48, 64)).shape == (1, 3, 48, 64)
        assert enhancer(torch.zeros(1, 3, 50, 50)).shape == (1, 3, 52, 52)  # rounded up


def test_sparnet_can_learn():
    enhancer = build_enhancer("sparnet", **SMALL).train()
    enhancer(torch.rand(1, 3, 32, 32)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in enhancer.parameters())


def test_errors(tmp_path):
    with pytest.raises(ValueError, match="'gan'; choose one of none, bicubic, sparnet"):
        build_enhancer("gan")
    with pytest.raises(ValueError, match="no option depth; it takes size"):
        build_enhancer("sparnet", depth=3)
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        build_enhancer("sparnet", tmp_path)
    with pytest.raises(ValueError, match="unknown norm 'layer'"):
        build_enhancer("sparnet", norm="layer")
    with pytest.raises(ValueError, match="unknown attention"):
        build_enhancer("sparnet", attention="4d")
    with pytest.raises(ValueError, match="halved 4 times"):
        build_enhancer("sparnet", size=100)
    build_enhancer("bicubic", size=8).save_pretrained(tmp_path / "b")
    with pytest.raises(
        ValueError, match="holds a BicubicEnhancer, not a SPARNet; the enhancer 'sparnet'"
    ):
        build_enhancer("sparnet", tmp_path / "b")
    with pytest.raises(ValueError, match="do not give size"):
        build_enhancer("bicubic", tmp_path / "b", size=4)
    assert json.loads((tmp_path / "b" / "config.json").read_text())["size"] == 8


def test_sparnet_on_patches_works_at_a_part_of_the_size():
    options = {"size": 32, "channels": [8, 16], "residual_blocks": 1, "hourglass_depth": 1}
    network = build_enhancer("sparnet", **options, patch=4)
    seen = []
    network.encoder[0].register_forward_pre_hook(lambda _, given: seen.append(given[0].shape))
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 3, 32, 32)
    assert seen == [(2, 8, 8, 8)]
    with pytest.raises(ValueError, match="patches of 4"):
        build_enhancer("sparnet", **options | {"size": 36}, patch=4)


def test_sparnet_that_adds_its_input_begins_as_the_identity():
    torch.manual_seed(0)
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    options = {"size": 32, "channels": [8, 16], "residual_blocks": 1, "hourglass_depth": 1}
    network = build_enhancer("sparnet", **options, add_input=True)
    assert torch.equal(network(x), x)
    assert not torch.equal(build_enhancer("sparnet", **options)(x), x)
