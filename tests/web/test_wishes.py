"""The page's words as settings of the command line."""

import pytest

from dr2pipe.core.errors import ConfigError
from dr2pipe.web.layout import sharpness_slider, usual_controls
from dr2pipe.web.wishes import (
    Wish,
    command_of,
    overrides_of,
    usual_damage,
    usual_sharpness,
    usual_tau,
)


def test_usual_wishes_change_nothing():
    assert overrides_of(Wish()) == []
    assert overrides_of(Wish(tau=14)) == []
    assert command_of(Wish(), "a b.jpg") == "dr2pipe restore 'a b.jpg' OUTPUT"


def test_every_wish_is_a_setting():
    wish = Wish(
        damage="severe", skip_good=False, stretch_contrast=True, scale=2, seed=7, sharpness=0.5
    )
    assert overrides_of(wish) == [
        "dr2.factor=8",
        "dr2.tau=28",
        "dr2.omega=40",
        "dr2.num_evaluations=2",
        "enhancer.sharpness=0.5",
        "faces.skip_good=false",
        "contrast=stretch",
        "scale=2",
        "seed=7",
    ]
    assert "dr2.antithetic=false" in overrides_of(Wish(variants=2))  # so that they differ
    assert overrides_of(Wish(variants=2, preset="gfpgan14_only")) == []
    assert (usual_tau(wish), usual_tau(Wish(damage="auto"))) == (28, 14)
    # τ by hand keeps the damage's N, and ω follows.
    assert overrides_of(Wish(damage="severe", tau=20))[:3] == [
        "dr2.factor=8",
        "dr2.tau=20",
        "dr2.omega=32",
    ]
    assert overrides_of(Wish(damage="auto", tau=20)) == []  # the preset's own, for each face
    assert overrides_of(Wish("portrait128", damage="auto", tau=20)) == ["dr2.mode=auto"]
    assert overrides_of(Wish(damage="medium")) == ["dr2.mode=fixed"]
    assert overrides_of(Wish("portrait128", damage="medium")) == []
    assert [usual_damage(name) for name in ("default", "portrait128")] == ["auto", "medium"]
    command = command_of(
        Wish("portrait128", "medium", references=True), "p.png", listed=True, marked=True
    )
    assert command == (
        "dr2pipe restore p.png OUTPUT --preset portrait128 --mask marks/p.png.png "
        "--reference REFERENCES --set samples=4 faces.name=file faces.file=faces.json"
    )


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        (Wish(variants=9), "1 to 8 variants"),
        (Wish(scale=3), "1, 2 or 4"),
        (Wish(seed=-1), "whole numbers from 0 to"),
        (Wish(damage="awful"), "choose mild"),
        (Wish(preset="best"), "no preset 'best'"),
    ],
)
def test_wishes_that_cannot_be(wish, says):
    with pytest.raises(ConfigError, match=says):
        overrides_of(wish)


@pytest.fixture
def preset(tmp_path):
    """Writes a preset whose enhancer has a sharp variant, or none."""

    def write(*, sharpness="null", has_sharp=True):
        model = tmp_path / f"model_{has_sharp}"
        (model / "sharp").mkdir(parents=True, exist_ok=True)
        for folder in [model, model / "sharp"] if has_sharp else [model]:
            (folder / "config.json").write_text("{}")
        path = tmp_path / f"preset_{sharpness}_{has_sharp}.yaml"
        path.write_text(
            "dr2: {enabled: false}\nenhancer: {name: sparnet, weights: '"
            f"{model}', sharpness: {sharpness}}}\n"
        )
        return str(path)

    return write


def test_sharpness_follows_the_preset(preset):
    assert usual_sharpness("gfpgan14_only") is None  # its weights are not here
    assert usual_sharpness(preset(has_sharp=False)) is None
    assert usual_sharpness(preset()) == 0
    assert usual_sharpness(preset(sharpness=0.5)) == 0.5
    shown = [sharpness_slider(preset(sharpness=0.5)), sharpness_slider(preset())]
    assert usual_controls("portrait128")[:2] == ["medium", 14]
    hidden = sharpness_slider(preset(has_sharp=False))
    assert [(one.value, one.visible) for one in (*shown, hidden)] == [
        (0.5, True),
        (0, True),
        (0, False),
    ]


def test_sharpness_that_the_preset_has_is_no_setting(preset):
    half = preset(sharpness=0.5)
    assert overrides_of(Wish(half, "medium", sharpness=0.5)) == []
    assert overrides_of(Wish(half, "medium", sharpness=0)) == ["enhancer.sharpness=0"]
    assert overrides_of(Wish(preset(), "medium", sharpness=0)) == []
