import numpy as np
import pytest
import torch
from conftest import make_pixels

from dr2pipe.core.errors import ConfigError
from dr2pipe.data.folders import FaceDataset
from dr2pipe.data.tones import ToneConfig, TonedFaces, draw_tones, fade, relight, tint


@pytest.fixture
def faces(tmp_path):
    names = ["old/a.png", "new/b.png", "new/c.png"]
    pixels = np.stack([make_pixels(i, 16, 16) for i in range(3)])
    np.savez(tmp_path / "faces.npz", images=pixels, files=np.array(names))
    return FaceDataset(tmp_path / "faces.npz", size=16, flip=False)


def is_grey(pixels):
    return np.ptp(pixels, axis=-1).max() == 0


def test_without_tones_faces_are_as_they_were(faces):
    toned = TonedFaces(faces, ToneConfig())
    assert len(toned) == 3
    for i in range(3):
        assert torch.equal(toned[i, 7]["image"], faces[i, 7]["image"])


def test_groups_are_shown_as_often_as_asked(faces):
    toned = TonedFaces(faces, ToneConfig(), {"new": 3})
    names = [toned[i, i]["name"] for i in range(len(toned))]
    assert {name: names.count(name) for name in names} == {
        "old/a.png": 1,
        "new/b.png": 3,
        "new/c.png": 3,
    }


def test_a_showing_depends_on_its_position_alone(faces):
    tones = ToneConfig(monochrome=0.5, relit=0.5, moved=0.5)
    first, second = TonedFaces(faces, tones), TonedFaces(faces, tones)
    shown = [first[1, position]["image"] for position in range(12)]
    assert all(torch.equal(second[1, p]["image"], image) for p, image in enumerate(shown))
    assert len({image.numpy().tobytes() for image in shown}) > 6


def test_monochrome_groups_are_never_in_colour(faces):
    tones = ToneConfig(monochrome_groups=["old"], tinted=0.0, faded=0.5)
    toned = TonedFaces(faces, tones)
    for position in range(8):
        old, new = (toned[i, position]["image"] for i in (0, 1))
        assert torch.equal(old[0], old[1])
        assert torch.equal(old[1], old[2])
        assert not torch.equal(new[0], new[1])


def test_shares_are_met():
    pixels, rng = make_pixels(0, 16, 16), np.random.default_rng(0)
    tones = ToneConfig(monochrome=0.3, tinted=0.5, relit=0.2, moved=0.1)
    shown = [draw_tones(pixels, tones, rng, monochrome=False) for _ in range(2000)]
    unchanged = np.mean([np.array_equal(s, pixels) for s in shown])
    assert abs(unchanged - 0.7 * 0.8 * 0.9) < 0.04
    assert abs(np.mean([is_grey(s) for s in shown]) - 0.3 * 0.5) < 0.03


def test_tints_are_many_and_keep_order_of_brightness():
    luma, rng = np.linspace(0, 1, 64).reshape(8, 8), np.random.default_rng(1)
    casts = []
    for _ in range(100):
        tinted = tint(luma, rng)
        assert tinted.min() >= 0
        assert tinted.max() <= 1
        assert (np.diff(tinted.mean(axis=-1).ravel()) > 0).all()
        casts.append(tinted[..., 0].mean() - tinted[..., 2].mean())
    assert min(casts) < -0.02  # bluish
    assert max(casts) > 0.05  # sepia


def test_fading_lifts_blacks_and_relighting_is_mild():
    rng = np.random.default_rng(2)
    ends = np.array([[0.0, 1.0]])
    faded = np.concatenate([fade(ends, rng) for _ in range(100)])
    assert 0 <= faded[:, 0].min() < 0.05 < 0.2 < faded[:, 0].max() <= 0.25
    assert 0.8 <= faded[:, 1].min() < 0.85 < 0.95 < faded[:, 1].max() <= 1
    values = make_pixels(3, 16, 16) / 255
    changes = [abs(relight(values, rng) - values).mean() for _ in range(100)]
    assert 0.01 < np.mean(changes) < 0.08


def test_unusable_settings(faces):
    with pytest.raises(ConfigError, match=r"tones.relit=1.5 must lie in \[0, 1\]"):
        TonedFaces(faces, ToneConfig(relit=1.5))
    with pytest.raises(
        ConfigError, match=r"name other, which is no folder in data\.path; there are new, old"
    ):
        TonedFaces(faces, ToneConfig(), {"other": 2})
    with pytest.raises(ConfigError, match="at least once"):
        TonedFaces(faces, ToneConfig(), {"new": 0})
