import argparse
import zlib

import numpy as np
import parity
import pytest
import torch
from conftest import TINY_EXEGAN

from dr2pipe.convert import convert_checkpoint
from dr2pipe.core.errors import CheckpointError
from dr2pipe.enhancers import build_enhancer
from dr2pipe.enhancers.exegan import ExeGAN, mix_rows
from dr2pipe.features.psp import StyleEncoder, load_style_encoder
from dr2pipe.features.resnet101 import load_identity_resnet
from dr2pipe.losses.adversarial import (
    logistic_discriminator_loss,
    logistic_generator_loss,
    path_length_penalty,
    r1_penalty,
)
from dr2pipe.losses.identity import identity_angle_loss
from dr2pipe.losses.inpainting import (
    attribute_loss,
    border_weights,
    flat_kernel,
    gaussian_kernel,
    inner_weights,
    weigh_gradient,
)


def made_input(record, arrays, name):
    """An input of a fixture, stored or made by its rule."""
    about = record["inputs"][name]
    if f"in_{name}" in arrays:
        return parity.tensor(arrays[f"in_{name}"])
    rng = np.random.default_rng(zlib.crc32(about["seed_string"].encode()))
    shape = about["shape"]
    if about["kind"] == "normal":
        made = rng.standard_normal(shape)
    elif about["kind"] == "blocks8":
        small = [*shape[:2], shape[2] // 8, shape[3] // 8]
        made = (rng.random(small) * 2 - 1).repeat(8, axis=2).repeat(8, axis=3)
    else:
        assert about["kind"] == "uniform"
        made = (rng.random(shape) * 2 - 1) * about["scale"]
    return parity.tensor(made.astype(np.float32))


def assert_close(made, record, arrays, name, share=1e-4):
    """Equal to a share of the largest value; of some outputs the fixture holds statistics alone."""
    about = record["outputs"][name]
    allowed = share * max(abs(about["min"]), abs(about["max"]))
    assert list(made.shape) == about["full_shape"], name
    statistics = {"mean": made.mean(), "min": made.min(), "max": made.max()}
    for what, value in (statistics | {"std": made.std(correction=0)}).items():
        assert abs(float(value) - about[what]) <= allowed, (name, what)
    if about["npz"] not in arrays:
        return
    golden = parity.tensor(arrays[about["npz"]])
    if about["stored"].startswith("numpy slice "):
        steps = about["stored"].removeprefix("numpy slice ").split(",")
        made = made[tuple(slice(None, None, int(step.strip(":") or 1)) for step in steps)]
    assert made.shape == golden.shape, name
    assert (made - golden).abs().max() <= allowed, name


@torch.no_grad()
@pytest.mark.parametrize("size", [64, pytest.param(256, marks=pytest.mark.slow)])
def test_generator_equals_the_reference(size):
    name = "exe_gan_generator" if size == 64 else "exe_gan_generator_256"
    record, arrays = parity.load(name)
    weights = parity.make_model(record["models"]["generator"])
    network = convert_checkpoint({"g_ema": weights, "iter": 3}, "exegan")
    assert network.config.size == size
    expected = record["models"]["generator"]["parameters"]
    assert sum(p.numel() for p in network.parameters()) == expected
    real, mask, z1, z2, exemplar, centre = (
        made_input(record, arrays, n)
        for n in ("real", "mask", "z1", "z2", "exemplar_embedding", "trunc_latent")
    )

    def same(made, name):
        assert_close(made, record, arrays, name)

    encoded = network.encode(real, mask)
    same(encoded.code, "x_global")
    same(encoded.start, "enc_feat4")
    for side, features in encoded.features.items():
        same(features, f"enc_feat{side}")
    same(network.synthesis.mapping(z1), "w_from_z1")
    w = network.random_w(z1)
    same(network.latents(w, exemplar), "latent_single")
    same(network(real, mask=mask, latents=network.latents(w, exemplar), whole=True), "fake_single")
    completed = network(real, mask=mask, latents=network.latents(w, exemplar))
    same(completed, "completed_single")
    if size == 256:
        return
    mixed = network.latents(network.random_w(z1, z2, 3), exemplar)
    same(mixed, "latent_mix_inject3")
    same(network(real, mask=mask, latents=mixed, whole=True), "fake_mix_inject3")
    truncated = network.latents(network.random_w(z1, centre=centre, psi=0.5), exemplar)
    same(network(real, mask=mask, latents=truncated, whole=True), "fake_trunc0.5")
    shared = network.latents(w, exemplar, own_share=0.3)
    same(shared, "latent_lambda0.3")
    same(network(real, mask=mask, latents=shared, whole=True), "fake_lambda0.3")
    given = network.latents(made_input(record, arrays, "w_direct"), exemplar)
    same(network(real, mask=mask, latents=given, whole=True), "fake_input_is_latent")


@pytest.fixture(scope="module")
def style_encoder():
    record, arrays = parity.load("exe_gan_style_encoder")
    weights = parity.make_model(record["models"]["encoder"])
    file = {
        "state_dict": {f"encoder.{k}": v for k, v in weights.items()}
        | {"decoder.x": torch.ones(1)},
        "latent_avg": parity.tensor(arrays["in_latent_avg"]),
        "opts": {"n_styles": 18},
    }
    return convert_checkpoint(file, "psp_encoder").requires_grad_(False), record, arrays


def test_style_encoder_equals_the_reference(style_encoder):
    network, record, arrays = style_encoder
    assert sum(p.numel() for p in network.parameters()) == 267_136_704
    part, outside = range(4, 14), [*range(4), *range(14, 18)]
    small, large = (made_input(record, arrays, name) for name in ("img64", "img256"))
    mean = network.mean_latent
    with torch.no_grad():
        every, of_large = network(small), network(large)
    for made, name in (
        (every[:, part], "embedding_part_img64"),
        (every[:, :4], "embedding_verse_part_img64"),
        (every[:, :14], "embedding_all_img64"),
        ((every - mean)[:, part], "styles_start4_n10_img64"),
        ((every - mean)[:, outside], "styles_adverse_img64"),
        (of_large - mean, "styles_all18_img256"),
    ):
        assert_close(made, record, arrays, name)
    weights, target = (
        made_input(record, arrays, name) for name in ("weight_map", "target_embedding")
    )
    small.requires_grad_()
    loss = attribute_loss(network(weigh_gradient(small, weights), part), target)
    expected = record["scalars"]["attribute_loss_vs_target"]
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    (gradient,) = torch.autograd.grad(loss, small)
    # Through fifty layers of kinks, float32 and float64 of one network differ by 8e-4 of it, and
    # float32 on processors of two kinds by 1.1e-3.
    name = "grad_attribute_loss_wrt_img_with_weight_map"
    assert_close(gradient, record, arrays, name, share=3e-3)


def test_weights_by_place_equal_the_reference():
    record, arrays = parity.load("exe_gan_svgl")

    def same(made, name):
        assert_close(made, record, arrays, name)

    mask = made_input(record, arrays, "mask")
    wide, narrow = flat_kernel(65, 1 / 40), flat_kernel(33, 1 / 100)
    for kernel, name in ((wide, "kernel65"), (narrow, "kernel33")):
        same(torch.outer(kernel, kernel)[None, None], name)
    border = border_weights(mask, wide)
    same(border, "mask_weight_size65_sigma1_40_iters7_pad32")
    same(border_weights(mask, narrow), "mask_weight_default_size33_sigma1_100_pad16")
    same(border_weights(mask, wide, passes=1), "mask_weight_iter1")
    same(border_weights(mask, wide, passes=3), "mask_weight_iter3")
    same(inner_weights(mask, border), "reversed_weight")
    x, above = (made_input(record, arrays, name) for name in ("x", "grad_out"))
    x.requires_grad_()
    weighed = weigh_gradient(x, border)
    assert torch.equal(weighed, x)
    weighed.backward(above)
    same(x.grad, "svgl_grad")


def test_losses_equal_the_reference():
    record, arrays = parity.load("exe_gan_svgl")
    scalars = record["scalars"]
    a, b = (made_input(record, arrays, name) for name in ("emb_a", "emb_b"))
    assert float(attribute_loss(a, b)) == pytest.approx(
        scalars["attribute_loss"]["value"], rel=1e-5
    )
    tagged = [i for i, tag in enumerate("1011000100") if tag == "1"]
    expected = scalars["attribute_loss_tags_1011000100"]["value"]
    assert float(attribute_loss(a[:, tagged], b[:, tagged])) == pytest.approx(expected, rel=1e-5)
    a, b = (made_input(record, arrays, name) for name in ("id_a", "id_b"))
    expected = scalars["id_loss_from_unit_vectors"]["value"]
    assert float(identity_angle_loss(a, b)) == pytest.approx(expected, rel=1e-5)
    expected = scalars["id_loss_batch1"]
    assert float(identity_angle_loss(a[:1], b[:1])) == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def test_identity_network_equals_the_reference():
    record, arrays = parity.load("exe_gan_svgl")
    weights = parity.make_model(record["models"]["id_resnet101"])
    network = convert_checkpoint(weights, "resnet101_identity")
    assert sum(p.numel() for p in network.parameters()) == 43_024_704
    a, b = (network(made_input(record, arrays, name)) for name in ("id_img_a", "id_img_b"))
    assert_close(a, record, arrays, "id_feature_a")
    expected = record["scalars"]["id_loss_images_target_a_source_b"]
    assert float(identity_angle_loss(b, a)) == pytest.approx(expected, abs=1e-6)


def test_weights_by_place_of_a_true_gaussian_fall_inwards():
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 8:24, 8:24] = 1
    border = border_weights(mask, gaussian_kernel(9, 2.0), passes=2)
    along = border[0, 0, 16, 8:16]
    assert (along.diff() < 0).all()
    assert not border[mask == 0].any()
    inner = inner_weights(mask, border)
    assert (inner[0, 0, 16, 8:16].diff() > 0).all()
    assert float(inner.max()) == 1
    assert not inner_weights(torch.zeros_like(mask), torch.zeros_like(mask)).any()
    with pytest.raises(ValueError, match="odd"):
        gaussian_kernel(8, 2.0)


def test_style_mixing_equals_the_reference():
    record, arrays = parity.load("exe_gan_style_mixing")
    a, b, w1, w2 = (made_input(record, arrays, name) for name in ("a", "b", "w1", "w2"))
    for index in (0, 1, 4, 7, 10):
        assert_close(mix_rows(a, b, index), record, arrays, f"mix_index{index}")
    network = ExeGAN(size=256, **{**TINY_EXEGAN, "style_channels": 512})
    assert_close(network.latents(w1, a), record, arrays, "wplus_one")
    shared = network.latents(w1, a, own_share=0.25)
    assert_close(shared, record, arrays, "wplus_one_lambda0.25")
    for crossover in (2, 6):
        w = network.synthesis.mix(w1, w2, crossover)
        name = f"wplus_two_inject{crossover}"
        assert_close(network.latents(w, a), record, arrays, name)


def test_discriminator_equals_the_reference():
    record, arrays = parity.load("exe_gan_discriminator")
    weights = parity.make_model(record["models"]["discriminator64"])
    file = {"g_ema": {"x": torch.ones(1)}, "d": weights}
    network = convert_checkpoint(file, "exegan_discriminator")
    x, y = (made_input(record, arrays, name) for name in ("x", "y"))
    x.requires_grad_()
    real, fake = network(x), network(y)
    assert_close(real, record, arrays, "logits_real_b4")
    assert_close(fake, record, arrays, "logits_fake_b4")
    assert_close(network(x[:2]), record, arrays, "logits_b2")
    (gradient,) = torch.autograd.grad(real.sum(), x, retain_graph=True)
    # Where rounding moves a feature over a kink, the gradient around it differs by more.
    assert_close(gradient, record, arrays, "grad_logits_sum_wrt_x", share=5e-3)
    scalars = record["scalars"]
    loss = logistic_discriminator_loss(real, fake)
    assert float(loss) == pytest.approx(scalars["d_logistic_loss"], rel=1e-5)
    loss = logistic_generator_loss(fake)
    assert float(loss) == pytest.approx(scalars["g_nonsaturating_loss"], rel=1e-5)
    expected = scalars["r1_grad_penalty"]["value"]
    assert float(r1_penalty(real, x)) == pytest.approx(expected, rel=1e-4)


def tiny():
    torch.manual_seed(0)
    return build_enhancer("exegan", size=16, **TINY_EXEGAN)


@torch.no_grad()
def test_known_pixels_stay_and_holes_do_not_matter():
    network, mask = tiny(), torch.zeros(2, 1, 16, 16)
    mask[:, :, 4:10, 3:12] = 1
    x, w = torch.rand(2, 3, 16, 16) * 2 - 1, torch.randn(2, 16)
    exemplar = torch.randn(2, len(network.exemplar_rows), 16)
    latents = network.latents(w, exemplar)
    filled = network(x, mask=mask, latents=latents)
    known = (mask == 0).expand_as(x)
    assert torch.equal(filled[known], x[known])
    other = torch.where(mask > 0, torch.rand_like(x), x)
    assert torch.equal(network(other, mask=mask, latents=latents), filled)
    restyled = network(x, mask=mask, latents=network.latents(w, exemplar.roll(1, dims=0)))
    assert not torch.equal(restyled, filled)
    with pytest.raises(ValueError, match="instead of"):
        network.latents(w, exemplar[:, 1:])
    for wrong in ({"mask": mask[:, :, :8]}, {"latents": latents[:, 1:]}, {"x": x[..., :8]}):
        given = {"x": x, "mask": mask, "latents": latents} | wrong
        with pytest.raises(ValueError, match="instead of"):
            network(given.pop("x"), **given)
    with pytest.raises(ValueError, match="crossover=9"):
        mix_rows(exemplar, exemplar, 9)
    with pytest.raises(ValueError, match=r"0\.\.5"):
        build_enhancer("exegan", size=16, first_exemplar_row=6, **TINY_EXEGAN)


def test_wrong_files_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"down_from_big\.0\.weight"):
        convert_checkpoint({"x": torch.ones(1)}, "exegan")
    with pytest.raises(CheckpointError, match="latent_avg is missing"):
        convert_checkpoint({"encoder.styles.0.linear.bias": torch.ones(1)}, "psp_encoder")
    path = tmp_path / "EXE_GAN_model_256.pt"  # training files hold options as an object
    torch.save({"g_ema": {"x": torch.ones(1)}, "args": argparse.Namespace(size=256)}, path)
    with pytest.raises(CheckpointError, match=r"torch\.save\(loaded\['g_ema'\], NEW\)"):
        convert_checkpoint(path, "exegan")
    with pytest.raises(ValueError, match="--kind psp_encoder"):
        load_style_encoder(tmp_path)
    with pytest.raises(ValueError, match="--kind resnet101_identity"):
        load_identity_resnet(tmp_path)


@torch.no_grad()
def test_small_style_encoders_load_from_folders(tmp_path):
    torch.manual_seed(0)
    encoder = StyleEncoder(rows=8, channels=16, size=32, width=4, blocks=(1, 1, 1, 1)).eval()
    encoder.save_pretrained(tmp_path)
    x = torch.rand(2, 3, 20, 20) * 2 - 1
    loaded = load_style_encoder(tmp_path)
    assert torch.equal(loaded(x, [2, 7]), encoder(x)[:, [2, 7]])
    with pytest.raises(ValueError, match=r"0\.\.7"):
        loaded(x, [8])


def test_path_lengths_equal_the_reference():
    record, arrays = parity.load("exe_gan_generator")
    weights = parity.make_model(record["models"]["generator"])
    network = convert_checkpoint(weights, "exegan").requires_grad_(False)
    real, mask, z1, exemplar, noise = (
        made_input(record, arrays, n)
        for n in ("real", "mask", "z1", "exemplar_embedding", "path_noise")
    )
    latents = network.latents(network.random_w(z1), exemplar).requires_grad_()
    drawn = network(real, mask=mask, latents=latents, whole=True)
    (gradient,) = torch.autograd.grad((drawn * noise / 64).sum(), latents)
    lengths = gradient.square().sum(dim=2).mean(dim=1).sqrt()
    assert_close(lengths, record, arrays, "path_lengths")
    mean = 0.7 + 0.01 * (lengths.mean() - 0.7)
    scalars = record["scalars"]
    assert mean.item() == pytest.approx(scalars["path_mean"], rel=1e-5)
    penalty = path_length_penalty(lengths, mean).item()
    assert penalty == pytest.approx(scalars["path_penalty"]["value"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "kind", "key"),
    [
        ("generator512", "exegan", "g_ema"),
        ("discriminator512", "exegan_discriminator", "d"),
        ("discriminator256", "exegan_discriminator", "d"),
    ],
)
def test_official_files_of_full_size_are_taken(model, kind, key):
    """By names and shapes; the fixture has no outputs of these."""
    record, _ = parity.load("exe_gan_keys_512")
    network = convert_checkpoint({key: parity.make_model(record["models"][model])}, kind)
    assert network.config.size == int(model[-3:])
    assert sum(p.numel() for p in network.parameters()) == record["models"][model]["parameters"]
