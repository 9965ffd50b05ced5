import numpy as np
import pytest
import torch
from conftest import make_pictures, make_pixels, run_command
from PIL import Image

from dr2pipe.degradation_features import degradation_features
from dr2pipe.embed_folder import embed, embed_folder, load_encoder, principal_components
from dr2pipe.enhancers.degradation_encoder import DegradationEncoder
from dr2pipe.images import to_tensor
from dr2pipe.probe import FAMILIES, probe


@pytest.fixture
def encoder(tmp_path):
    torch.manual_seed(0)
    DegradationEncoder(4).save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def test_command(encoder, tmp_path):
    clean = make_pictures(tmp_path / "in", 3, height=32, width=32)
    for family in ("haze", "halftone"):
        for severity in (1, 5):
            done = run_command(
                "-m", "dr2pipe.cli", "degrade", clean, tmp_path / "bad" / f"{family}{severity}",
                "--with", family, "--severity", severity,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
    (tmp_path / "bad/broken.png").write_bytes(b"no picture")
    done = run_command("-m", "dr2pipe.cli", "embed", tmp_path / "bad", tmp_path / "o",
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
        expected = embed(load_encoder(str(encoder)), pixels[None])[0]
        assert np.allclose(found["vectors"][at], expected, atol=1e-5)
    assert Image.open(tmp_path / "o/map.png").size[0] > 300


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
    faces = make_pictures(tmp_path / "in", 1)
    with pytest.raises(ValueError, match="holds no degradation encoder"):
        embed_folder(str(faces), str(tmp_path / "o"), str(faces))
    assert not (tmp_path / "o").exists()


def test_a_probe_reads_what_is_there_and_nothing_else():
    faces = np.stack([make_pixels(i, 32, 32) for i in range(12)])
    by_formula = probe(lambda p: degradation_features(to_tensor(p)).numpy(), faces)
    assert by_formula.family > 0.7
    assert by_formula.severity > 0.5
    rng = np.random.default_rng(0)
    noise = probe(lambda p: rng.normal(size=(len(p), 8)), faces)
    assert noise.family < 0.25
    assert abs(noise.severity - noise.severity_chance) < 0.12
    assert (by_formula.family_chance, by_formula.severity_chance) == (1 / len(FAMILIES), 0.2)
    with pytest.raises(ValueError, match="four faces or more, not 3"):
        probe(None, faces[:3])


def test_probe_command(encoder, tmp_path):
    np.savez(
        tmp_path / "faces.npz",
        images=np.stack([make_pixels(i, 32, 32) for i in range(6)]),
        files=np.array([f"{i}.png" for i in range(6)]),
    )
    done = run_command("scripts/probe_encoder.py", encoder, tmp_path / "faces.npz", "--size", 32)
    assert done.returncode == 0, done.stderr
    assert "encoder, 6 faces" in done.stdout
    assert "content" in done.stdout
