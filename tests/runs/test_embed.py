import numpy as np
import pytest
import torch
from conftest import make_pictures, make_pixels, run_here
from PIL import Image
from probe_encoder import FAMILIES, probe, untrained_like

from dr2pipe.core.images import to_tensor
from dr2pipe.diffusion.degradation_features import degradation_features
from dr2pipe.enhancers.degradation_encoder import DegradationEncoder
from dr2pipe.runs.embed import (
    embed,
    embed_folder,
    load_encoder,
    principal_components,
)


@pytest.fixture
def encoder(tmp_path):
    torch.manual_seed(0)
    DegradationEncoder(4).save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def test_command(encoder, tmp_path):
    clean = make_pictures(tmp_path / "in", 3, height=32, width=32)
    for family in ("haze", "halftone"):
        for severity in (1, 5):
            done = run_here(
                "-m", "dr2pipe", "degrade", clean, tmp_path / "bad" / f"{family}{severity}",
                "--with", family, "--severity", severity,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
    (tmp_path / "bad/broken.png").write_bytes(b"no picture")
    done = run_here("-m", "dr2pipe", "embed", tmp_path / "bad", tmp_path / "o",
                       "--model", encoder)  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "broken.png" in done.stderr
    with np.load(tmp_path / "o/vectors.npz") as found:
        assert found["vectors"].shape == (12, 16)
        assert found["places"].shape == (12, 2)
        labels = set(zip(found["family"], found["severity"], strict=True))
        assert labels == {(f, s) for f in ("haze", "halftone") for s in ("1", "5")}
        at = list(found["paths"]).index("haze5/degraded/face_001.png")
        pixels = np.asarray(Image.open(tmp_path / "bad/haze5/degraded/face_001.png"))
        expected = embed(load_encoder(str(encoder)), to_tensor(pixels[None]))[0]
        assert np.allclose(found["vectors"][at], expected, atol=1e-5)
    assert Image.open(tmp_path / "o/map.png").size[0] > 300


def test_the_vector_is_the_one_that_was_compared(encoder):
    network = load_encoder(str(encoder))
    pictures = to_tensor(np.stack([make_pixels(i, 32, 32) for i in range(20)]))
    assert np.allclose(embed(network, pictures), network(pictures, projected=True), atol=1e-5)
    before = embed(network, pictures, projected=False)
    assert np.allclose(before, network(pictures), atol=1e-5)
    assert not np.allclose(before, embed(network, pictures))


def test_an_output_inside_the_input_is_no_input(encoder, tmp_path):
    faces = make_pictures(tmp_path / "in", 3, height=32, width=32)
    for output in (faces / "o", faces):
        for _ in range(2):
            found = embed_folder(str(faces), str(output), str(encoder))
            assert found.paths == [f"face_{i:03d}.png" for i in range(3)]


def test_one_picture(encoder, tmp_path):
    faces = make_pictures(tmp_path / "in", 2, height=32, width=32)
    found = embed_folder(str(faces / "face_001.png"), str(tmp_path / "o"), str(encoder))
    assert found.paths == ["face_001.png"]
    both = embed_folder(str(faces), str(tmp_path / "p"), str(encoder))
    assert np.allclose(found.vectors[0], both.vectors[1], atol=1e-5)


def test_pictures_are_embedded_while_they_are_read(encoder, tmp_path, monkeypatch):
    faces = make_pictures(tmp_path / "in", 5, height=32, width=32)
    whole = embed_folder(str(faces), str(tmp_path / "a"), str(encoder))
    held = []

    def note(network, pictures, **options):
        held.append(len(pictures))
        return embed(network, pictures, **options)

    monkeypatch.setattr("dr2pipe.runs.embed._BATCH", 2)
    monkeypatch.setattr("dr2pipe.runs.embed.embed", note)
    parts = embed_folder(str(faces), str(tmp_path / "b"), str(encoder))
    assert held == [2, 2, 1]
    assert np.allclose(whole.vectors, parts.vectors, atol=1e-5)


def test_resizing_is_warned_of(encoder, tmp_path, caplog):
    faces = make_pictures(tmp_path / "in", 2, height=32, width=32)
    embed_folder(str(faces), str(tmp_path / "o"), str(encoder))
    assert not caplog.records
    Image.fromarray(make_pixels(0, 32, 48)).save(faces / "wide.png")
    embed_folder(str(faces), str(tmp_path / "o"), str(encoder))
    assert "of 2 sizes: 1 of 3 were resized to 32x32 pixels" in caplog.text
    caplog.clear()
    Image.fromarray(make_pixels(0, 600, 600)).save(tmp_path / "large.png")
    embed_folder(str(tmp_path / "large.png"), str(tmp_path / "o"), str(encoder))
    assert "up to 600 pixels are reduced to 256" in caplog.text


def test_places_keep_the_largest_differences():
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(30, 2)) * [5, 2]
    turned = plane @ np.linalg.qr(rng.normal(size=(6, 6)))[0][:2]
    places = principal_components(turned)

    def apart(x):
        return np.linalg.norm(x[:, None] - x[None], axis=-1)

    assert np.allclose(apart(places), apart(turned))
    assert principal_components(np.ones((1, 5))).shape == (1, 2)


def test_errors(encoder, tmp_path):
    with pytest.raises(ValueError, match="no pictures in"):
        embed_folder(str(tmp_path), str(tmp_path / "o"), str(encoder))
    with pytest.raises(ValueError, match="no file or folder at"):
        embed_folder(str(tmp_path / "nowhere"), str(tmp_path / "o"), str(encoder))
    faces = make_pictures(tmp_path / "in", 1)
    with pytest.raises(ValueError, match="no DegradationEncoder at"):
        embed_folder(str(faces), str(tmp_path / "o"), str(faces))
    with pytest.raises(ValueError, match="size=-5 must be at least 1"):
        embed_folder(str(faces), str(tmp_path / "o"), str(encoder), size=-5)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"the first: broken\.png: not an image"):
        embed_folder(str(tmp_path / "broken.png"), str(tmp_path / "o"), str(encoder))
    assert not (tmp_path / "o").exists()


def test_a_probe_reads_what_is_there_and_nothing_else():
    faces = np.stack([make_pixels(i, 32, 32) for i in range(12)])
    rng = np.random.default_rng(0)
    descriptions = {
        "formula": lambda x: degradation_features(x).numpy(),
        "noise": lambda x: rng.normal(size=(len(x), 8)),
    }
    found = probe(descriptions, faces)
    by_formula, noise = found["formula"], found["noise"]
    assert by_formula.family > 0.7
    assert by_formula.severity > 0.5
    assert noise.family < 0.25
    assert abs(noise.severity - noise.severity_chance) < 0.12
    assert (by_formula.family_chance, by_formula.severity_chance) == (1 / len(FAMILIES), 0.2)
    with pytest.raises(ValueError, match="four faces or more, not 3"):
        probe(descriptions, faces[:3])


def test_an_untrained_encoder_is_normalised_by_its_pictures(encoder):
    network = load_encoder(str(encoder))
    pictures = to_tensor(np.stack([make_pixels(i, 32, 32) for i in range(40)]))
    drawn = torch.get_rng_state()
    untrained = untrained_like(network, pictures)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert untrained.config.width == network.config.width
    first = untrained.norms[0](untrained.convs[0](pictures))
    assert first.mean(dim=(0, 2, 3)).abs().max() < 0.1
    assert (first.std(dim=(0, 2, 3)) - 1).abs().max() < 0.1
    again = untrained_like(network, pictures)
    assert torch.equal(again(pictures), untrained(pictures))


def test_probe_command(encoder, tmp_path):
    np.savez(
        tmp_path / "faces.npz",
        images=np.stack([make_pixels(i, 32, 32) for i in range(6)]),
        files=np.array([f"{i}.png" for i in range(6)]),
    )
    done = run_here(
        "scripts/research/probe_encoder.py", encoder, tmp_path / "faces.npz", "--size", 32
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "right answers on 6 faces"
    assert lines[1].split() == ["family", "severity", "content"]
    rows = ["projected vector", "vector", "untrained encoder", "features by formula"]
    assert [line.split("  ")[0] for line in lines[2:6]] == rows
    assert lines[6].split() == ["chance", "12.5%", "20.0%", "16.7%"]
    assert "the mean of one classifier per family" in lines[7]
