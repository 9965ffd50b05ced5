import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_pixels, run_here
from narrow_encoder import discriminant, narrowed
from safetensors.torch import load_file

from dr2pipe.core.config import load_config
from dr2pipe.core.errors import ConfigError
from dr2pipe.core.images import to_uint8
from dr2pipe.data.degradation_grid import DegradationGrid
from dr2pipe.data.folders import FaceDataset
from dr2pipe.enhancers.degradation_encoder import DegradationEncoder
from dr2pipe.losses.contrastive import grid_contrast_loss
from dr2pipe.runs.embed import load_encoder
from dr2pipe.training.recipes import run_recipe
from dr2pipe.training.recipes.degradation_grid import (
    DegradationGridConfig,
    DegradationGridRecipe,
)

SMALL = [
    "recipe=degradation_grid", "data.size=16", "degradations={mild: 0.5, severe: 0.5}",
    "width=4", "columns=4", "batch_size=4", "total_steps=6", "precision=fp32",
    "save_every_steps=2", "log_every_steps=1", "preview_every_steps=4", "ema_decay=0.5",
]  # fmt: skip


@pytest.fixture
def data(tmp_path):
    pixels = np.stack([make_pixels(i, 16, 16) for i in range(10)])
    names = np.array([f"f{i}.png" for i in range(10)])
    np.savez(tmp_path / "faces.npz", images=pixels, files=names)
    return tmp_path / "faces.npz"


@pytest.fixture
def chain(tmp_path):
    """A chain of the ranges given."""

    def write(name, noise):
        path = tmp_path / f"{name}.yaml"
        path.write_text(
            f"sigma_px: [0, 0]\nshrink: [1, 1]\nnoise: {noise}\njpeg_quality: [99, 99]\n"
        )
        return path

    return write


def train(data, output, *overrides):
    (data.parent / "empty.yaml").write_text("{}\n")
    return run_recipe(
        data.parent / "empty.yaml", [*SMALL, f"data.path={data}", f"output={output}", *overrides]
    )


def losses_of(folder):
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["encoder/loss"] for line in lines]


def unit(*shape):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(0)), dim=-1)


def test_a_batch_shares_its_degradations_but_not_the_noise(tmp_path, chain):
    grey = np.full((4, 16, 16, 3), 128, np.uint8)  # one face, four times: all that differs is drawn
    np.savez(tmp_path / "grey.npz", images=grey, files=np.array(list("abcd")))
    faces = FaceDataset(tmp_path / "grey.npz", size=16)
    grid = DegradationGrid(faces, {str(chain("noise", [0, 60])): 1.0}, columns=6, batch_size=4)
    rows = [grid[i, i]["row"] for i in range(4)]
    assert torch.equal(rows[1], grid[1, 1]["row"])
    assert not torch.equal(rows[0], rows[1])
    strengths = np.stack([row.std(dim=(1, 2, 3)).numpy() for row in rows])  # (faces,columns)
    assert (strengths.std(axis=0) < 0.1 * strengths.mean(axis=0) + 0.01).all()
    assert strengths.mean(axis=0).std() > 0.05
    following = grid[0, 4]["row"].std(dim=(1, 2, 3)).numpy()  # the next batch
    assert np.abs(following - strengths[0]).max() > 0.05


def test_a_face_is_varied_once_for_its_row(data, chain):
    faces = FaceDataset(data, size=16)
    nothing = {str(chain("nothing", [0, 0])): 1.0}
    options = {"columns": 3, "batch_size": 2, "recolour": 0.5, "jitter": 1.0}
    grid = DegradationGrid(faces, nothing, crop=8, **options)
    row = grid[0, 0]["row"]
    assert row.shape == (3, 3, 8, 8)
    assert torch.equal(row[0], row[1])
    assert torch.equal(row[0], row[2])
    assert not torch.equal(row, grid[0, 1]["row"])
    whole = to_uint8(DegradationGrid(faces, nothing, **options)[0, 0]["row"])[0]
    part = to_uint8(row)[0]
    places = [(y, x) for y in range(9) for x in range(9)]
    assert any(np.array_equal(whole[y : y + 8, x : x + 8], part) for y, x in places)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"columns": 1}, "columns=1 and batch_size=4 must be 2 or more"),
        ({"batch_size": 1}, "columns=4 and batch_size=1 must be 2 or more"),
        ({"crop": 17}, "crop=17 must lie in 1..16"),
        ({"jitter": 2.0}, r"jitter=2.0 must lie in \[0, 1\]"),
        ({"degradations": {"haze": 1.0}}, "haze: kept for evaluation"),
        ({"degradations": {}}, "must be 0 or more, not all 0"),
    ],
)
def test_unusable_grids(data, change, says):
    options = {"degradations": {"mild": 1.0}, "columns": 4, "batch_size": 4, **change}
    with pytest.raises(ConfigError, match=says):
        DegradationGrid(FaceDataset(data, size=16), **options)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("width=0", "width=0 must be at least 1"),
        ("temperature=0", "temperature=0.0 must be above 0"),
    ],
)
def test_invalid_settings(change, says):
    config = load_config(DegradationGridConfig, None, [*SMALL, "data.path=x", "output=y", change])
    with pytest.raises(ConfigError, match=says):
        DegradationGridRecipe(config)


def test_the_loss_by_its_definition():
    vectors, temperature = unit(3, 4, 5), 0.3
    loss, _ = grid_contrast_loss(vectors, temperature)
    pictures = [(face, column) for face in range(3) for column in range(4)]
    terms = []
    for this in pictures:
        others = {
            p: math.exp(vectors[this] @ vectors[p] / temperature) for p in pictures if p != this
        }
        total = sum(others.values())
        same = [value for (_, column), value in others.items() if column == this[1]]
        terms.append(-np.mean([math.log(value / total) for value in same]))
    assert loss.item() == pytest.approx(np.mean(terms), rel=1e-5)


def test_the_loss_rewards_degradations_and_not_faces():
    by_damage = unit(1, 6, 8).expand(4, 6, 8)
    by_face = unit(4, 1, 8).expand(4, 6, 8)
    of_damage, right = grid_contrast_loss(by_damage, 0.1)
    of_face, wrong = grid_contrast_loss(by_face, 0.1)
    nothing, _ = grid_contrast_loss(unit(1, 1, 8).expand(4, 6, 8), 0.1)
    both, _ = grid_contrast_loss(F.normalize(by_damage + by_face, dim=-1), 0.1)
    assert (right.item(), wrong.item()) == (1.0, 0.0)
    assert nothing.item() == pytest.approx(math.log(4 * 6 - 1), rel=1e-4)
    assert of_damage < nothing < both < of_face  # what a face adds to a vector costs


def test_resume_is_exact(data, tmp_path):
    assert train(data, tmp_path / "a") == 0
    assert train(data, tmp_path / "b", "total_steps=4") == 0
    assert train(data, tmp_path / "b") == 0
    a, b = (
        load_file(tmp_path / name / "final/diffusion_pytorch_model.safetensors")
        for name in ("a", "b")
    )
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert losses_of(tmp_path / "a") == losses_of(tmp_path / "b")
    network = DegradationEncoder.from_pretrained(tmp_path / "a/final")
    pictures = torch.zeros(2, 3, 16, 16)
    assert network(pictures).shape == (2, 16)
    assert network(pictures, projected=True).shape == (2, 16)


def test_it_learns_to_tell_degradations(data, chain, tmp_path):
    more = ["total_steps=60", "width=8", "columns=8", "learning_rate=1e-2", "log_every_steps=10"]
    train(data, tmp_path / "a", *more, f"degradations={{{chain('noise', [0, 100])}: 1.0}}")
    assert losses_of(tmp_path / "a")[-1] < math.log(8 * 4 - 1) - 0.4


def test_directions_of_faces_are_dropped():
    rng = np.random.default_rng(0)
    damage = rng.normal(size=(20, 1, 10, 2))  # (grids,faces,degradations,channels)
    face = 10 * rng.normal(size=(20, 8, 1, 2))
    noise = 0.1 * rng.normal(size=(20, 8, 10, 4))
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    parts = np.concatenate(
        [np.broadcast_to(damage, (20, 8, 10, 2)), np.broadcast_to(face, (20, 8, 10, 2))], axis=-1
    )
    vectors = (parts + noise) @ turn + 5
    directions, mean = discriminant(vectors, 2)
    found = (vectors - mean) @ directions  # (20,8,10,2)
    across_faces = found - found.mean(axis=1, keepdims=True)
    assert across_faces.std() < 0.2 * found.std()
    assert (vectors - vectors.mean(axis=1, keepdims=True)).std() > 0.9 * vectors.std()
    with pytest.raises(ConfigError, match=r"width=5 must lie in 1\.\.4"):
        discriminant(vectors, 5)


def test_a_narrowed_encoder(data, tmp_path):
    torch.manual_seed(0)
    whole = DegradationEncoder(4).eval()
    rng = np.random.default_rng(0)
    directions, mean = rng.normal(size=(16, 3)), rng.normal(size=16)
    narrow, pictures = narrowed(whole, directions, mean), torch.randn(5, 3, 16, 16)
    expected = (whole(pictures, projected=True).detach().double().numpy() - mean) @ directions
    assert np.allclose(narrow(pictures, projected=True).numpy(), expected, atol=1e-4)
    assert torch.equal(narrow(pictures), whole(pictures))  # what Panini-Net takes
    whole.save_pretrained(tmp_path / "whole")
    (tmp_path / "c.yaml").write_text("{}\n")
    done = run_here(
        "scripts/research/narrow_encoder.py", tmp_path / "whole", tmp_path / "narrow",
        tmp_path / "c.yaml", *SMALL, f"data.path={data}", "--width", 2, "--grids", 3,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = load_encoder(str(tmp_path / "narrow"))
    assert found(pictures, projected=True).shape == (5, 2)
