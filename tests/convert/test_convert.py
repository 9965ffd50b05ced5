import os
import pickle
from collections import OrderedDict

import numpy as np
import parity
import pytest
import torch

from dr2pipe.convert import convert_checkpoint
from dr2pipe.convert.write import write_native
from dr2pipe.core.errors import CheckpointError
from dr2pipe.diffusion.pipeline import DR2Pipeline
from dr2pipe.enhancers import build_enhancer

UNET = "guided_diffusion_unet"


@pytest.fixture(scope="module")
def small():
    """(constructor, weights) of a small UNet of the family."""
    record, _ = parity.load("dr2_sampler")
    return record["constructor"], parity.make_weights(record["keys"])


@pytest.mark.parametrize("name", ["dr2_unet", "guided_unet_ilvr"])
@torch.no_grad()
def test_official_size_unets(name):
    record, arrays = parity.load(name)
    weights = parity.make_weights(record["keys"])
    unet = convert_checkpoint(weights, UNET, **record["constructor"])
    assert sum(p.numel() for p in unet.parameters()) == record["params"]
    x = parity.tensor(arrays["x64"])
    runs = [key.removeprefix("out64_") for key in arrays if key.startswith("out64_")]
    assert runs
    for run in runs:
        out = unet(x, parity.tensor(arrays[f"t64_{run}"])).sample
        assert (out - parity.tensor(arrays[f"out64_{run}"])).abs().max() <= 5e-5
    # The defaults are the official values.
    assert dict(convert_checkpoint(weights, UNET).config) == dict(unet.config)


@pytest.mark.parametrize("variant", ["a", "b"])
@torch.no_grad()
def test_unet_variants(variant):
    record, arrays = parity.load("guided_unet_variants")
    weights = parity.make_weights(record["keys_per_variant"][variant])
    unet = convert_checkpoint(weights, UNET, **record["variants"][variant])
    out = unet(parity.tensor(arrays["x"]), parity.tensor(arrays["t"])).sample
    assert (out - parity.tensor(arrays[f"out_{variant}"])).abs().max() <= 5e-5


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"conv_resample": False}, "conv_resample=False"),
        ({"num_heads_upsample": 8}, "num_heads_upsample=8"),
        ({"num_heads": 2}, "num_heads=2"),
        ({"dims": 3}, "dims=3"),
        ({"channel_mult": [0.5, 1, 2]}, r"channel_mult\[0\]=0.5"),
        ({"attention_resolutions": "many"}, "such as"),
        ({"image_size": 48, "channel_mult": None}, "channel_mult must be given"),
    ],
)
def test_options_that_cannot_be_expressed_are_named(small, change, says):
    constructor = {
        **small[0], "num_head_channels": -1, "num_heads": 4, "attention_resolutions": [1, 4],
        "resblock_updown": False,
    }  # fmt: skip
    with pytest.raises(ValueError, match=says):
        convert_checkpoint(small[1], UNET, **constructor | change)


def test_variant_c_needs_what_unet2d_lacks():
    record, _ = parity.load("guided_unet_variants")
    weights = parity.make_weights(record["keys_per_variant"]["c"])
    with pytest.raises(ValueError, match="conv_resample=False cannot be expressed"):
        convert_checkpoint(weights, UNET, **record["variants"]["c"])


def test_class_conditional_weights_convert(small):
    constructor, weights = small
    width = constructor["model_channels"] * 4
    weights = weights | {"label_emb.weight": torch.randn(10, width)}
    unet = convert_checkpoint(weights, UNET, **constructor, num_classes=10)
    assert torch.equal(unet.class_embedding.weight, weights["label_emb.weight"])
    with pytest.raises(CheckpointError, match=r"left over \(label_emb.weight\)"):
        convert_checkpoint(weights, UNET, **constructor)


@pytest.mark.parametrize("variant", ["keys", "variant_3d", "variant_bn"])
@torch.no_grad()
def test_sparnet_kinds(variant):
    record, arrays = parity.load("sparnethd")
    keys = record["keys"] if variant == "keys" else record[variant]["keys"]
    network = convert_checkpoint(parity.make_weights(keys), "sparnet")
    count = {"keys": "params", "variant_3d": "params_3d", "variant_bn": "params_bn_sparnet"}
    assert sum(p.numel() for p in network.parameters()) == record[count[variant]]
    out = network(parity.tensor(arrays["x128"]))
    expected = {"keys": "out128", "variant_3d": "out128_spar3d"}.get(variant)
    if expected:
        assert (out - parity.tensor(arrays[expected])).abs().max() <= 2e-4
    else:  # the fixture has the keys of the batch-norm network, no output
        assert network.config.size == 128
        assert out.isfinite().all()


@pytest.mark.parametrize("wrapper", ["params_ema", "params", "state_dict", "g_ema"])
def test_wrapped_files_are_unwrapped(small, tmp_path, wrapper):
    constructor, weights = small
    file = tmp_path / "w.pth"
    torch.save({wrapper: {f"module.{k}": v for k, v in weights.items()}, "step": 3}, file)
    unet = convert_checkpoint(file, UNET, **constructor)
    assert torch.equal(unet.conv_in.weight, weights["input_blocks.0.0.weight"])


def test_averaged_weights_come_first(small, tmp_path):
    constructor, weights = small
    other = {k: torch.zeros_like(v) for k, v in weights.items()}
    torch.save({"params": other, "params_ema": weights}, tmp_path / "w.pth")
    unet = convert_checkpoint(tmp_path / "w.pth", UNET, **constructor)
    assert unet.conv_in.weight.abs().sum() > 0


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("container", ["torch", "pickle", "wrapped"])
def test_a_hostile_pickle_does_not_run(tmp_path, container):
    target, file = tmp_path / "executed", tmp_path / "weights.pkl"
    hostile = Hostile(str(target))
    if container == "torch":
        torch.save(OrderedDict(a=hostile), file)
    elif container == "wrapped":
        torch.save({"state_dict": {"a": torch.zeros(1)}, "args": hostile}, file)
    else:
        file.write_bytes(pickle.dumps({"a": hostile}))
    with pytest.raises(CheckpointError, match=r"was not loaded.*save its"):
        convert_checkpoint(file, UNET)
    assert not target.exists()
    pickle.loads(pickle.dumps(hostile))  # the trap does work where pickles may run
    assert target.exists()


def test_wrong_files(tmp_path, small):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        convert_checkpoint(tmp_path / "none.pth", UNET)
    for name, content in (("text.pth", b"hello"), ("empty.pt", b""), ("x.safetensors", b"junk")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=name):
            convert_checkpoint(tmp_path / name, UNET)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="list, not a state dict"):
        convert_checkpoint(tmp_path / "list.pt", UNET)
    torch.save({"a": 1}, tmp_path / "int.pt")
    with pytest.raises(CheckpointError, match="no tensors under: a"):
        convert_checkpoint(tmp_path / "int.pt", UNET)


def test_missing_extra_and_misshapen_keys_are_listed(small):
    constructor, weights = small
    changed = dict(weights)
    del changed["out.2.bias"]
    changed["stranger"] = torch.zeros(1)
    changed["input_blocks.0.0.bias"] = torch.zeros(5)
    with pytest.raises(CheckpointError) as caught:
        convert_checkpoint(changed, UNET, **constructor)
    message = str(caught.value)
    assert "1 missing (out.2.bias)" in message
    assert "1 left over (stranger)" in message
    assert "1 misshapen (input_blocks.0.0.bias (5,) instead of (32,))" in message
    with pytest.raises(CheckpointError, match=r"missing .*left over"):
        convert_checkpoint(weights, "sparnet")
    misshapen = weights | {"middle_block.1.qkv.weight": torch.zeros(7, 64, 1)}
    with pytest.raises(CheckpointError, match=r"missing .*qkv.*left over .*qkv"):
        convert_checkpoint(misshapen, UNET, **constructor)
    record, _ = parity.load("guided_unet_variants")
    other = parity.make_weights(record["keys_per_variant"]["a"])
    with pytest.raises(CheckpointError, match="does not fit"):
        convert_checkpoint(other, UNET, **constructor)


@pytest.mark.parametrize("damage", range(40))
def test_damaged_files_are_checkpoint_errors(small, tmp_path, damage):
    """Whatever a damaged file makes the reader do, the caller gets one kind of error."""
    file = tmp_path / "w.pth"
    torch.save({"a": torch.arange(3.0), "b": torch.zeros(2)}, file)
    data = bytearray(file.read_bytes())
    rng = np.random.default_rng(damage)
    for place in rng.integers(0, len(data), 20):
        data[place] = rng.integers(256)
    file.write_bytes(data[: int(rng.integers(len(data) // 2, len(data) + 1))])
    with pytest.raises(CheckpointError):
        convert_checkpoint(file, UNET, **small[0])
    with pytest.raises(CheckpointError):
        convert_checkpoint({1: torch.zeros(1)}, UNET, **small[0])


def test_one_head_of_any_width_converts(small):
    constructor, weights = small
    constructor = constructor | {"num_heads": 1, "num_head_channels": -1}
    unet = convert_checkpoint(weights, UNET, **constructor)
    assert unet.mid_block.attentions[0].heads == 1
    q = unet.mid_block.attentions[0].to_q.weight
    assert torch.equal(q, weights["middle_block.1.qkv.weight"][: len(q), :, 0])


def test_sparnet_arguments():
    record, _ = parity.load("sparnethd")
    weights = parity.make_weights(record["variant_bn"]["keys"])
    for argument, says in (
        ({"norm_type": "in"}, "keys are those of 'bn'"),
        ({"att_name": "spar3d"}, "keys are those of 'spar'"),
        ({"relu_type": "prelu"}, "relu_type='prelu' cannot"),
        ({"ch_in": 1}, "ch_in=1 cannot"),
    ):
        with pytest.raises(ValueError, match=says):
            convert_checkpoint(weights, "sparnet", **argument)
    hd = parity.make_weights(record["keys"])
    network = convert_checkpoint(hd, "sparnet", **record["constructor"])
    assert network.config.channels == (102, 204, 408, 512, 512)
    assert network.config.residual_blocks == 9


@pytest.mark.parametrize("resolutions", [4, "4", [4], "4,64"])
def test_attention_resolutions_as_people_write_them(small, resolutions):
    constructor = small[0] | {"attention_resolutions": resolutions}
    assert convert_checkpoint(small[1], UNET, **constructor)


def test_unknown_kind_and_argument(small):
    with pytest.raises(ValueError, match="'vae'; choose one of guided_diffusion_unet, sparnet"):
        convert_checkpoint(small[1], "vae")
    with pytest.raises(ValueError, match=r"no argument depth; it takes image_size"):
        convert_checkpoint(small[1], UNET, depth=3)


def test_native_folders(small, tmp_path):
    constructor, weights = small
    torch.save(weights, tmp_path / "w.pt")
    write_native(tmp_path / "w.pt", tmp_path / "unet", UNET, **constructor)
    pipeline = DR2Pipeline.from_pretrained(tmp_path / "unet")
    assert pipeline.scheduler.config.variance_type == "learned_range"
    assert torch.equal(pipeline.unet.conv_in.weight, weights["input_blocks.0.0.weight"])
    with pytest.raises(ValueError, match="exists already"):
        write_native(tmp_path / "w.pt", tmp_path / "unet", UNET, **constructor)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["unet", "w.pt"]


def test_spectral_norm_is_folded(tmp_path):
    """A small SPARNet written with spectral norm comes back as plain weights."""
    network = build_enhancer(
        "sparnet", size=32, channels=(8, 16, 16), residual_blocks=1, hourglass_depth=2
    )
    from dr2pipe.convert.sparnet import _foreign_key

    foreign = {}
    for key, value in network.state_dict().items():
        name = _foreign_key(key, network)
        if value.ndim == 4:
            u, _, v = torch.linalg.svd(value.flatten(1), full_matrices=False)
            foreign |= {f"{name}_orig": value * 3, f"{name}_u": u[:, 0], f"{name}_v": v[0]}
            scale = torch.linalg.matrix_norm(value.flatten(1), 2)
            network.get_parameter(key).data.div_(scale)
        else:
            foreign[name] = value
    converted = convert_checkpoint(foreign, "sparnet", size=32)
    assert dict(converted.config)["channels"] == (8, 16, 16)
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(converted(x), network(x), atol=1e-4)
