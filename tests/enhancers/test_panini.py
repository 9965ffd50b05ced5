import json
import zlib

import numpy as np
import parity
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, make_pictures, run_here
from PIL import Image

from dr2pipe.convert import convert_checkpoint
from dr2pipe.convert.stylegan2 import load_renamed
from dr2pipe.core.errors import CheckpointError
from dr2pipe.enhancers import build_enhancer
from dr2pipe.enhancers.degradation_encoder import DegradationEncoder
from dr2pipe.enhancers.panini import ConvolvedAttention, RRDBExtractor

SMALL = {
    "input_size": 16, "size": 32, "fused_size": 8, "rrdb_channels": 4, "rrdb_blocks": 1,
    "degradation_width": 4, "style_channels": 8, "mapping_layers": 2, "narrow": 1 / 64,
}  # fmt: skip


def made_input(record, name):
    """An input of a fixture that is too large to be stored, by its rule."""
    about = record["inputs"][name]
    rng = np.random.default_rng(zlib.crc32(about["seed_string"].encode()))
    assert about["kind"] == "uniform"
    return parity.tensor((rng.random(about["shape"]) * 2 - 1).astype(np.float32))


def assert_close(made, golden):
    golden = parity.tensor(golden)
    assert made.shape == golden.shape
    assert (made - golden).abs().max() <= 1e-4 * golden.abs().max()


@torch.no_grad()
def test_degradation_encoder_equals_the_reference():
    record, arrays = parity.load("panini_dre")
    weights = parity.make_model(record["models"]["encoder"])
    network = convert_checkpoint(weights, "moco_degradation_encoder")
    x = parity.tensor(arrays["in_x64"])
    assert_close(network(x), arrays["out_fea_x64_eval"])
    assert_close(network.project(network(x)), arrays["out_out_x64_eval"])
    reduced = network(made_input(record, "x512"))
    assert_close(reduced, arrays["out_fea_resize256_of_x512_eval"])
    network.train()
    vector = network(x)
    assert_close(vector, arrays["out_fea_x64_train"])
    assert_close(network.project(vector), arrays["out_out_x64_train"])
    for place, name in ((0, "E.1"), (5, "E.16")):
        norm = network.norms[place]
        assert_close(norm.running_mean, arrays[f"out_after_train_{name}.running_mean"])
        assert_close(norm.running_var, arrays[f"out_after_train_{name}.running_var"])


def renamed(network, weights, names):
    """Load ``weights`` into a part of the network; ``names``: (native, foreign) stems."""
    foreign = {}
    for key in network.state_dict():
        stem = next(n for n in names if key.startswith(n))
        foreign[key] = key.replace(stem, names[stem], 1)
    return load_renamed(network, weights, foreign, "part").eval()


@torch.no_grad()
def test_parts_equal_the_reference():
    record, arrays = parity.load("panini_dafi")
    gates = {
        "conv": "fea_preprocess", "squeeze": "ChannelGate.mlp.1", "excite": "ChannelGate.mlp.3",
        "spatial": "SpatialGate.spatial.conv", "norm": "SpatialGate.spatial.bn",
    }  # fmt: skip
    for width, reduction in ((8, 2), (64, 8)):
        weights = parity.make_model(record["models"][f"cbam{width}"])
        attend = renamed(ConvolvedAttention(width, reduction), weights, gates)
        assert_close(attend(parity.tensor(arrays[f"in_cbam{width}_x"])), arrays[f"out_cbam{width}"])
    weights = parity.make_model(record["models"]["rrdb8x2"])
    blocks = {
        f"blocks.{b}.{d}.convs.{c}.": f"body.{b}.rdb{d + 1}.conv{c + 1}."
        for b in range(2) for d in range(3) for c in range(5)
    }  # fmt: skip
    names = blocks | {"first": "conv_first", "last": "conv_body"}
    extract = renamed(RRDBExtractor(8, 2), weights, names)
    assert_close(extract(parity.tensor(arrays["in_rrdb_x"])), arrays["out_rrdb8x2"])


@torch.no_grad()
def test_interpolation_equals_the_reference():
    record, arrays = parity.load("panini_dafi")
    models = {
        name: parity.make_model(record["models"][name]) for name in ("maskgen", "fusion_conv")
    }
    network = build_enhancer("panini", rrdb_blocks=1, size=128, degradation="learned")
    for place in (0, 1):
        for leaf in ("weight", "bias"):
            stored = models["maskgen"][f"mapping.{2 * place}.{leaf}"]
            getattr(network.select[place], leaf).copy_(stored)
    network.fusion[1].load_state_dict(models["fusion_conv"])
    vectors = parity.tensor(arrays["in_style"])
    drawn, seen = (parity.tensor(arrays[f"in_fea{i}"]) for i in (1, 2))
    for i, vector in enumerate(vectors):
        network.degradation_vector.copy_(vector[None])
        shares = network._shares(torch.zeros(1, 3, 512, 512))
        for level in range(5):
            assert_close(shares[level][0, 0], arrays["out_mask1"][i, level, :, 0, 0])
            assert_close(shares[level][0, 1], arrays["out_mask2"][i, level, :, 0, 0])
        of_prior, of_picture = (s[:, :, None, None] for s in shares[1].unbind(dim=1))
        fused = of_prior * drawn[[i]] + of_picture * network.fusion[1](seen[[i]])
        assert_close(fused, arrays["out_fused_level1"][[i]])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["panini_sr", "panini_mfr"])
@torch.no_grad()
def test_official_networks_equal_the_reference(kind):
    record, arrays = parity.load(kind.replace("_", "_net_"))
    weights = parity.make_model(record["models"]["net"])
    network = convert_checkpoint(weights, kind)
    params = sum(p.numel() for p in network.parameters())
    assert params == record["models"]["net"]["parameters"]
    x = made_input(record, "lq")
    latents, features = network.encode(x)
    assert_close(latents[:, :, ::4], arrays["out_latent"])
    for i, side in enumerate((64, 32, 16, 8, 4)):
        step = 4 if side >= 16 else 1
        assert_close(features[4 - i][:, ::16, ::step, ::step], arrays[f"out_enc{i}"])
    shares = torch.stack([s[:, 0] for s in network._shares(x)], dim=1)
    assert_close(shares, arrays["out_mask1"])
    assert_close(network.prior_shares(x), arrays["out_mask1"].mean(axis=2))
    picture = network(x)
    assert_close(picture[..., ::8, ::8], arrays["out_img_stride8"])
    if kind == "panini_sr":
        assert_close(picture[..., 480:544, 480:544], arrays["out_img_crop"])


def small(**changes):
    torch.manual_seed(0)
    return build_enhancer("panini", **SMALL | changes)


def pictures(count=2, size=16):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"degradation": "learned"},
        {"interpolate": False},
        {"input_size": 32, "fused_size": 16},
        {"fused_size": 4},
        {"narrow": 1 / 16, "size": 128, "input_size": 64, "fused_size": 64},  # widths differ
    ],
)
def test_other_sizes_learn_in_every_part(changes):
    network = small(**changes).train()
    for layer in network.prior.convs:
        torch.nn.init.ones_(layer.noise_strength)
    restored = network(pictures(size=network.input_size))
    assert restored.shape == (2, 3, network.output_size, network.output_size)
    restored.square().mean().backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None]
    allowed = ("prior.mapping", "degradation_encoder")  # its projection serves the pretraining
    assert all(name.startswith(allowed) for name in idle), idle
    if network.config.degradation == "encoder" and network.config.interpolate:
        assert network.degradation_encoder.convs[0].weight.grad.abs().sum() > 0


@torch.no_grad()
def test_results_repeat_and_a_folder_rebuilds_it(tmp_path):
    network = small()
    x = pictures()
    assert torch.equal(network(x), network(x))
    assert (network(x)[:1] - network(x[:1])).abs().max() < 1e-5
    network.save_pretrained(tmp_path)
    assert torch.equal(build_enhancer("panini", tmp_path)(x), network(x))


@torch.no_grad()
def test_shares_are_shares():
    network = small()
    shares = network.prior_shares(pictures())
    assert shares.shape == (2, len(network.fused_sides))
    assert (shares > 0).all()
    assert (shares < 1).all()
    # All of the prior: what the encoder sees at those places no longer counts.
    torch.nn.init.zeros_(network.select[1].weight)
    bias = network.select[1].bias
    for part, width in zip(bias.split([2 * c.out_channels for c in network.fusion]), [
        c.out_channels for c in network.fusion], strict=True):  # fmt: skip
        part[:width], part[width:] = 50.0, -50.0
    assert torch.allclose(network.prior_shares(pictures()), torch.ones(2, 2))
    latents, _ = network.encode(pictures())
    assert torch.allclose(network(pictures()), network.prior(latents), atol=1e-5)


@torch.no_grad()
def test_bf16_as_the_restorer_runs_it():
    network = small()
    low = network.to(torch.bfloat16)(pictures().bfloat16()).float()
    exact = network.to(torch.float32)(pictures())
    assert (low - exact).abs().mean() < 0.05 * exact.abs().mean() + 0.01


def test_what_cannot_be():
    for changes, says in (
        ({"size": 48}, "size=48 must be a power of two"),
        ({"fused_size": 32}, "at most the input's 16 pixels and half"),
        ({"degradation": "none"}, "choose encoder, learned"),
    ):
        with pytest.raises(ValueError, match=says):
            small(**changes)
    with pytest.raises(ValueError, match=r"pictures of \(32, 32\) instead of \(16, 16\)"):
        small()(pictures(size=32))
    with pytest.raises(ValueError, match="without interpolation has no shares"):
        small(interpolate=False).prior_shares(pictures())


def test_notes():
    network = small()
    notes = network.notes(pictures())
    for note, shares in zip(notes, network.prior_shares(pictures()), strict=True):
        assert list(note["prior_share"].values()) == pytest.approx(shares.tolist(), abs=1e-4)
    assert small(interpolate=False).notes(pictures()) == [{}, {}]


def tiny_runner_file(path, generator):
    weights = {f"generator.{k}": v for k, v in generator.items()}
    weights |= {"discriminator.convs.0.1.bias": torch.zeros(2), "perceptual_loss.w": torch.ones(1)}
    content = {"meta": {"iter": 5, "time": "now"}, "state_dict": weights, "optimizer": {}}
    torch.save(content, path)


@torch.no_grad()
def test_runner_files(tmp_path):
    record, _ = parity.load("panini_net_mfr")
    weights = parity.make_model(record["models"]["net"])
    tiny_runner_file(tmp_path / "panini_mfr_latest.pth", weights)
    network = convert_checkpoint(tmp_path / "panini_mfr_latest.pth", "panini_mfr")
    assert torch.equal(network.to_latent.bias, weights["encoder.5.3.bias"])
    with pytest.raises(CheckpointError, match="its keys are of 'panini_mfr'"):
        convert_checkpoint(tmp_path / "panini_mfr_latest.pth", "panini_sr")
    torch.save({"meta": {}, "state_dict": {"discriminator.a": torch.ones(1)}}, tmp_path / "d.pth")
    with pytest.raises(CheckpointError, match="no weights of Panini-Net's generator"):
        convert_checkpoint(tmp_path / "d.pth", "panini_mfr")
    with pytest.raises(ValueError, match=r"has no argument in_size; it takes none$"):
        convert_checkpoint(tmp_path / "d.pth", "panini_mfr", in_size=64)
    del weights["fusion_out.3.bias"]
    with pytest.raises(CheckpointError, match=r"1 missing \(fusion_out\.3\.bias\)"):
        convert_checkpoint(weights, "panini_mfr")


@torch.no_grad()
def test_moco_file(tmp_path):
    record, _ = parity.load("moco_infonce")
    weights = parity.make_model(record["models"]["moco"])
    path = tmp_path / "moco_checkpoint_0199.pth.tar"
    prefixed = {f"module.{k}": v for k, v in weights.items()}
    torch.save({"epoch": 200, "arch": "resnet50", "state_dict": prefixed, "optimizer": {}}, path)
    network = convert_checkpoint(path, "moco_degradation_encoder")
    assert torch.equal(network.projection[1].bias, weights["encoder_q.mlp.2.bias"])
    network.save_pretrained(tmp_path / "native")
    again = DegradationEncoder.from_pretrained(tmp_path / "native")
    x = pictures(size=32)
    assert torch.equal(again.eval()(x), network(x))
    assert json.loads((tmp_path / "native/config.json").read_text())["width"] == 64
    assert F.normalize(network.project(network(x))).shape == (2, 256)


def test_shares_stand_in_the_manifest(tmp_path, model_folder):
    small().save_pretrained(tmp_path / "panini")
    faces = make_pictures(tmp_path / "in", 3)
    done = run_here(
        "-m", "dr2pipe", "restore", "--aligned", faces, tmp_path / "o", "--set",
        f"dr2.model={model_folder}", *TINY, "enhancer.name=panini",
        f"enhancer.weights={tmp_path / 'panini'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "prior share, median" in done.stdout
    assert "8 px 0." in done.stdout
    for line in (tmp_path / "o/manifest.jsonl").read_text().splitlines():
        shares = json.loads(line)["notes"]["prior_share"]
        assert list(shares) == ["4 px", "8 px"]
        assert all(0 < share < 1 for share in shares.values())
    alone = run_here(
        "-m", "dr2pipe", "restore", "--aligned", faces, tmp_path / "alone", "--set", "dr2.enabled=false",
        "enhancer.name=panini", f"enhancer.weights={tmp_path / 'panini'}",
    )  # fmt: skip
    assert alone.returncode == 0, alone.stderr
    assert Image.open(tmp_path / "alone/restored/face_000.png").size == (32, 32)
