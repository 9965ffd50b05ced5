"""StyleGAN2 and GFP-GAN trained at toy size, by their recipes."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from conftest import make_pixels, run_command
from safetensors.torch import load_file

from dr2pipe.core.config import load_config
from dr2pipe.core.errors import CheckpointError, ConfigError, Dr2pipeError
from dr2pipe.data.landmarks import match_parts, read_parts
from dr2pipe.enhancers import build_enhancer
from dr2pipe.features.arcface import ArcFaceResNet
from dr2pipe.features.vgg import VGGFeatures
from dr2pipe.stylegan2 import StyleGAN2Generator
from dr2pipe.training.augment import augment, updated_probability
from dr2pipe.training.recipe import TrainConfig, learning_rate_factor
from dr2pipe.training.recipes import run_recipe
from dr2pipe.training.recipes.gfpgan import GFPGANTrainConfig
from dr2pipe.training.recipes.stylegan2 import StyleGAN2TrainConfig

SIZE = 32
SHARED = """
data: {size: 32}
batch_size: 4
total_steps: 6
log_every_steps: 1
preview_every_steps: 6
save_every_steps: 3
ema_decay: 0.9
max_grad_norm: .inf
"""
STYLEGAN2 = (
    SHARED
    + """
recipe: stylegan2
generator: {channel_multiplier: 1, narrow: 0.03125, style_channels: 16, mapping_layers: 2}
discriminator: {channel_multiplier: 1, narrow: 0.03125}
r1_every_steps: 2
path_length_every_steps: 2
augment_pictures: 40
"""
)
GFPGAN = (
    SHARED
    + """
recipe: gfpgan
pairs: {input_size: 32, degradations: {mild: 1.0}}
landmarks_size: 32
gfpgan: {channel_multiplier: 1, narrow: 0.03125, style_channels: 16, mapping_layers: 2, resample: fir}
discriminator: {channel_multiplier: 1, narrow: 0.03125}
loss: {perceptual: 0.0, style: 0.0, identity: 0.0, pyramid_until_step: 3, r1_every_steps: 2}
"""
)


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """An .npz of 8 pictures and a csv of landmarks."""
    folder = tmp_path_factory.mktemp("faces")
    files = [f"face_{i}.jpg" for i in range(8)]
    pixels = np.stack([make_pixels(i, SIZE, SIZE) for i in range(8)])
    np.savez(folder / "faces.npz", images=pixels, files=np.array(files))
    points = ("eyeL", "eyeR", "nose", "mouthL", "mouthR")
    with (folder / "landmarks.csv").open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["file", *(f"{p}_{axis}" for p in points for axis in "xy")])
        for name in files:
            writer.writerow([name, 12, 15, 20, 15.5, 16, 18, 12, 22, 21, 22])
    return folder


def train(tmp_path, text, faces, output, *overrides):
    (tmp_path / "config.yaml").write_text(text)
    paths = [f"data.path={faces / 'faces.npz'}", f"output={tmp_path / output}"]
    assert run_recipe(tmp_path / "config.yaml", [*paths, *overrides]) == 0
    return tmp_path / output


def gfpgan(tmp_path, faces, output, *overrides):
    given = [f"landmarks={faces / 'landmarks.csv'}", "train_prior=true", *overrides]
    return train(tmp_path, GFPGAN, faces, output, *given)


def log_of(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def weights_of(run, step, network):
    folder = run / "checkpoints" / f"step_{step:08d}" / network
    return load_file(folder / "diffusion_pytorch_model.safetensors")


def test_stylegan2_learns_resumes_and_becomes_a_prior(faces, tmp_path):
    whole = train(tmp_path, STYLEGAN2, faces, "whole")
    train(tmp_path, STYLEGAN2, faces, "parts", "total_steps=3")
    parts = train(tmp_path, STYLEGAN2, faces, "parts")
    for network in ("generator", "discriminator", "statistics"):
        a, b = weights_of(whole, 6, network), weights_of(parts, 6, network)
        assert all(torch.equal(a[key], b[key]) for key in a)
    statistics = weights_of(whole, 6, "statistics")
    assert statistics["mean_path_length"] > 0
    assert 0 <= statistics["augment_probability"] <= 0.8
    lines = log_of(whole)
    assert all(math.isfinite(value) for line in lines for value in line.values())
    # The penalties are lazy: in every second step here.
    assert ["discriminator/r1" in line for line in lines] == [True, False] * 3
    assert ["generator/path_length" in line for line in lines] == [True, False] * 3
    before, after = weights_of(whole, 3, "generator"), weights_of(whole, 6, "generator")
    assert not torch.equal(before["convs.1.conv.weight"], after["convs.1.conv.weight"])
    exported = StyleGAN2Generator.from_pretrained(whole / "final" / "generator")
    assert not torch.equal(exported.convs[1].conv.weight, after["convs.1.conv.weight"])  # EMA

    prior = whole / "final" / "generator"
    run = gfpgan(tmp_path, faces, "on_prior", f"prior={prior}", "train_prior=false")
    network = build_enhancer("gfpgan", run / "final")
    assert torch.equal(network.prior.convs[1].conv.weight, exported.convs[1].conv.weight)
    other = whole / "final" / "discriminator"
    with pytest.raises(CheckpointError, match="holds a StyleGAN2Discriminator, not a StyleGAN2Gen"):
        gfpgan(tmp_path, faces, "x", f"prior={other}")
    with pytest.raises(ConfigError, match="does not fit: mapping_layers=2 instead of 3"):
        gfpgan(tmp_path, faces, "x", f"prior={prior}", "gfpgan.mapping_layers=3")


def test_gfpgan_with_every_loss(faces, tmp_path):
    torch.manual_seed(0)
    vgg = VGGFeatures("vgg19")
    place, stored = 0, {}
    for key, convolution in vgg.convolutions.items():
        place += key.endswith("_1") and key != "conv1_1"
        torch.nn.init.kaiming_normal_(convolution.weight)
        for part in ("weight", "bias"):
            stored[f"features.{place}.{part}"] = getattr(convolution, part).data
        place += 2
    torch.save(stored, tmp_path / "vgg19.pth")
    torch.save(ArcFaceResNet().state_dict(), tmp_path / "arcface.pth")
    run = gfpgan(
        tmp_path,
        faces,
        "run",
        "loss.perceptual=1",
        "loss.style=50",
        f"loss.vgg19={tmp_path / 'vgg19.pth'}",
        "loss.identity=10",
        f"loss.arcface={tmp_path / 'arcface.pth'}",
        "total_steps=2",
        "save_every_steps=1",
    )
    first, last = log_of(run)
    terms = {"pixel", "pyramid", "perceptual", "style", "gan", "component", "component_style"}
    for line in (first, last):
        assert {f"gfpgan/{t}" for t in terms | {"identity"}} <= line.keys()
        assert all(math.isfinite(value) for value in line.values())
        assert all(line[f"gfpgan/{t}"] > 0 for t in terms)
    for part in ("left_eye", "right_eye", "mouth", "discriminator"):
        before, after = weights_of(run, 1, part), weights_of(run, 2, part)
        assert not torch.equal(
            *(w[next(k for k in w if k.endswith("weight"))] for w in (before, after))
        )


def test_gfpgan_resumes_exactly_and_switches_the_pyramid_off(faces, tmp_path):
    whole = gfpgan(tmp_path, faces, "whole")
    gfpgan(tmp_path, faces, "parts", "total_steps=3")
    parts = gfpgan(tmp_path, faces, "parts")
    for network in ("gfpgan", "discriminator", "left_eye", "right_eye", "mouth"):
        a, b = weights_of(whole, 6, network), weights_of(parts, 6, network)
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert [line["gfpgan/pyramid"] > 0 for line in log_of(whole)] == [True] * 3 + [False] * 3
    assert (whole / "previews" / "step_00000006.png").is_file()


@pytest.mark.parametrize("recipe", [pytest.param("stylegan2", marks=pytest.mark.slow), "gfpgan"])
def test_two_processes(faces, tmp_path, recipe):
    text = {"stylegan2": STYLEGAN2, "gfpgan": GFPGAN}[recipe]
    given = [f"data.path={faces / 'faces.npz'}", "batch_size=2", "total_steps=4"]
    if recipe == "gfpgan":
        given += [f"landmarks={faces / 'landmarks.csv'}", "train_prior=true"]
    (tmp_path / "config.yaml").write_text(text)
    result = run_command(
        "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2,
        "scripts/train.py",
        tmp_path / "config.yaml", f"output={tmp_path / 'two'}", *given,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    alone = train(tmp_path, text, faces, "one", *given[1:], "batch_size=4")
    first = [log_of(run)[0] for run in (tmp_path / "two", alone)]
    # The pictures are the same; what a discriminator makes of a batch depends on the batch.
    same = "gfpgan/pixel" if recipe == "gfpgan" else "discriminator/r1"
    assert first[0][same] == pytest.approx(first[1][same], rel=0.05)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["train_prior=false"], "prior: name the folder"),
        (["landmarks=null"], "face parts need landmarks"),
        (["landmarks_size=16"], "outside aligned faces of 16 pixels"),
        (["landmarks=nowhere.csv"], "no landmarks at nowhere.csv"),
        (["prior=nowhere"], "no model 'nowhere'"),
        (["loss.identity=1"], r"arcface_resnet18\.pth \(no path given\)"),
        (["loss.style=1"], r"vgg19-dcbb9e9d\.pth \(no path given\)"),
        (["loss.component=0"], "features that loss.component trains"),
        (["pairs.input_size=16"], "pairs.input_size=16 must be data.size=32"),
        (["loss.r1_every_steps=0"], "r1_every_steps=0"),
        (["gfpgan.depth=3"], "has no option depth"),
    ],
)
def test_errors_come_before_the_first_step(faces, tmp_path, overrides, says):
    with pytest.raises(ValueError, match=says):
        gfpgan(tmp_path, faces, "run", *overrides)
    assert not (tmp_path / "run").exists()


def test_landmarks(faces, tmp_path):
    parts = read_parts(faces / "landmarks.csv", SIZE)["face_3"]
    assert parts[0] == pytest.approx([12 / 32, 15 / 32, 0.22 * math.hypot(8, 0.5) / 32])
    assert parts[2] == pytest.approx([16.5 / 32, 22 / 32, 0.5 * 9 / 32])
    official = {"00000000": {"left_eye": [100, 200, 20], "right_eye": [300, 201, 22],
                             "mouth": [200, 400, 60]}}  # fmt: skip
    # The official file holds NumPy's numbers.
    official["00000000"]["mouth"] = [np.float64(v) for v in official["00000000"]["mouth"]]
    torch.save(official, tmp_path / "landmarks.pth")
    parts = read_parts(tmp_path / "landmarks.pth")["00000000"]
    assert parts[1] == pytest.approx([300.5 / 512, 201.5 / 512, 22 / 512])
    lines = (faces / "landmarks.csv").read_text().splitlines()
    (tmp_path / "bad.csv").write_text("\n".join([*lines, "," + lines[1].partition(",")[2]]))
    with pytest.raises(ValueError, match="has a line without a file"):
        read_parts(tmp_path / "bad.csv", SIZE)
    (tmp_path / "bad.csv").write_text("file,eyeL_x\na.png,3\n")
    with pytest.raises(ValueError, match="no column 'eyeL_y'"):
        read_parts(tmp_path / "bad.csv")
    with pytest.raises(ValueError, match=r"face_0 lie outside aligned faces of 16 pixels"):
        read_parts(faces / "landmarks.csv", 16)
    torch.save({"a": csv.DictReader}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match="was not loaded"):
        read_parts(tmp_path / "code.pth")


def test_landmarks_are_found_by_the_longest_common_ending():
    parts = {name: np.full((3, 3), i) for i, name in enumerate(("f/a/1", "f/b/1", "f/2"))}
    found = match_parts(parts, ["/data/b/1.png", "/data/a/1.png", "/elsewhere/2.png"])
    assert {name: values[0, 0] for name, values in found.items()} == {
        "/data/b/1.png": 1, "/data/a/1.png": 0, "/elsewhere/2.png": 2,
    }  # fmt: skip
    for faces, says in (
        (["c/1.png"], "c/1.png may have the landmarks of f/a/1 or of f/b/1"),
        (["c/2.png", "d/2.png"], "c/2.png and d/2.png have the same landmarks, of f/2"),
        (["3.png", "4.png"], "2 faces have no landmarks, the first is 3.png"),
    ):
        with pytest.raises(Dr2pipeError, match=says):
            match_parts(parts, faces)


def test_mirrored_faces_have_mirrored_parts(faces):
    from dr2pipe.data.folders import FaceDataset
    from dr2pipe.data.pairs import PairDataset

    parts = read_parts(faces / "landmarks.csv", SIZE)
    options = {"input_size": SIZE, "degradations": {"mild": 1.0}, "parts": parts}
    dataset = PairDataset(FaceDataset(faces / "faces.npz", size=SIZE), **options)
    seen = {}
    for position in range(20):
        item = dataset[0, position]
        seen[item["flipped"]] = item["parts"]
    upright, mirrored = seen[False], seen[True]
    assert upright[0].tolist() == pytest.approx([11.5, 14.5, upright[0, 2].item()])
    # Pixel x becomes pixel S - 1 - x, and the eyes change places.
    assert mirrored[0, 0] == pytest.approx(SIZE - 1 - upright[1, 0])
    assert mirrored[0, 1] == pytest.approx(upright[1, 1])
    with pytest.raises(ValueError, match="8 faces have no landmarks, the first is face_0"):
        PairDataset(FaceDataset(faces / "faces.npz", size=SIZE), **options | {"parts": {}})


def test_augmentation():
    x = torch.rand(64, 3, 16, 16) * 2 - 1

    def made(probability, seed=0):
        return augment(x, probability, torch.Generator().manual_seed(seed))

    assert made(0.0) is x
    assert torch.equal(made(0.5), made(0.5))
    assert not torch.equal(made(0.5), made(0.5, seed=1))
    # Five changes, each with a chance of 0.1: some pictures stay as they are, most of them.
    unchanged = ((made(0.1) - x).abs().amax(dim=(1, 2, 3)) < 1e-4).float().mean()
    assert 0.2 < unchanged < 0.8
    assert updated_probability(0.1, 1.0, target=0.6, step=0.01) == pytest.approx(0.11)
    assert updated_probability(0.0, -1.0, target=0.6, step=0.01) == 0


def test_schedules():
    config = TrainConfig(schedule="halving", halve_at_steps=[10, 20], total_steps=30)
    factors = [learning_rate_factor(config, step) for step in (0, 9, 10, 19, 20, 29)]
    assert factors == [1, 1, 0.5, 0.5, 0.25, 0.25]


@pytest.mark.parametrize(
    ("name", "schema"),
    [
        ("gfpgan_512", GFPGANTrainConfig),
        ("gfpgan_128", GFPGANTrainConfig),
        ("stylegan2_128", StyleGAN2TrainConfig),
    ],
)
def test_configs_that_ship_can_be_built(name, schema):
    given = ["data.path=x"]
    if schema is GFPGANTrainConfig:
        given += ["landmarks=x", "prior=x", "loss.vgg19=x", "loss.arcface=x"]
    config = load_config(schema, f"configs/train/{name}.yaml", given)
    options = config.gfpgan if schema is GFPGANTrainConfig else config.generator
    if schema is GFPGANTrainConfig:
        network = build_enhancer("gfpgan", size=config.data.size, **options)
        assert network.output_size == config.data.size
    else:
        assert StyleGAN2Generator(size=config.data.size, **options).num_latents == 12
