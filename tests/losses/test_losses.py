import numpy as np
import parity
import pytest
import torch
from torch import nn

from dr2pipe.features.vgg import VGGFeatures, load_vgg
from dr2pipe.losses.adversarial import (
    feature_matching_loss,
    hinge_discriminator_loss,
    hinge_generator_loss,
)
from dr2pipe.losses.perceptual import gram_matrix, perceptual_loss, style_loss
from dr2pipe.losses.reconstruction import pixel_loss
from dr2pipe.training.gan import MultiScaleDiscriminator


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_hinge_losses_equal_their_formulas():
    real, fake = [random(2, 1, 4, 4), random(2, 1, 2, 2, seed=1)], [random(2, 1, 4, 4, seed=2),
                                                                    random(2, 1, 2, 2, seed=3)]  # fmt: skip
    by_hand = [
        0.5 * (np.maximum(0, 1 - r.numpy()).mean() + np.maximum(0, 1 + f.numpy()).mean())
        for r, f in zip(real, fake, strict=True)
    ]
    assert hinge_discriminator_loss(real, fake).item() == pytest.approx(np.mean(by_hand), rel=1e-9)
    expected = -np.mean([f.numpy().mean() for f in fake])
    assert hinge_generator_loss(fake).item() == pytest.approx(expected, rel=1e-9)


def test_feature_matching_is_summed_over_layers_and_averaged_over_scales():
    real = [[random(1, 2, 4, 4), random(1, 3, 2, 2, seed=1)], [random(1, 2, 2, 2, seed=2)]]
    fake = [[m.clone().requires_grad_() + 1 for m in maps] for maps in real]
    assert feature_matching_loss(real, fake).item() == pytest.approx((2 + 1) / 2)
    constants = [[m.requires_grad_() for m in maps] for maps in real]
    feature_matching_loss(constants, fake).backward()
    assert all(m.grad is None for maps in constants for m in maps)


def test_pixel_perceptual_and_style():
    a, b = random(2, 3, 4, 4), random(2, 3, 4, 4, seed=1)
    assert pixel_loss(a, b).item() == pytest.approx(np.abs(a.numpy() - b.numpy()).mean())
    weights = {"x": 0.5, "y": 2.0}
    loss = perceptual_loss({"x": a, "y": a}, {"x": b, "y": b}, weights)
    assert loss.item() == pytest.approx(2.5 * np.abs(a.numpy() - b.numpy()).mean())
    flat = a.numpy().reshape(2, 3, 16)
    gram = np.einsum("bip,bjp->bij", flat, flat) / (3 * 16)
    assert np.allclose(gram_matrix(a).numpy(), gram)
    assert style_loss({"x": a}, {"x": a}, {"x": 1.0}).item() == 0
    with pytest.raises(KeyError):
        perceptual_loss({}, {}, weights)


def torchvision_like(counts):
    """`features` of torchvision's VGG: convolutions, ReLUs and maxima in one row."""
    layers, width_in = [], 3
    for count, width in zip(counts, (64, 128, 256, 512, 512), strict=True):
        for _ in range(count):
            layers += [nn.Conv2d(width_in, width, 3, padding=1), nn.ReLU()]
            width_in = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


@pytest.mark.parametrize(
    ("name", "counts", "layer", "last"),
    [("vgg19", (2, 2, 4, 4, 4), "conv5_4", 34), ("vgg16", (2, 2, 3, 3, 3), "relu4_3", 22)],
)
@torch.no_grad()
def test_vgg_takes_torchvisions_files(tmp_path, name, counts, layer, last):
    torch.manual_seed(0)
    theirs = torchvision_like(counts)
    weights = {f"features.{k}": v for k, v in theirs.state_dict().items()}
    torch.save(weights | {"classifier.0.weight": torch.zeros(1)}, tmp_path / "vgg.pth")
    ours = load_vgg(tmp_path / "vgg.pth", name, ["conv1_2", layer])
    x = torch.rand(1, 3, 48, 48) * 2 - 1
    normalised = (x / 2 + 0.5 - ours.mean) / ours.std
    found = ours(x)
    assert torch.allclose(found["conv1_2"], theirs[:3](normalised), atol=1e-5)
    assert torch.allclose(found[layer], theirs[: last + 1](normalised), atol=1e-5)
    assert not any(p.requires_grad for p in ours.parameters())


def test_vgg_errors(tmp_path):
    with pytest.raises(ValueError, match=r"vgg19-dcbb9e9d\.pth.*sha256 begins with dcbb9e9d"):
        load_vgg(None)
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="is not vgg19"):
        load_vgg(tmp_path / "x.pth")
    (tmp_path / "junk.pth").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"junk\.pth is no file of PyTorch"):
        load_vgg(tmp_path / "junk.pth")
    with pytest.raises(ValueError, match="no layer conv9_1"):
        VGGFeatures("vgg19", ["conv9_1"])
    with pytest.raises(ValueError, match="choose vgg16, vgg19"):
        VGGFeatures("vgg11")


@torch.no_grad()
def test_discriminators_equal_the_reference():
    record, arrays = parity.load("sparnethd")
    weights = parity.make_weights(record["discriminator"]["keys"])
    network = MultiScaleDiscriminator().eval()
    assert sum(p.numel() for p in network.parameters()) == record["discriminator"]["params"]
    renamed = {}
    for key, value in weights.items():
        _, scale, rest = key.split(".", 2)
        prefix = f"discriminators.{scale}."
        if rest.startswith("score_out"):
            module, leaf = "score", rest.removeprefix("score_out.conv2d.")
        else:
            _, layer, part, *_ = rest.split(".")
            leaf = rest.split(".")[-1]
            if part == "norm":
                module = f"norms.{int(layer) - 1}"
            else:
                module = "first" if layer == "0" else f"down.{int(layer) - 1}"
        leaf = {
            "weight_orig": "parametrizations.weight.original",
            "weight_u": "parametrizations.weight.0._u",
            "weight_v": "parametrizations.weight.0._v",
        }.get(leaf, leaf)
        renamed[f"{prefix}{module}.{leaf}"] = value
    network.load_state_dict(renamed)
    scores, features = network(parity.tensor(arrays["D_x192"]))
    for i, score in enumerate(scores):
        assert (score - parity.tensor(arrays[f"D_out{i}"])).abs().max() < 2e-4
    assert [len(maps) for maps in features] == [5, 5, 5]
