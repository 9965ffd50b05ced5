"""Faces that restoring turns into somebody else: gentler settings, refusal, and references."""

import numpy as np
import pytest
import torch
from photos import landmarks_at, smooth_photo
from test_photos import FACES, decoded, engine_for, inside, restored

from dr2pipe.core import images
from dr2pipe.core.errors import ConfigError
from dr2pipe.diffusion.low_pass import BicubicLowPass, build_low_pass
from dr2pipe.diffusion.stage1 import DR2Config, load_remover
from dr2pipe.faces.identity import References
from dr2pipe.restoration.gentler import gentler_removers
from dr2pipe.restoration.same_person import IdentityConfig, SamePerson, load_same_person


class Pixels:
    """An embedder whose embeddings are the pixels, so that alike means equal."""

    def embed_aligned(self, faces):
        small = [images.resize_pixels(np.asarray(face), (8, 8)) for face in faces]
        return np.stack([face.astype(float).ravel() / 255 / 8 for face in small])


def same_person(minimum=None, references=None):
    return SamePerson(Pixels(), minimum=minimum, references=references)


def test_gentler_settings_halve_n_and_tau(model_folder):
    config = DR2Config(model=str(model_folder), factor=8, tau=22, omega=60, num_evaluations=5)
    remover, _ = load_remover(config)
    found = gentler_removers(remover)
    assert [settings for _, settings in found] == [
        {"factor": 4, "tau": 11, "omega": 31},
        {"factor": 2, "tau": 5, "omega": 15},
    ]
    for changed, settings in found:
        assert changed.unet is remover.unet
        assert changed.low_pass == BicubicLowPass(settings["factor"])
        assert changed.calls <= 5


def test_gentler_settings_of_other_filters_keep_the_filter(model_folder):
    config = DR2Config(model=str(model_folder), low_pass="gaussian", sigma_px=2, tau=10, omega=20)
    remover, _ = load_remover(config)
    found = gentler_removers(remover)
    assert [settings for _, settings in found] == [
        {"tau": 5, "omega": 15},
        {"tau": 2, "omega": 12},
    ]
    assert all(changed.low_pass == build_low_pass("gaussian", sigma_px=2) for changed, _ in found)


def test_without_stage_1_there_is_nothing_gentler():
    assert gentler_removers(None) == []


def test_identity_stands_in_the_record(model_folder):
    engine = engine_for(model_folder, *FACES)
    engine.restorer.same_person = same_person()
    (result,) = restored(engine, decoded(smooth_photo()))
    assert all(0 <= face.record["identity"] <= 1 for face in result.faces)


def test_gentler_settings_are_used_where_they_are_enough(model_folder):
    strong = {"dr2.factor": 8, "dr2.tau": 60, "dr2.omega": 90}
    engine = engine_for(model_folder, *FACES, **strong)
    engine.restorer.same_person = same_person()
    usual = [face.record["identity"] for face in restored(engine, decoded(smooth_photo()))[0].faces]
    engine.restorer.same_person = same_person(minimum=max(usual) + 1e-3)
    (result,) = restored(engine, decoded(smooth_photo()))
    for face, before in zip(result.faces, usual, strict=True):
        assert face.record["gentler"]["tau"] < 60
        assert face.record["identity_of_usual_settings"] == before
        assert face.record["identity"] > max(usual)
        assert "skipped" not in face.record


def test_a_face_that_nothing_keeps_is_left_alone(model_folder):
    engine = engine_for(model_folder, *FACES)
    engine.restorer.same_person = same_person(minimum=1.0)
    (result,) = restored(engine, decoded(smooth_photo()))
    assert result.levels is None
    for face in result.faces:
        assert "too little alike" in face.record["skipped"]
        assert face.record["tried"] == [
            {"factor": 1, "tau": 1, "omega": 6},
            {"factor": 1, "tau": 0, "omega": 5},
        ]


def test_without_stage_1_nothing_gentler_is_claimed(model_folder):
    engine = engine_for(model_folder, FACES[0], **{"dr2.enabled": "false"})
    engine.restorer.same_person = same_person(minimum=1.0)
    engine.restorer.same_person.similarities = lambda looks, restored: [0.5] * len(looks)
    (result,) = restored(engine, decoded(smooth_photo()))
    record = result.faces[0].record
    assert record["tried"] == []
    assert "gentler" not in record["skipped"]


def test_a_skipped_face_does_not_hold_back_its_neighbour(model_folder):
    engine = engine_for(model_folder, *FACES)
    pixels = smooth_photo()
    engine.restorer.same_person = same_person()
    usual = [face.record["identity"] for face in restored(engine, decoded(pixels))[0].faces]
    assert usual[0] != usual[1]
    engine.restorer.same_person = same_person(minimum=(usual[0] + usual[1]) / 2)
    engine.restorer.gentler = []
    (result,) = restored(engine, decoded(pixels))
    skipped = ["skipped" in face.record for face in result.faces]
    assert sorted(skipped) == [False, True]
    order = sorted(FACES, key=lambda place: -np.prod(np.ptp(landmarks_at(*place), axis=0)))
    left_alone = inside(pixels.shape, order[skipped.index(True)])
    pasted = inside(pixels.shape, order[skipped.index(False)])
    assert (result.levels == pixels)[left_alone & ~pasted].all()
    assert (result.levels != pixels)[pasted].mean() > 0.5


def test_references_choose_among_samples(model_folder):
    engine = engine_for(model_folder, FACES[0], samples=4)
    usual = same_person()
    photo = engine.prepare(decoded(smooth_photo()))
    drawn = {}

    class Watched(SamePerson):
        def nearest(self, samples):
            drawn["samples"] = samples
            return super().nearest(samples)

    first = Pixels().embed_aligned([np.zeros((16, 16, 3), np.uint8)])
    engine.restorer.same_person = Watched(
        usual.embedder, minimum=None, references=References(first)
    )
    engine.restore([photo], [0])
    samples = drawn["samples"][:, 0]
    for wanted in range(4):
        target = Pixels().embed_aligned(list(images.to_uint8(samples[wanted : wanted + 1])))
        engine.restorer.same_person = Watched(
            usual.embedder, minimum=None, references=References(target)
        )
        (result,) = engine.restore([photo], [0])
        note = result.faces[0].record["nearest_to_references"]
        assert note["sample"] == wanted
        assert len(note["similarities"]) == 4


@pytest.mark.parametrize(
    ("config", "samples", "says"),
    [
        (IdentityConfig(minimum=-0.1), 1, "identity.minimum=-0.1"),
        (IdentityConfig(reference="photos"), 1, "samples"),
        (IdentityConfig(reference="nowhere"), 4, "nowhere"),
    ],
)
def test_invalid_settings(config, samples, says):
    with pytest.raises(ConfigError, match=says):
        load_same_person(config, samples, torch.device("cpu"))


@pytest.mark.parametrize(("factor", "tau", "omega"), [(16, 10, 12), (8, 22, 24), (1, 4, 4)])
def test_gentler_settings_never_forget_more(model_folder, factor, tau, omega):
    remover, _ = load_remover(
        DR2Config(model=str(model_folder), factor=factor, tau=tau, omega=omega)
    )
    for changed, settings in gentler_removers(remover):
        assert settings["tau"] <= settings["omega"] <= omega
        assert changed.tau <= tau
