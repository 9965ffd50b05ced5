import parity
import pytest
import torch
from torch import nn

from dr2pipe.convert import convert_checkpoint
from dr2pipe.core.errors import CheckpointError, ConfigError
from dr2pipe.enhancers import build_enhancer
from dr2pipe.enhancers.deformable import DeformableConv
from dr2pipe.losses.codebook import codebook_loss

SMALL = {
    "size": 16,
    "base_channels": 8,
    "channel_multipliers": [1, 2],
    "encoder_blocks": 1,
    "decoder_blocks": 1,
    "num_codes": 12,
    "code_channels": 4,
    "condition_channels": 4,
    "deformable_groups": 2,
    "norm_groups": 4,
}


@torch.no_grad()
def test_official_size():
    record, arrays = parity.load("vqfr_v1")
    network = convert_checkpoint(parity.make_weights(record["keys"]), "vqfr_v1").eval()
    assert sum(p.numel() for p in network.parameters()) == record["params"]
    assert network.input_size == network.output_size == 512
    x = parity.tensor(arrays["x128"])
    parts = network(x, return_parts=True)
    assert torch.equal(parts.codes.indices[0], parity.tensor(arrays["indices"]))
    for made, name in (
        (parts.result, "main_dec"),
        (parts.texture, "dec"),
        (network(x), "main_dec"),
    ):
        assert (made - parity.tensor(arrays[name])).abs().max() <= 1e-5


def test_a_file_with_a_key_too_few_is_named():
    record, _ = parity.load("vqfr_v1")
    weights = {key: torch.zeros(r["shape"]) for key, r in record["keys"].items()}
    for key, says in (
        ("main_decoder.align_func_dict.Level_4.dcn.weight", "1 missing"),
        ("inpfeat_extraction.conv.weight", "does not fit 'vqfr_v1'"),
    ):
        fewer = {name: tensor for name, tensor in weights.items() if name != key}
        with pytest.raises(CheckpointError, match=f"{says}.*{key.split('.')[0]}|{key}"):
            convert_checkpoint(fewer, "vqfr_v1")


@torch.no_grad()
def test_notes_say_how_far_the_codebook_is():
    network = build_enhancer("vqfr", **SMALL)
    x = parity.make_input("vqfr", (2, 3, 16, 16))
    near = network.notes(x)
    assert len(near) == 2
    network.codebook.codes += 10
    far = network.notes(x)
    assert all(
        a["codebook_distance"] + 50 < b["codebook_distance"] for a, b in zip(near, far, strict=True)
    )


def test_codebook():
    book = build_enhancer("vqfr", **SMALL).codebook
    features = torch.randn(2, 16, 3, 5, requires_grad=True)
    codes = book(features)
    distances = (codes.vectors[..., None, :] - book.codes).square().sum(-1)
    assert torch.equal(codes.indices, distances.argmin(-1))
    assert torch.equal(codes.chosen, book.codes[codes.indices])
    assert torch.allclose(codes.features, book.from_code(codes.chosen.movedim(-1, 1)), atol=1e-6)
    # The gradient of the decoders reaches the encoder past the choice, and not the codes.
    codes.features.sum().backward(retain_graph=True)
    assert features.grad.abs().min() > 0
    assert book.codes.grad is None
    codebook_loss(codes.vectors, codes.chosen).backward()
    used = torch.zeros(12).index_fill(0, codes.indices.flatten().unique(), 1).bool()
    assert torch.equal(book.codes.grad.abs().sum(1) > 0, used)
    plain = book(features, quantise=False)
    assert torch.equal(plain.features, book.from_code(book.to_code(features)))


def test_the_codebook_loss_draws_both_sides():
    vectors, codes = torch.zeros(1, 3), torch.ones(1, 3)
    vectors.requires_grad_()
    codes.requires_grad_()
    loss = codebook_loss(vectors, codes)
    loss.backward()
    assert loss.item() == pytest.approx(1.25)
    assert codes.grad.tolist() == [pytest.approx([2 / 3] * 3)]
    assert vectors.grad.tolist() == [pytest.approx([-0.25 * 2 / 3] * 3)]


@torch.no_grad()
@pytest.mark.parametrize("move", [(0, 0), (1, 0), (0, -2), (-1, 3)])
def test_a_deformable_convolution_moved_by_whole_pixels(move):
    deform = DeformableConv(6, groups=2)
    x, motion = torch.randn(2, 6, 9, 7), torch.randn(2, 6, 9, 7)
    plain = nn.functional.conv2d(x, deform.weight, padding=1)
    assert torch.allclose(deform(x, motion), 0.5 * plain, atol=1e-5)  # sigmoid(0) of every tap
    deform.to_offsets.bias[:36] = torch.tensor(move, dtype=torch.float32).repeat(18)
    deform.to_offsets.bias[36:] = 100  # every tap is taken whole
    down, right = move
    wide = nn.functional.pad(x, (4, 4, 4, 4))
    moved = torch.roll(wide, (-down, -right), (2, 3))
    expected = nn.functional.conv2d(moved, deform.weight)[:, :, 3:12, 3:10]
    assert torch.allclose(deform(x, motion), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"size": 15}, "size=15 cannot be halved 1 times"),
        ({"channel_multipliers": [1]}, "cannot be halved 0 times, once or more"),
        ({"norm_groups": 3}, "norm_groups=3 does not divide"),
        ({"deformable_groups": 0}, "deformable_groups=0 does not divide"),
    ],
)
def test_errors(options, says):
    with pytest.raises(ConfigError, match=says):
        build_enhancer("vqfr", **SMALL | options)
