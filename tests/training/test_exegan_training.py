import json

import numpy as np
import pytest
import torch
import yaml
from conftest import make_pixels, run_command
from safetensors.torch import load_file

from dr2pipe.core.config import load_config
from dr2pipe.core.errors import ConfigError
from dr2pipe.data.folders import FaceDataset
from dr2pipe.data.masked import MaskedFaces
from dr2pipe.enhancers import build_enhancer
from dr2pipe.features.psp import load_style_encoder
from dr2pipe.training.recipes import run_recipe
from dr2pipe.training.recipes.exegan import ExeGANRecipe, ExeGANTrainConfig, random_style_encoder
from dr2pipe.training.trainer import Trainer

CONFIG = """
recipe: exegan
data: {size: 16, flip: true}
masks: {stroke_rect: 0.5, center: 0.5}
self_exemplar: 0.5
exegan: {style_channels: 8, mapping_layers: 2, narrow: 0.015625}
style_encoder_options: {rows: 6, channels: 8, size: 32, width: 4, blocks: [1, 1, 1, 1]}
discriminator: {narrow: 0.015625}
border: {size_px: 5, passes: 3}
loss: {pixel: 5.0, r1_every_steps: 2, path_length_every_steps: 2}
max_grad_norm: .inf
total_steps: 6
batch_size: 4
save_every_steps: 2
preview_every_steps: 4
log_every_steps: 1
ema_decay: 0.9
"""


@pytest.fixture
def data(tmp_path):
    pixels = np.stack([make_pixels(i, 16, 16) for i in range(8)])
    np.savez(tmp_path / "faces.npz", images=pixels, files=[f"f{i}.png" for i in range(8)])
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    return tmp_path / "faces.npz"


def train(data, output, *overrides):
    path = data.parent / "tiny.yaml"
    return run_recipe(path, [f"data.path={data}", f"output={output}", *overrides])


def recipe_of(data, *overrides):
    overrides = [f"data.path={data}", "output=unused", *overrides]
    config = load_config(ExeGANTrainConfig, data.parent / "tiny.yaml", overrides)
    faces = FaceDataset(data, size=16)
    return ExeGANRecipe(config), MaskedFaces(faces, config.masks)


def log_of(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def batch_of(faces, count=4):
    items = [faces[i, i] for i in range(count)]
    batch = {key: torch.stack([item[key] for item in items]) for key in ("image", "mask")}
    return batch | {"seed": torch.tensor([item["seed"] for item in items]), "step": 1}


def test_a_run_leaves_a_generator_with_its_style_encoder(data, tmp_path):
    assert train(data, tmp_path / "run") == 0
    network = build_enhancer("exegan", tmp_path / "run" / "final")
    encoder = load_style_encoder(tmp_path / "run" / "final" / "style_encoder")
    faces = torch.rand(2, 3, 16, 16) * 2 - 1
    assert encoder(faces, network.exemplar_rows).shape == (2, 2, 8)
    lines = log_of(tmp_path / "run")
    names = {"exegan/gan", "exegan/attribute", "exegan/pixel", "discriminator/gan"}
    assert all(np.isfinite(line[name]) for line in lines for name in names)
    assert [("exegan/path_length" in line, "discriminator/r1" in line) for line in lines] == [
        (True, True), (False, False)
    ] * 3  # fmt: skip


def test_resuming_repeats_an_undisturbed_run(data, tmp_path):
    train(data, tmp_path / "calm")
    recipe, faces = recipe_of(data, f"output={tmp_path / 'cut'}")
    trainer = Trainer(recipe.config, recipe, faces)
    trainer.stop_requested = True
    assert trainer.run() == 130
    train(data, tmp_path / "cut")
    for name in ("exegan", "discriminator", "statistics"):
        place = f"checkpoints/step_00000006/{name}/diffusion_pytorch_model.safetensors"
        calm, cut = (load_file(tmp_path / run / place) for run in ("calm", "cut"))
        assert all(torch.equal(calm[key], cut[key]) for key in calm)


@pytest.mark.parametrize(
    ("name", "weights"),
    [("pixel", "{pixel: 5.0, attribute: 0.0}"), ("attribute", "{pixel: 0.0, attribute: 20.0}")],
)
def test_each_loss_falls(data, tmp_path, name, weights):
    recipe, faces = recipe_of(data, "learning_rate=0.01", "loss.path_length=0.0", "loss.r1=0.0")
    for key, value in yaml.safe_load(weights).items():
        setattr(recipe.config.loss, key, value)
    trained, batch, values = recipe.build(), batch_of(faces), []
    networks = {key: t.network for key, t in trained.items()}
    for _ in range(40):
        for network, loss, scalars in recipe.step(networks, batch):
            trained[network].optimizer.zero_grad()
            loss.backward()
            if network == "exegan":  # the discriminator stays as it is
                trained[network].optimizer.step()
                values.append(scalars[f"exegan/{name}"].item())
    assert np.mean(values[-5:]) < 0.8 * np.mean(values[:5])


def test_a_face_is_its_own_exemplar_in_the_configured_share(data):
    for share, expected in ((0.0, 0.0), (0.3, 0.3), (1.0, 1.0)):
        recipe, _ = recipe_of(data, f"self_exemplar={share}")
        own = recipe._own_exemplars(list(range(400)))
        assert abs(own.float().mean() - expected) < 0.08
    with pytest.raises(ConfigError, match="exemplars are other faces of the batch: batch_size=1"):
        recipe_of(data, "self_exemplar=0.9", "batch_size=1")
    recipe_of(data, "self_exemplar=1.0", "batch_size=1")


def test_targets_are_for_own_exemplars_and_gradients_for_holes_alone(data):
    recipe, faces = recipe_of(data, "loss.attribute=0.5")
    batch = batch_of(faces)
    real, mask = batch["image"], batch["mask"]
    completed = (real * (1 - mask)).requires_grad_()
    own, rows = torch.tensor([True, False, False, True]), range(4, 6)
    exemplar = torch.randn(4, 2, 8)
    terms = recipe._terms(completed, real, mask, own, exemplar, rows)
    error = ((completed - real).abs() * mask)[own].sum() / (3 * mask.sum())
    assert terms["pixel"].item() == pytest.approx(error.item(), rel=1e-5)
    (of_pixel,) = torch.autograd.grad(terms["pixel"], completed, retain_graph=True)
    assert not of_pixel[~own].any()
    assert of_pixel[own].any()
    (of_attribute,) = torch.autograd.grad(terms["attribute"], completed)
    assert not of_attribute[(mask == 0).expand_as(real)].any()
    assert of_attribute.any()


def test_every_parameter_gets_a_gradient(data):
    """Several processes wait for each; a step without path lengths has them too."""
    recipe, faces = recipe_of(data)
    networks = {name: t.network for name, t in recipe.build().items()}
    for name, loss, _ in recipe.step(networks, batch_of(faces)):
        loss.backward()
        missing = [n for n, p in networks[name].named_parameters() if p.grad is None]
        assert not missing, name


def test_random_style_encoders_repeat_and_see_colours():
    options = {"rows": 6, "channels": 8, "size": 32, "width": 4, "blocks": [1, 1, 1, 1]}
    encoder, again = (
        random_style_encoder(options, torch.Generator().manual_seed(0)) for _ in range(2)
    )
    dark, light = torch.full((1, 3, 32, 32), -0.5), torch.full((1, 3, 32, 32), 0.5)
    assert torch.equal(encoder(dark), again(dark))
    assert (encoder(dark) - encoder(light)).abs().mean() > 0.2
    with pytest.raises(ConfigError, match="depth"):
        random_style_encoder({"depth": 3}, torch.Generator())


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["masks={}"], "must be 0 or more, not all 0"),
        (["masks={holes: 1.0}"], "unknown masks holes; choose stroke_rect"),
        (["self_exemplar=2"], r"must lie in \[0, 1\]"),
        (["border.kernel=box"], "choose flat or gaussian"),
        (["border.size_px=33"], r"must be below twice data\.size=16"),
        (["border.size_px=4"], "choose an odd number"),
        (["loss.r1_every_steps=0"], "must be at least 1"),
        (["style_encoder=nowhere"], "no model 'nowhere'"),
        (["style_encoder_options.rows=4"], "gives 4 rows of 8 channels, the generator takes 6"),
        (["loss.perceptual=1.0", "loss.vgg16=none.pth"], r"vgg\.pth"),
        (["loss.identity=1.0"], "--kind resnet101_identity"),
    ],
)
def test_errors_come_before_the_first_step(data, tmp_path, overrides, says):
    with pytest.raises(ValueError, match=says):
        train(data, tmp_path / "run", *overrides)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes(data, tmp_path):
    command = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2)
    settings = (data.parent / "tiny.yaml", f"data.path={data}", f"output={tmp_path / 'run'}")
    result = run_command(*command, "scripts/train.py", *settings, "batch_size=2")
    assert result.returncode == 0, result.stderr
    assert [line["pictures"] for line in log_of(tmp_path / "run")] == [4] * 6
