"""Presets that choose settings for each face, and settings that are given by hand."""

import pytest

from dr2pipe.core.config import load_config
from dr2pipe.core.models import find_file
from dr2pipe.restoration.settings import RestorationConfig
from dr2pipe.runs.video_config import VideoConfig


def mode(*overrides):
    path = find_file("configs/restore", "default", what="preset")
    config = load_config(RestorationConfig, path, overrides)
    return config.dr2.mode, config.dr2.factor, config.dr2.tau, config.dr2.omega


@pytest.mark.parametrize("given", ["dr2.factor=2", "dr2.tau=6", "dr2.omega=30"])
def test_what_is_given_by_hand_holds(given):
    name, value = given.removeprefix("dr2.").split("=")
    usual = {"factor": 4, "tau": 14, "omega": 26}
    assert mode(given) == ("fixed", *(usual | {name: int(value)}).values())


def test_the_mode_is_what_is_said():
    assert mode("dr2={tau: 6, scheduler: ddim}") == ("fixed", 4, 6, 26)
    assert mode("dr2={tau: 6, mode: auto}")[0] == "auto"
    assert mode()[0] == "auto"
    assert mode("dr2.exposure=normalise", "seed=3")[0] == "auto"
    assert mode("dr2.tau=6", "dr2.mode=auto")[0] == "auto"
    assert mode("dr2.mode=fixed") == ("fixed", 4, 14, 26)
    assert mode("dr2.student=portrait128_student")[0] == "auto"  # it knows what auto chooses from
    assert mode("dr2.model=my_model")[0] == "fixed"  # nothing is fitted for it
    assert mode("dr2.model=my_model", "dr2.auto=my_auto.json")[0] == "auto"


@pytest.mark.parametrize("schema", [RestorationConfig, VideoConfig])
def test_another_enhancer_needs_no_sharp_variant(schema):
    path = find_file("configs/restore", "default", what="preset")

    needed = ["input=a.mp4", "output=b.mp4"] if schema is VideoConfig else []

    def sharpness(*overrides):
        return load_config(schema, path, [*needed, *overrides]).enhancer.sharpness

    assert sharpness("seed=3") > 0
    assert sharpness("enhancer.weights=mine") is None
    assert sharpness("enhancer.name=bicubic") is None
    assert sharpness("enhancer.weights=mine", "enhancer.sharpness=0.4") == 0.4
