"""Perceptual losses of frozen networks, and an enhancer with a sharp variant trained by them."""

import numpy as np
import pytest
import torch
from conftest import make_pictures
from torch import nn

from dr2pipe.core.config import load_config
from dr2pipe.core.errors import CheckpointError, ConfigError
from dr2pipe.diffusion.networks import FaceDDPM
from dr2pipe.diffusion.patched_unet import PatchedUNet
from dr2pipe.diffusion.unet_features import UNetFeatures
from dr2pipe.enhancers import build_enhancer, mix_with_sharp
from dr2pipe.features.vgg import VGGFeatures
from dr2pipe.losses.perceptual import relative_perceptual_loss
from dr2pipe.training.perceptual import PerceptualConfig, PerceptualLoss
from dr2pipe.training.recipes import run_recipe
from dr2pipe.training.recipes.enhancer import EnhancerRecipe, EnhancerTrainConfig

TINY = [
    "recipe=enhancer", "data.size=32", "pairs.input_size=16", "pairs.degradations={severe: 1.0}",
    "enhancer.options={size: 32, channels: [8, 16], residual_blocks: 1, hourglass_depth: 1, "
    "hourglass_channels: 8, add_input: true}",
    "discriminator={scales: 2, width: 8, halvings: 2}", "batch_size=2", "total_steps=3",
    "trackers=[]",
]  # fmt: skip


def pictures_of(count, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, size, size, generator=generator) * 2 - 1


def write_vgg(name, path):
    """Random weights of VGG that keep its features alive, as torchvision stores them."""
    torch.manual_seed(0)
    stored, place = {}, 0
    for key, convolution in VGGFeatures(name, ["relu5_1"]).convolutions.items():
        place += key.endswith("_1") and key != "conv1_1"
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        stored |= {f"features.{place}.{k}": v for k, v in convolution.state_dict().items()}
        place += 2
    torch.save(stored, path)


@pytest.fixture(scope="module")
def settings(tmp_path_factory, model_folder):
    """Of each network, at a weight of 1."""
    folder = tmp_path_factory.mktemp("weights")
    for name in ("vgg16", "vgg19"):
        write_vgg(name, folder / f"{name}.pth")
    widths = enumerate((64, 128, 256, 512, 512))
    heads = {f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1) for i, width in widths}
    torch.save(heads, folder / "vgg.pth")
    return {
        "vgg19": {"vgg19": str(folder / "vgg19.pth")},
        "lpips": {"vgg16": str(folder / "vgg16.pth"), "lpips": str(folder / "vgg.pth")},
        "ddpm": {"ddpm": str(model_folder)},
    }


def loss_by(settings, name, **more):
    return PerceptualLoss(PerceptualConfig(1.0, name, **settings[name], **more))


@pytest.mark.parametrize("name", ["vgg19", "lpips", "ddpm"])
def test_a_frozen_network_compares(settings, name):
    loss = loss_by(settings, name)
    before = {k: v.clone() for k, v in loss.network.state_dict().items()}
    target, seeds = pictures_of(2, 32).requires_grad_(True), [3, 4]
    near, far = (target.detach() + share * pictures_of(2, 32, seed=1) for share in (0.02, 0.5))
    near.requires_grad_(True)
    assert loss(target.detach(), target, seeds, "fp32") == 0
    found = loss(near, target, seeds, "fp32")
    assert 0 < found < loss(far, target, seeds, "fp32")
    assert found == loss(near, target, seeds, "fp32")
    assert loss(near, target, seeds, "bf16").item() == pytest.approx(found.item(), rel=0.3)
    found.backward()
    assert (near.grad.abs().amax(dim=(1, 2, 3)) > 0).all()
    assert target.grad is None
    assert not any(p.requires_grad or p.grad is not None for p in loss.network.parameters())
    assert all(torch.equal(v, before[k]) for k, v in loss.network.state_dict().items())
    # A step against the gradient brings the picture nearer.
    step = 1e-3 * near.grad / near.grad.abs().mean()
    assert loss(near.detach() - step, target, seeds, "fp32") < found


def test_on_a_square_of_each_picture(settings):
    loss = loss_by(settings, "vgg19", perceptual_px=16)
    restored, target = pictures_of(3, 40).requires_grad_(True), pictures_of(3, 40, seed=1)
    loss(restored, target, [5, 6, 7], "fp32").backward()
    boxes = set()
    for gradient in restored.grad:
        rows, columns = (gradient.abs().amax(dim=dim).amax(dim=0).nonzero() for dim in (2, 1))
        assert int(rows.max() - rows.min()) == int(columns.max() - columns.min()) == 15
        boxes.add((int(rows.min()), int(columns.min())))
    assert len(boxes) == 3


def test_features_of_a_ddpm_on_patches():
    torch.manual_seed(0)
    unet = PatchedUNet(16, channels=(8, 16), attention_sizes=(), attention_head_channels=8)
    features = UNetFeatures(FaceDDPM(unet, None, 100), 100)
    x = pictures_of(1, 32)
    maps = features(x, torch.zeros_like(x))
    assert [maps[f"up_{i}"].shape[-1] for i in (0, 1)] == [16, 16]  # 8, enlarged; then 16
    assert not torch.equal(maps["up_1"], features(x, torch.ones_like(x))["up_1"])
    with pytest.raises(ConfigError, match=r"timestep 101 must lie in 0\.\.100"):
        UNetFeatures(FaceDDPM(unet, None, 100), 101)
    with pytest.raises(ConfigError, match="features of a SPARNet are not known"):
        UNetFeatures(
            FaceDDPM(build_enhancer("sparnet", size=32, channels=[4, 4], hourglass_depth=1)), 5
        )


def test_layers_of_any_scale_count_alike():
    a, b = pictures_of(1, 8), pictures_of(1, 8, seed=1)
    one = relative_perceptual_loss({"x": a}, {"x": b})
    assert one == pytest.approx(((a - b).abs().mean() / b.abs().mean()).item())
    many = relative_perceptual_loss({"x": a, "y": 100 * a}, {"x": b, "y": 100 * b})
    assert many.item() == pytest.approx(one.item())
    assert relative_perceptual_loss({"x": a}, {"x": a}) == 0


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        (["loss.perceptual_by=clip"], ConfigError, "'clip': choose vgg19, lpips, ddpm"),
        (["loss.perceptual_by=ddpm"], ConfigError, r"needs loss\.ddpm"),
        (["loss.perceptual_by=lpips", "loss.lpips=gone"], CheckpointError, r"vgg\.pth.*gone"),
        (["loss.perceptual_px=8"], ConfigError, "perceptual_px=8 must be at least 16"),
        (["init=a", "sharp_of=b"], ConfigError, "leave init out"),
    ],
)
def test_invalid_settings(given, error, says):
    settings = [*TINY, "output=x", "data.path=x", "loss.perceptual=1", *given]
    with pytest.raises(error, match=says):
        EnhancerRecipe(load_config(EnhancerTrainConfig, None, settings))


def test_a_sharp_variant_goes_on_from_the_faithful_one(settings, model_folder, tmp_path):
    make_pictures(tmp_path / "faces", 4, height=32, width=32)
    empty = tmp_path / "empty.yaml"
    empty.write_text("recipe: enhancer\n")
    faces = [*TINY, f"data.path={tmp_path / 'faces'}", "ema_decay=0.0", "export_precision=fp16"]
    assert run_recipe(empty, [*faces, f"output={tmp_path / 'faithful'}"]) == 0
    start = tmp_path / "faithful/final"
    sharp = [
        *faces, f"sharp_of={start}", "loss.gan=0.1", "loss.feature_matching=1.0",
        "loss.perceptual=0.1", "loss.perceptual_by=ddpm", f"loss.ddpm={model_folder}",
        f"output={tmp_path / 'sharp'}",
    ]  # fmt: skip
    config = load_config(EnhancerTrainConfig, empty, sharp)
    first = EnhancerRecipe(config).build()["enhancer"].network.state_dict()
    faithful = build_enhancer("sparnet", start).state_dict()
    assert all(torch.equal(first[name], weight.float()) for name, weight in faithful.items())
    assert run_recipe(empty, sharp) == 0
    # The result is one model with both variants, which enhancer.sharpness mixes.
    both = tmp_path / "sharp/final"
    kept = [(both / name / "config.json").read_text() for name in ("", "sharp")]
    assert kept[0] == kept[1] == (start / "config.json").read_text()  # and no path of this machine
    weights = "diffusion_pytorch_model.safetensors"
    sizes = {(both / name / weights).stat().st_size for name in ("", "sharp")}
    assert sizes == {(start / weights).stat().st_size}  # all in export_precision
    again, end = (build_enhancer("sparnet", both / name) for name in ("", "sharp"))
    assert all(torch.equal(again.state_dict()[name], w) for name, w in faithful.items())
    mix_with_sharp(again, both, 1.0)
    moved = 0.0
    for name, weight in end.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight.float())
        moved += float((weight.float() - faithful[name].float()).abs().sum())
    assert np.isfinite(moved)
    assert moved > 0
    with pytest.raises(ConfigError, match="does not fit: residual_blocks="):
        run_recipe(empty, [*sharp, "enhancer.options.residual_blocks=2", "output=x"])
    with pytest.raises(ConfigError, match="initial_std would replace"):
        run_recipe(empty, [*sharp, "enhancer.options.add_input=false", "enhancer.initial_std=1",
                           "output=x"])  # fmt: skip
