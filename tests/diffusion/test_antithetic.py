"""The mean of two coarse faces, from noise and from its negative."""

import dataclasses

import pytest
import torch
from conftest import make_unet

from dr2pipe.core import files
from dr2pipe.diffusion.exposure import normalise_exposure
from dr2pipe.diffusion.low_pass import build_low_pass
from dr2pipe.diffusion.noise import Antithetic, Philox, draw_like, noise_inside, noise_of
from dr2pipe.diffusion.stage1 import DR2Config, Remover, describe_dr2, load_remover
from dr2pipe.diffusion.student import student_of
from dr2pipe.diffusion.timesteps import build_scheduler

NOISES = ["reference", "philox"]


def degraded(batch=3, size=16):
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(7)) * 2 - 1


def make_remover(unet=None, scheduler="ddim", prediction="epsilon", **options):
    variance = {"variance": "fixed_small"} if scheduler == "ddpm" else {}
    return Remover(
        unet or make_unet(), build_scheduler(scheduler, prediction_type=prediction, **variance),
        build_low_pass("bicubic", factor=2), omega=26, tau=4, num_evaluations=3, **options,
    )  # fmt: skip


@pytest.mark.parametrize("kind", [*NOISES, "one generator", "global"])
def test_the_second_half_is_the_negative_of_the_first(kind):
    def source():
        torch.manual_seed(3)
        if kind in NOISES:
            return noise_of(kind, [1, 2])
        return torch.Generator().manual_seed(3) if kind == "one generator" else None

    x = torch.empty(4, 3, 8, 8)
    alone = source()
    singles = [draw_like(x[:2], alone) for _ in range(2)]
    both = Antithetic(source())
    for single in singles:
        first, second = draw_like(x, both).chunk(2)
        assert torch.equal(first, single)
        assert torch.equal(second, -single)


@pytest.mark.parametrize("kind", NOISES)
def test_schedulers_draw_it_too(kind):
    wanted = draw_like(torch.empty(2, 3, 8, 8), noise_of(kind, [1, 2]))
    with noise_inside(Antithetic(noise_of(kind, [1, 2]))) as generator:
        found = torch.randn((4, 3, 8, 8), generator=generator, device="cpu", dtype=torch.float32)
    assert torch.equal(found, torch.cat([wanted, -wanted]))


@pytest.mark.parametrize("scheduler", ["ddim", "ddpm", "dpmsolver++"])
@pytest.mark.parametrize("kind", NOISES)
def test_a_face_is_the_mean_of_two_and_depends_on_its_seed_alone(kind, scheduler):
    plain = make_remover(scheduler=scheduler)
    remover = make_remover(plain.unet, scheduler, antithetic=True)
    x = degraded()
    with torch.no_grad():
        coarse = remover(x, noise_of(kind, [1, 2, 3]))
        first = plain(x, noise_of(kind, [1, 2, 3]))
        second = plain(torch.cat([x, x]), Antithetic(noise_of(kind, [1, 2, 3])))[3:]
        assert torch.allclose(coarse, (first + second) / 2, atol=1e-5)
        assert not torch.allclose(first, second, atol=1e-3)
        alone = remover(x[1:2], noise_of(kind, [2]))
    assert torch.allclose(alone[0], coarse[1], atol=1e-5)


class Linear(torch.nn.Module):
    """Stands in for a network whose answer is linear in its input."""

    def __init__(self, unet):
        super().__init__()
        self.config, self.dtype = unet.config, torch.float32

    def forward(self, x, t, **_):
        return type("Output", (), {"sample": 0.1 * x})()


def test_noise_cancels_where_the_network_is_linear():
    x = degraded() * 0.1  # nothing is clamped
    faces = {}
    for antithetic in (False, True):
        remover = make_remover(Linear(make_unet()), prediction="sample", antithetic=antithetic)
        faces[antithetic] = [remover(x, Philox([seed, seed, seed])) for seed in (1, 2)]
    different = {key: (one - other).abs().max() * 127.5 for key, (one, other) in faces.items()}
    assert different[False] > 3
    assert different[True] < 0.1


@pytest.mark.parametrize("student", [False, True])
def test_it_takes_twice_the_calls(model_folder, unet, tmp_path, student):
    config = DR2Config(model=str(model_folder), tau=6, factor=2, num_evaluations=3)
    if student:
        student_of(
            unet, [(2, 6, 16)], num_steps=100, prediction_type="epsilon",
            teacher_sha256=files.sha256(model_folder),
        ).save_pretrained(tmp_path / "student")  # fmt: skip
        config.student = str(tmp_path / "student")
    calls = 1 if student else 3
    for antithetic in (False, True):
        remover, _ = load_remover(dataclasses.replace(config, antithetic=antithetic))
        shown = []
        called = remover.student.unet if student else remover.unet
        hook = called.register_forward_hook(
            lambda *given, shown=shown: shown.append(len(given[1][0]))
        )
        with torch.no_grad():
            remover(degraded(), Philox([1, 2, 3]))
        hook.remove()
        assert shown == [6 if antithetic else 3] * calls
        assert remover.calls == sum(shown) / 3


def test_exposure_is_undone_after_the_mean():
    dark = degraded() * 0.1 - 0.85
    normal, undo = normalise_exposure(dark)
    remover = make_remover(antithetic=True)
    with torch.no_grad():
        expected = undo(remover(normal, Philox([1, 2, 3])))
        found = dataclasses.replace(remover, exposure="normalise")(dark, Philox([1, 2, 3]))
    assert torch.equal(found, expected)
    assert not torch.equal(normal, dark)


def test_records_of_before_stay_valid(model_folder):
    config = DR2Config(model=str(model_folder), tau=6, factor=2)
    described = describe_dr2(config, load_remover(config)[0])
    assert "antithetic" not in described
    config.antithetic = True
    assert describe_dr2(config, load_remover(config)[0])["antithetic"] is True
