"""State dicts of every kind, changed at random, convert or raise one kind of error."""

import random
import time

import pytest
import torch

from dr2pipe.convert import CONVERTERS, convert_checkpoint
from dr2pipe.core.errors import CheckpointError, ConfigError, Dr2pipeError
from dr2pipe.enhancers.sparnet import SPARNet

ODD = [
    torch.zeros(()),
    torch.zeros(0),
    torch.zeros(1),
    torch.zeros(1, 1, 1, 1, 1),
    torch.zeros(3, 0, 2),
    torch.zeros(2, 3, dtype=torch.int64),
    torch.zeros(100_000),
    torch.zeros(2, 2).to_sparse(),
    torch.zeros(2, dtype=torch.complex64),
    torch.zeros(4, device="meta"),
    torch.full((4, 4), float("nan")),
]
# Keys that each converter looks for.
KEYS = {
    "guided_diffusion_unet": ["input_blocks.0.0.weight", "time_embed.0.weight", "label_emb.weight"],
    "sparnet": [
        "encoder.0.conv2d.weight",
        "encoder.1.conv1.conv2d.weight",
        "encoder.1.att_func.b1_4.x",
        "encoder.1.att_func.out_block.0.conv2d.bias",
        "res_layers.3.conv1.conv2d.weight_orig",
        "res_layers.3.conv1.conv2d.weight_u",
        "res_layers.3.conv1.conv2d.weight_v",
        "x.running_mean",
    ],
    "gfpgan_clean": ["stylegan_decoder.style_conv1.bias", "conv_body_first.weight"],
    "gfpgan_original": ["stylegan_decoder.constant_input.weight", "conv_body_first.0.weight"],
    "vqfr_v1": [
        "encoder.conv_in.weight",
        "quantizer.quantize_dict.Level_32.embedding.weight",
        "inpfeat_extraction.conv.weight",
        "main_decoder.align_func_dict.Level_1.dcn.conv_offset.weight",
        *(f"encoder.encoder_dict.Level_{1 << level}.0.norm1.weight" for level in range(6)),
        "decoder.decoder_dict.Level_1.3.x",
    ],
    "panini_sr": ["encoder.0.0.conv_first.weight", "choice_vector", "generator.encoder.0.x.kernel"],
    "panini_mfr": ["encoder.0.0.conv_first.weight", "generator.encoder.0.x.kernel"],
    "moco_degradation_encoder": ["encoder_q.E.0.weight", "module.encoder_q.mlp.0.weight"],
    "exegan": [
        "down_from_big.0.weight",
        "final_linear.0.weight",
        "style.1.weight",
        "to_rgbs.3.conv.weight",
        "x.kernel",
    ],
    "exegan_discriminator": [
        "encoder_input_convs.0.weight",
        "final_conv.0.weight",
        "encoder_convs.0.skip.1.weight",
        "x.kernel",
    ],
    "psp_encoder": ["latent_avg", "encoder.styles.3.linear.weight", "styles.3.linear.weight"],
    "resnet101_identity": ["layer1.1.conv1.weight", "layer4.900.conv1.weight", "fc.weight"],
    "stylegan2_generator": [
        "style_conv1.bias",
        "style_conv1.modulated_conv.modulation.weight",
        "constant_input.weight",
        "constant_input.input",
        "input.input",
        "to_rgbs.0.modulated_conv.weight",
        "to_rgbs.4.modulated_conv.weight",
        "style_mlp.1.bias",
        "generator.style_conv1.bias",
    ],
    "stylegan2_discriminator": [
        "conv_body.0.0.weight",
        "convs.0.0.weight",
        "convs.0.0.conv.weight_orig",
        "final_conv.0.weight",
        "conv_body.1.skip.1.weight",
    ],
    "face_part_discriminator": ["conv1.0.weight", "conv2.1.weight", "final_conv.0.weight"],
    "arcface_resnet18": ["layer1.1.conv1.weight", "layer4.50.se.x", "conv1.weight"],
}


def test_every_kind_has_keys():
    assert KEYS.keys() == CONVERTERS.keys()


@pytest.mark.parametrize("kind", KEYS)
def test_odd_state_dicts_raise_one_kind_of_error(kind):
    rng = random.Random(kind)
    for _ in range(25):
        keys = rng.sample(KEYS[kind], rng.randint(1, len(KEYS[kind])))
        state_dict = {key: rng.choice(ODD) for key in keys}
        if rng.random() < 0.5:
            sides = [rng.choice((1, 3, 8, 64, 512)) for _ in range(4)]
            state_dict |= {key: torch.zeros(sides[: rng.randint(1, 3)]) for key in keys}
        start = time.monotonic()
        with pytest.raises(Dr2pipeError):
            convert_checkpoint(state_dict, kind)
        assert time.monotonic() - start < 10


def test_mutated_weights_of_a_real_network():
    network = SPARNet(size=32, channels=(8, 8), residual_blocks=1, hourglass_depth=1)
    weights = network.state_dict()
    rng = random.Random(0)
    for _ in range(25):
        changed = dict(weights)
        for key in rng.sample(list(weights), 3):
            changed[key] = rng.choice(ODD)
        with pytest.raises(Dr2pipeError):
            convert_checkpoint(changed, "sparnet")


@pytest.mark.parametrize(
    "key", ["layer1.1000000000.conv1.weight", "layer1.99999.conv1.weight", "a" * 1000]
)
def test_numbers_in_keys_are_bounded(key):
    with pytest.raises(CheckpointError, match="counts more layers than there are tensors"):
        convert_checkpoint({key: torch.zeros(1)}, "resnet101_identity")


@pytest.mark.parametrize(
    "arguments",
    [
        {"size": "abc"},
        {"size": [1]},
        {"size": True},
        {"size": 10**9},
        {"norm_type": 3},
        {"ch_in": 3.5},
        {"size": float("nan")},
    ],
)
def test_arguments_of_another_type_are_named(arguments):
    name = next(iter(arguments))
    with pytest.raises(ConfigError, match=f"sparnet: {name}="):
        convert_checkpoint({"a": torch.zeros(1)}, "sparnet", **arguments)


def test_shapes_cannot_ask_for_more_memory_than_the_file_has():
    # Two long vectors, from which a matrix of 40 GB would be built.
    state_dict = {
        "down_from_big.0.weight": torch.zeros(100_000),
        "final_linear.0.weight": torch.zeros(100_000),
        "style.1.weight": torch.zeros(100_000),
        "to_rgbs.3.conv.weight": torch.zeros(1),
    }
    with pytest.raises(CheckpointError, match="does not fit 'exegan'"):
        convert_checkpoint(state_dict, "exegan")
