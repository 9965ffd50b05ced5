"""Similarity of faces, and photos of one person as references."""

from dataclasses import dataclass

import demo
import numpy as np
import pytest

from dr2pipe.core import images
from dr2pipe.core.errors import ConfigError, PictureError
from dr2pipe.faces import align, cut
from dr2pipe.faces.identity import References, identity_similarity
from dr2pipe.features.dlib_identity import load_identity, weights_file

needs_weights = pytest.mark.skipif(weights_file() is None, reason="the extra identity is missing")
HOPPER, COLLINS = "grace_hopper", "eileen_collins"


@dataclass
class Found:
    box: tuple[float, float, float, float]
    landmarks: np.ndarray
    score: float = 1.0


def embedding(*values):
    return np.array([*values, *[0.0] * (128 - len(values))])


def test_similarity_is_between_0_and_1():
    a = embedding(0.3, 0.4)
    assert identity_similarity(a, a) == 1
    assert identity_similarity(a, embedding()) == pytest.approx(0.5)
    assert identity_similarity(a, embedding(-3)) == 0


def test_the_nearest_candidate():
    references = References(np.stack([embedding(0), embedding(0.2)]))
    candidates = [embedding(0.9), embedding(0.1), embedding(0, 0.5)]
    assert references.nearest(candidates) == 1
    assert references.nearest(candidates[::2]) == 1
    assert references.nearest([candidates[0]] * 3) == 0
    assert references.similarity(embedding(0.1)) == pytest.approx(0.9)


@needs_weights
def test_photos_of_a_person(tmp_path):
    """The largest face is taken; what cannot be used is noted."""
    embedder = load_identity()
    photos = {name: portrait.load() for name, portrait in demo.PORTRAITS.items()}
    landmarks = {name: np.array(portrait.landmarks) for name, portrait in demo.PORTRAITS.items()}
    images.write_png(tmp_path / "hopper.png", photos[HOPPER])
    both = np.concatenate(
        [photos[HOPPER][:512], images.resize_pixels(photos[COLLINS], (512, 512))], 1
    )
    images.write_png(tmp_path / "album" / "two.png", both)
    images.write_png(tmp_path / "sea.png", np.zeros((64, 64, 3), np.uint8))
    images.write_png(tmp_path / "wrong.png", np.zeros((64, 64, 3), np.uint8))
    (tmp_path / "broken.jpg").write_bytes(b"no picture")

    def detect(pixels, path):
        if path == "wrong.png":
            raise PictureError("its boxes lie outside")
        collins = Found((500, 0, 40, 40), landmarks[COLLINS] + [512, 0])
        hopper = Found((100, 100, 80, 90), landmarks[HOPPER])
        return {"hopper.png": [hopper], "album/two.png": [collins, hopper]}.get(path, [])

    references = References.read(tmp_path, detect, embedder)
    assert references.embeddings.shape == (2, 128)
    assert identity_similarity(*references.embeddings) > 0.9  # both are Grace Hopper
    assert set(references.without_face) == {"sea.png", "wrong.png", "broken.jpg"}
    crops = [cut(photos[n], align(landmarks[n]), 64) for n in (COLLINS, HOPPER)]
    candidates = embedder.embed_aligned(crops)
    assert references.nearest(candidates) == 1
    assert references.similarity(candidates[1]) > 0.4 > references.similarity(candidates[0])


def test_a_folder_without_a_face(tmp_path):
    images.write_png(tmp_path / "sea.png", np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(
        ConfigError, match=r"has no photo with a face \(1 pictures.*\n.*sea\.png: no face"
    ):
        References.read(tmp_path, lambda pixels, path: [], None)
    with pytest.raises(ConfigError, match="is no folder"):
        References.read(tmp_path / "nowhere", lambda pixels, path: [], None)
