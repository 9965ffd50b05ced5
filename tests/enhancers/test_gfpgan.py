import parity
import pytest
import torch

from dr2pipe.convert import convert_checkpoint
from dr2pipe.core.errors import CheckpointError
from dr2pipe.enhancers import build_enhancer

SMALL = {"size": 16, "style_channels": 8, "mapping_layers": 2, "narrow": 1 / 32}
KINDS = ("gfpgan_clean", "gfpgan_original")


def assert_close(made, golden):
    golden = parity.tensor(golden)
    assert made.shape == golden.shape
    assert (made - golden).abs().max() <= 1e-4 * golden.abs().max()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_small_networks(kind):
    record, arrays = parity.load(kind)
    weights = parity.make_weights(record["keys_small"])
    network = convert_checkpoint(weights, kind, **record["constructor_small"])
    restored, pyramid = network(parity.tensor(arrays["x128"]), return_pyramid=True)
    assert_close(restored, arrays["out128"])
    assert [p.shape[-1] for p in pyramid] == [8, 16, 32, 64, 128]
    for i, picture in enumerate(pyramid):
        side = picture.shape[-1]
        shown = picture[..., ::2, ::2] if side == 128 else picture
        assert_close(shown, arrays[f"rgb{i}_{side}"])
    # The same picture twice: the stored noise is used.
    assert torch.equal(network(parity.tensor(arrays["x128"])), restored)


# The other one has the same blocks, with another way to modulate them.
@pytest.mark.parametrize(
    "kind", ["gfpgan_clean", pytest.param("gfpgan_original", marks=pytest.mark.slow)]
)
@torch.no_grad()
def test_official_sizes(kind):
    record, arrays = parity.load(kind)
    network = convert_checkpoint(parity.make_weights(record["keys"]), kind)
    assert sum(p.numel() for p in network.parameters()) == record["params"]
    x = parity.make_input(f"{kind}:x512", (1, 3, 512, 512))
    restored, pyramid = network(x, return_pyramid=True)
    if "out512_strided" in arrays:
        assert_close(restored[..., ::4, ::4], arrays["out512_strided"])
        for i, picture in enumerate(pyramid):
            side = picture.shape[-1]
            step = max(side // 64, 1)
            shown = picture[..., ::step, ::step]
            assert_close(shown, arrays[f"rgb512_{i}_{side}_s{step}"])
    for picture, name in zip(
        [restored, *pyramid], ["out", *(f"rgb{i}" for i in range(7))], strict=True
    ):
        golden = record["full_stats_512"][name]
        largest = max(abs(golden["min"]), abs(golden["max"]))
        assert list(picture.shape) == golden["shape"]
        for made, expected in (
            (picture.mean(), golden["mean"]),
            (picture.std(correction=0), golden["std"]),
            (picture.min(), golden["min"]),
            (picture.max(), golden["max"]),
        ):
            assert abs(float(made) - expected) <= 1e-4 * largest


@torch.no_grad()
def test_the_variant_with_one_latent_and_a_mapping_network():
    record, _ = parity.load("gfpgan_clean")
    weights = parity.make_weights(record["keys_variant64"])
    network = convert_checkpoint(weights, "gfpgan_clean", **record["constructor_variant64"])
    out = network(parity.make_input("gfpgan_clean:x64", (2, 3, 64, 64)))
    assert out.shape == (2, 3, 64, 64)
    assert out.isfinite().all()


def test_every_part_learns_but_the_mapping_network():
    network = build_enhancer("gfpgan", **SMALL).train()
    for layer in network.prior.convs:
        torch.nn.init.ones_(layer.noise_strength)
    restored, pyramid = network(torch.randn(2, 3, 16, 16), return_pyramid=True)
    (restored.square().mean() + sum(p.square().mean() for p in pyramid)).backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None]
    assert idle == [name for name, _ in network.named_parameters() if "mapping" in name]


@torch.no_grad()
def test_bf16_as_the_restorer_runs_it():
    torch.manual_seed(0)
    network = build_enhancer("gfpgan", **SMALL)
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    low = network.to(torch.bfloat16)(x.bfloat16()).float()
    exact = network.to(torch.float32)(x)
    assert (low - exact).abs().mean() < 0.05 * exact.abs().mean() + 0.01


def test_sizes_and_keys_are_checked():
    with pytest.raises(ValueError, match="size=100 is not a power of two"):
        build_enhancer("gfpgan", size=100)
    network = build_enhancer("gfpgan", **SMALL)
    with pytest.raises(ValueError, match=r"pictures of \(32, 32\) instead of \(16, 16\)"):
        network(torch.zeros(1, 3, 32, 32))
    record, _ = parity.load("gfpgan_clean")
    weights = parity.make_weights(record["keys_small"])
    with pytest.raises(CheckpointError, match="keys are of 'gfpgan_clean'"):
        convert_checkpoint(weights, "gfpgan_original", **record["constructor_small"])
    weights["more"] = weights.pop("toRGB.0.bias")
    with pytest.raises(CheckpointError, match=r"missing \(toRGB\.0\.bias\).*left over \(more\)"):
        convert_checkpoint(weights, "gfpgan_clean", **record["constructor_small"])


@torch.no_grad()
def test_a_folder_rebuilds_it(tmp_path):
    network = build_enhancer("gfpgan", **SMALL)
    network.save_pretrained(tmp_path)
    again = build_enhancer("gfpgan", tmp_path)
    x = torch.randn(1, 3, 16, 16)
    assert torch.equal(again(x), network(x))
