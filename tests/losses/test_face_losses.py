"""The losses of GFP-GAN and StyleGAN2, each against its formula in float64."""

import math

import numpy as np
import parity
import pytest
import torch

from dr2pipe.convert import convert_checkpoint
from dr2pipe.core.errors import CheckpointError
from dr2pipe.features.arcface import ArcFaceResNet, load_arcface, to_grey
from dr2pipe.losses.adversarial import (
    logistic_discriminator_loss,
    logistic_generator_loss,
    path_length_penalty,
    path_lengths,
    r1_penalty,
)
from dr2pipe.losses.face_parts import component_style_loss, crop_parts, roi_align
from dr2pipe.losses.identity import identity_loss
from dr2pipe.losses.perceptual import gram_matrix, perceptual_loss, style_loss
from dr2pipe.losses.reconstruction import pixel_loss, pyramid_loss


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def check_value_and_gradient(loss, reference, given):
    """``loss`` in float32 against the NumPy ``reference`` in float64, and its slopes."""
    x = given.float().requires_grad_()
    value = loss(x)
    assert value.item() == pytest.approx(reference(given.numpy()), rel=1e-5)
    (gradient,) = torch.autograd.grad(value, x)
    base, step = given.numpy(), 1e-6
    places = np.random.default_rng(0).choice(base.size, min(20, base.size), replace=False)
    scale = gradient.abs().max().item()
    for place in places:
        moved = []
        for sign in (1, -1):
            other = base.copy().reshape(-1)
            other[place] += sign * step
            moved.append(reference(other.reshape(base.shape)))
        slope = (moved[0] - moved[1]) / (2 * step)
        assert abs(gradient.reshape(-1)[place].item() - slope) <= 1e-5 * scale + 1e-9


def softplus(x):
    return np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0)


def gram(x):
    flat = x.reshape(*x.shape[:2], -1)
    return np.einsum("bip,bjp->bij", flat, flat) / flat[0].size


FAKE, REAL = random(4, 1), random(4, 1, seed=1)
MAPS = [random(2, 3, 4, 4, seed=2), random(2, 5, 2, 2, seed=3)]
TARGETS = [random(2, 3, 4, 4, seed=4), random(2, 5, 2, 2, seed=5)]
PICTURE, TARGET = random(2, 3, 8, 8, seed=6), random(2, 3, 8, 8, seed=7)


def halved(x):
    return x.reshape(*x.shape[:2], x.shape[2] // 2, 2, x.shape[3] // 2, 2).mean(axis=(3, 5))


LOSSES = {
    "discriminator, fake": (
        lambda x: logistic_discriminator_loss(REAL.float(), x),
        lambda x: softplus(-REAL.numpy()).mean() + softplus(x).mean(),
        FAKE,
    ),
    "discriminator, real": (
        lambda x: logistic_discriminator_loss(x, FAKE.float()),
        lambda x: softplus(-x).mean() + softplus(FAKE.numpy()).mean(),
        REAL,
    ),
    "generator": (logistic_generator_loss, lambda x: softplus(-x).mean(), FAKE),
    "identity": (
        lambda x: identity_loss(x, TARGET[:, 0, 0].float()),
        lambda x: np.abs(x - TARGET[:, 0, 0].numpy()).mean(),
        PICTURE[:, 0, 0],
    ),
    "component style, first": (
        lambda x: component_style_loss([x, MAPS[1].float()], [t.float() for t in TARGETS]),
        lambda x: (
            0.5 * np.abs(gram(x) - gram(TARGETS[0].numpy())).mean()
            + np.abs(gram(MAPS[1].numpy()) - gram(TARGETS[1].numpy())).mean()
        ),
        MAPS[0],
    ),
    "component style, second": (
        lambda x: component_style_loss([MAPS[0].float(), x], [t.float() for t in TARGETS]),
        lambda x: (
            0.5 * np.abs(gram(MAPS[0].numpy()) - gram(TARGETS[0].numpy())).mean()
            + np.abs(gram(x) - gram(TARGETS[1].numpy())).mean()
        ),
        MAPS[1],
    ),
    "pixel": (
        lambda x: pixel_loss(x, TARGET.float()),
        lambda x: np.abs(x - TARGET.numpy()).mean(),
        PICTURE,
    ),
    "pyramid": (
        lambda x: pyramid_loss([x, TARGETS[0][:, :, :4, :4].float()], TARGET.float()),
        lambda x: (
            np.abs(x - TARGET.numpy()).mean()
            + np.abs(TARGETS[0].numpy() - halved(TARGET.numpy())).mean()
        ),
        PICTURE,
    ),
    "perceptual": (
        lambda x: perceptual_loss({"a": x}, {"a": TARGET.float()}, {"a": 0.3}),
        lambda x: 0.3 * np.abs(x - TARGET.numpy()).mean(),
        PICTURE,
    ),
    "style": (
        lambda x: style_loss({"a": x}, {"a": TARGET.float()}, {"a": 0.3}),
        lambda x: 0.3 * np.abs(gram(x) - gram(TARGET.numpy())).mean(),
        PICTURE,
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient(name):
    check_value_and_gradient(*LOSSES[name])


def test_r1_of_a_quadratic_discriminator():
    """D(x) = ½ xᵀAx has the gradient Ax."""
    matrix = random(12, 12)
    matrix = matrix + matrix.T
    x = random(3, 12, seed=1).requires_grad_()
    scores = 0.5 * torch.einsum("bi,ij,bj->b", x, matrix, x)
    penalty = r1_penalty(scores, x)
    expected = (x.detach().numpy() @ matrix.numpy()) ** 2
    assert penalty.item() == pytest.approx(expected.sum(axis=1).mean(), rel=1e-9)
    (gradient,) = torch.autograd.grad(penalty, x)
    by_hand = 2 * x.detach() @ matrix @ matrix / 3
    assert torch.allclose(gradient, by_hand, rtol=1e-9)


def test_path_lengths_of_a_linear_generator():
    """A picture that is linear in w has the same Jacobian everywhere."""
    jacobian = random(3 * 4 * 4, 6)
    latents = random(2, 5, 6, seed=1).requires_grad_()
    pictures = (latents.sum(dim=1) @ jacobian.T).reshape(2, 3, 4, 4)
    lengths = path_lengths(pictures, latents, torch.Generator().manual_seed(3))
    noise = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(3)).double() / 4
    expected = (noise.reshape(2, -1) @ jacobian).norm(dim=1)
    assert torch.allclose(lengths, expected)
    mean = torch.tensor(1.5, dtype=torch.float64)
    penalty = ((expected - 1.5) ** 2).mean()
    assert path_length_penalty(lengths, mean).item() == pytest.approx(penalty.item())


def roi_align_by_hand(picture, box, size):
    """(C,H,W) float64; every sample one by one."""
    _, height, width = picture.shape
    left, top, right, bottom = box
    wide, high = max(right - left, 1), max(bottom - top, 1)
    across, down = math.ceil(wide / size), math.ceil(high / size)
    out = np.zeros((picture.shape[0], size, size))
    for row in range(size):
        for column in range(size):
            total = np.zeros(picture.shape[0])
            for i in range(down):
                for j in range(across):
                    y = top + (row + (i + 0.5) / down) * high / size
                    x = left + (column + (j + 0.5) / across) * wide / size
                    if y < -1 or y > height or x < -1 or x > width:
                        continue
                    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
                    y0, x0 = int(y), int(x)
                    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
                    a, b = y - y0, x - x0
                    total += (1 - a) * ((1 - b) * picture[:, y0, x0] + b * picture[:, y0, x1])
                    total += a * ((1 - b) * picture[:, y1, x0] + b * picture[:, y1, x1])
            out[:, row, column] = total / (across * down)
    return out


def test_roi_align():
    pictures = random(4, 2, 24, 20)
    boxes = torch.tensor(
        [
            [2.3, 3.1, 14.9, 20.2],
            [-6.0, -3.5, 9.0, 8.0],
            [10.0, 12.0, 30.0, 29.0],
            [5, 5, 5.2, 5.1],
        ],
        dtype=torch.float64,
    )
    made = roi_align(pictures, boxes, 6)
    for i in range(4):
        expected = roi_align_by_hand(pictures[i].numpy(), boxes[i].numpy(), 6)
        assert np.allclose(made[i].numpy(), expected, atol=1e-12)
    small = random(2, 1, 8, 7, seed=1).requires_grad_()
    inside = boxes[:2] / 3
    assert torch.autograd.gradcheck(lambda p: roi_align(p, inside, 3), (small,))


def test_parts_are_cut_where_the_landmarks_are():
    pictures = torch.zeros(1, 3, 128, 128)
    pictures[0, 0, 40:60, 30:50] = 1  # left eye
    pictures[0, 1, 40:60, 80:100] = 1
    pictures[0, 2, 90:110, 50:80] = 1
    parts = torch.tensor([[[40.0, 50, 8], [90.0, 50, 8], [65.0, 100, 12]]])
    crops = crop_parts(pictures, parts)
    sides = [crops[name].shape[-1] for name in ("left_eye", "right_eye", "mouth")]
    assert sides == [20, 20, 30]
    for channel, name in enumerate(crops):
        middle = crops[name][0, :, sides[channel] // 2, sides[channel] // 2]
        assert middle.tolist() == [float(i == channel) for i in range(3)]


@torch.no_grad()
def test_components_and_arcface_equal_the_reference():
    record, arrays = parity.load("gfpgan_component_arcface")

    def assert_close(made, name):
        golden = parity.tensor(arrays[name])
        assert (made - golden).abs().max() <= 1e-4 * golden.abs().max()

    weights = parity.make_weights(record["keys"]["component"])
    part = convert_checkpoint(weights, "face_part_discriminator")
    assert sum(p.numel() for p in part.parameters()) == record["params"]["component"]
    score, (first, second) = part(parity.tensor(arrays["eye_x"]))
    assert_close(score, "eye_out")
    assert_close(first[:, ::4, ::2, ::2], "eye_feat0_strided")
    assert_close(second[:, ::4, ::2, ::2], "eye_feat1_strided")
    assert_close(gram_matrix(first), "eye_gram0")
    assert_close(gram_matrix(second)[:, ::2, ::2], "eye_gram1_strided")

    arcface = convert_checkpoint(parity.make_weights(record["keys"]["arcface"]), "arcface_resnet18")
    assert sum(p.numel() for p in arcface.parameters()) == record["params"]["arcface"]
    assert_close(arcface(parity.tensor(arrays["arc_x"])), "arc_out")
    grey = to_grey(parity.make_input("arcface:rgb", (1, 3, 256, 256)))
    assert_close(grey, "gray128")
    assert_close(arcface(grey), "arc_out_rgb")
    with_squeeze = parity.make_weights(record["keys"]["arcface_se_1111"])
    network = convert_checkpoint(with_squeeze, "arcface_resnet18")
    assert list(network.config.blocks) == [1, 1, 1, 1]
    assert network.config.squeeze
    assert network(grey).isfinite().all()


def test_arcface_by_path(tmp_path):
    torch.manual_seed(0)
    network = ArcFaceResNet().eval()
    official = {f"module.{k}": v for k, v in network.state_dict().items()}
    torch.save(official, tmp_path / "arcface_resnet18.pth")
    network.save_pretrained(tmp_path / "converted")
    x = torch.randn(1, 1, 128, 128)
    for path in ("arcface_resnet18.pth", "converted"):
        loaded = load_arcface(tmp_path / path)
        assert torch.equal(loaded(x), network(x))
        assert not any(p.requires_grad for p in loaded.parameters())
    with pytest.raises(ValueError, match=r"arcface_resnet18\.pth \(no path given\)"):
        load_arcface(None)
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"is not arcface_resnet18\.pth"):
        load_arcface(tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="missing"):
        convert_checkpoint({"layer1.0.bn0.weight": torch.zeros(64)}, "arcface_resnet18")
