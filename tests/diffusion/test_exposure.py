"""Dark and pale faces on their way into stage 1 and back."""

import numpy as np
import pytest
import torch
from conftest import make_unet

from dr2pipe.core import images
from dr2pipe.core.errors import ConfigError
from dr2pipe.degradations import degrade
from dr2pipe.diffusion.exposure import DEVIATIONS, MEANS, normalise_exposure
from dr2pipe.diffusion.low_pass import build_low_pass
from dr2pipe.diffusion.stage1 import DR2Config, Remover, describe_dr2, load_remover
from dr2pipe.diffusion.timesteps import build_scheduler
from dr2pipe.restoration.restorer import EnhancerConfig, build_restorer


def face(mean=0.1, deviation=0.35, seed=0):
    """(1,3,32,32) with this mean and deviation of its luma."""
    grey = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(seed))
    return ((grey - grey.mean()) / grey.std() * deviation + mean).repeat(1, 3, 1, 1)


def spoilt(picture, name, severity):
    pixels = images.to_uint8(picture)[0]
    degraded, _ = degrade(pixels, name, np.random.default_rng(0), severity=severity)
    return images.to_tensor(degraded)


@pytest.mark.parametrize("name", ["low_light", "haze"])
def test_a_spoilt_picture_gets_usual_exposure(name):
    clean = face()
    dark = spoilt(clean, name, 4)
    normal, undo = normalise_exposure(dark)
    assert (normal - clean).abs().mean() < 0.6 * (dark - clean).abs().mean()
    assert MEANS[0] - 0.01 < normal.mean() < MEANS[1] + 0.01
    assert normal.std() > 0.9 * DEVIATIONS[0] > dark.std()
    assert torch.allclose(undo(normal), dark, atol=1e-6)
    # What a result changes comes back as much smaller as the picture was paler.
    changed = undo(normal + 0.1) - dark
    assert 0 < changed.mean() < 0.1 * 0.6
    assert torch.allclose(changed, changed.mean(), atol=1e-5)


def test_usual_pictures_are_left_alone():
    x = torch.cat([face(0.0, 0.3), face(0.2, 0.45, seed=1)])
    normal, undo = normalise_exposure(x)
    assert torch.equal(normal, x)
    assert torch.equal(undo(2 * x), 2 * x)
    flat = torch.zeros(1, 3, 8, 8)
    assert normalise_exposure(flat)[0].isfinite().all()
    # Too much contrast is not lowered, and a picture does not depend on those beside it.
    loud = face(0.0, 0.6).clamp(-1, 1)
    assert torch.equal(normalise_exposure(loud)[0], loud)
    both = torch.cat([x[:1], spoilt(face(), "haze", 4)])
    for i in (0, 1):
        assert torch.allclose(
            normalise_exposure(both)[0][i], normalise_exposure(both[i : i + 1])[0]
        )


def test_stage_1_with_it(model_folder):
    def remover(exposure):
        return Remover(
            make_unet(), build_scheduler("ddim"), build_low_pass("bicubic", factor=2), omega=10,
            tau=4, num_evaluations=3, exposure=exposure,
        )  # fmt: skip

    def run(exposure, x):
        return remover(exposure)(x, [torch.Generator().manual_seed(0)])

    usual, pale = face(0.1, 0.35)[..., :16, :16], face(0.7, 0.05)[..., :16, :16]
    assert torch.equal(run("keep", usual), run("normalise", usual))
    normal, undo = normalise_exposure(pale)
    assert torch.equal(run("normalise", pale), undo(run("keep", normal)))

    settings = {"model": str(model_folder), "tau": 2, "omega": 8, "factor": 2}
    config = DR2Config(**settings, exposure="normalise")
    restorer, _ = build_restorer(config, EnhancerConfig())
    assert restorer.remover.exposure == "normalise"
    assert describe_dr2(config, restorer.remover)["exposure"] == "normalise"
    kept = DR2Config(**settings)
    assert "exposure" not in describe_dr2(kept, load_remover(kept)[0])
    with pytest.raises(ConfigError, match=r"dr2\.exposure 'auto': choose keep, normalise"):
        load_remover(DR2Config(**settings, exposure="auto"))
