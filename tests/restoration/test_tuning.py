"""Settings of stage 1 by a word for the damage, and grids over N and τ."""

import pytest
import torch
from conftest import make_unet

from dr2pipe.core.errors import ConfigError
from dr2pipe.diffusion.low_pass import BicubicLowPass
from dr2pipe.diffusion.stage1 import DR2Config, Remover
from dr2pipe.diffusion.timesteps import build_scheduler
from dr2pipe.enhancers import build_enhancer
from dr2pipe.restoration.restorer import Restorer
from dr2pipe.restoration.tuning import settings_for, try_settings


def test_words_become_settings():
    published = DR2Config(model="dr2_ffhq", factor=4, tau=22)
    assert settings_for("severe", published) == ["dr2.factor=8", "dr2.tau=35", "dr2.omega=60"]
    assert settings_for("medium", published) == []
    assert settings_for("mild", DR2Config(factor=2, tau=6, num_evaluations=5)) == [
        "dr2.factor=1",
        "dr2.tau=3",
        "dr2.omega=8",
        "dr2.num_evaluations=5",
    ]
    assert settings_for("auto", DR2Config()) == ["dr2.mode=auto"]
    assert settings_for("auto", DR2Config(mode="auto")) == []
    # Of a preset that chooses for each face, the words mean its settings by hand.
    assert settings_for("medium", DR2Config(mode="auto")) == ["dr2.mode=fixed"]
    assert settings_for("mild", DR2Config(mode="auto")) == settings_for("mild", DR2Config())
    assert settings_for("severe", DR2Config(enabled=False)) == []


@pytest.mark.parametrize(
    ("damage", "config", "says"),
    [
        ("awful", DR2Config(), "choose mild, medium, severe, auto"),
        ("auto", DR2Config(model="dr2_ffhq"), "not fitted for the model dr2_ffhq"),
    ],
)
def test_words_that_do_not_fit(damage, config, says):
    with pytest.raises(ConfigError, match=says):
        settings_for(damage, config)


def test_a_grid_is_what_the_settings_make():
    remover = Remover(
        make_unet(),
        build_scheduler("ddim"),
        BicubicLowPass(2),
        omega=8,
        tau=2,
        num_evaluations=2,
        max_timestep=200,
    )
    restorer = Restorer(remover, build_enhancer("none", None))
    face = torch.rand(1, 3, 16, 16) * 2 - 1
    grid = try_settings(restorer, face, 5, factors=(1, 2, 3), taus=(2, 9, 40))
    # 3 divides no side of 16, and the network was not trained for τ = 40.
    assert [[(t.factor, t.tau, t.omega) for t in row] for row in grid] == [
        [(1, 2, 7), (1, 9, 14)],
        [(2, 2, 12), (2, 9, 19)],
    ]
    assert {t.calls for row in grid for t in row} == {2}
    again = Remover(
        remover.unet, remover.scheduler, BicubicLowPass(2), omega=12, tau=2, num_evaluations=2
    )
    expected = again(face, [torch.Generator().manual_seed(5)])
    assert torch.equal(grid[1][0].coarse, expected)
    with pytest.raises(ConfigError, match="no stage 1"):
        try_settings(Restorer(None, build_enhancer("none", None)), face, 0)
