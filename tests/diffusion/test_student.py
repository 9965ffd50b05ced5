"""A student in the place of DR2's chain."""

import logging

import pytest
import torch
from conftest import make_patched, make_unet

from dr2pipe.core import files
from dr2pipe.core.errors import CheckpointError, ConfigError
from dr2pipe.diffusion.dr2 import clamp_x0, diffuse, estimate_x0
from dr2pipe.diffusion.low_pass import BicubicLowPass
from dr2pipe.diffusion.noise import Philox
from dr2pipe.diffusion.stage1 import DR2Config, describe_dr2, load_remover
from dr2pipe.diffusion.student import load_student, student_of
from dr2pipe.diffusion.timesteps import build_scheduler
from dr2pipe.enhancers import build_enhancer
from dr2pipe.restoration.gentler import gentler_removers
from dr2pipe.restoration.restorer import Restorer

TAUGHT = [[2, 6, 16], [4, 6, 26]]


def make_student(unet, teacher_sha256=""):
    return student_of(
        unet, TAUGHT, num_steps=100, prediction_type="epsilon", teacher_sha256=teacher_sha256
    ).eval()


def degraded(batch=2):
    return torch.rand(batch, 3, 16, 16, generator=torch.Generator().manual_seed(7)) * 2 - 1


@pytest.fixture
def config(model_folder, unet, tmp_path):
    student = make_student(unet, files.sha256(model_folder))
    torch.manual_seed(1)
    torch.nn.init.normal_(student.unet.class_embedding.weight)
    weight = student.unet.conv_in.weight
    weight.data[:, 3:] = weight.data[:, :3] / 4
    student.save_pretrained(tmp_path / "student")
    return DR2Config(
        model=str(model_folder), tau=6, factor=2, num_evaluations=3,
        student=str(tmp_path / "student"),
    )  # fmt: skip


@pytest.mark.parametrize("out_channels", [3, 6])
def test_it_begins_as_its_teacher(out_channels):
    unet = make_unet(out_channels=out_channels)
    student, x = make_student(unet), degraded()
    alpha_bar = torch.tensor(0.6)
    for place in (0, 1):
        found = student(x, torch.randn_like(x), 160, alpha_bar, place)
        wanted = estimate_x0(x, unet(x, 160).sample[:, :3], alpha_bar, "epsilon")
        assert torch.allclose(found, wanted, atol=1e-5)


def test_a_student_of_a_network_on_patches_begins_as_its_teacher(tmp_path):
    unet = make_patched()
    student = student_of(
        unet, TAUGHT, num_steps=100, prediction_type="sample", teacher_sha256=""
    ).eval()
    x = degraded()
    low = torch.randn_like(x)
    alpha_bar = build_scheduler("ddim").alphas_cumprod[160]
    wanted = unet(x, 160).sample
    assert torch.allclose(student(x, low, 160, alpha_bar, 1), wanted, atol=1e-5)
    with torch.no_grad():
        student.unet.unet.conv_in.weight[:, 12:].normal_()  # once it has learnt, it sees both
    assert not torch.allclose(student(x, low, 160, alpha_bar, 1), wanted, atol=1e-2)
    student.save_pretrained(tmp_path / "student")
    again = load_student(tmp_path / "student").eval()
    given = (x, low, 160, alpha_bar, 1)
    assert torch.equal(again(*given), student(*given))


def test_it_takes_one_call_where_it_was_taught(config, caplog):
    with caplog.at_level(logging.WARNING):
        remover, hashes = load_remover(config)
    assert not caplog.text
    assert remover.calls == 1
    assert remover.omega == 16
    assert set(hashes) == {"dr2", "student"}
    remover.unet.forward = None  # the teacher is not called
    x = degraded()
    with torch.no_grad():
        coarse = remover(x, Philox([1, 2]))
        # From the same first draw as the chain's.
        alpha_bar = remover.scheduler.alphas_cumprod[169]
        noisy = diffuse(x, alpha_bar, Philox([1, 2]))
        wanted = remover.student(noisy, BicubicLowPass(2)(x), 169, alpha_bar, 0)
    assert torch.allclose(coarse, clamp_x0(wanted), atol=1e-5)
    assert coarse.abs().max() <= 1


def test_the_chain_stands_in_elsewhere(config, caplog):
    with caplog.at_level(logging.WARNING):
        remover, _ = load_remover(DR2Config(**vars(config) | {"tau": 5}))
    assert "was not taught N=2, tau=5, omega=15, so dr2.model takes 3 calls" in caplog.text
    assert "(2, 6, 16), (4, 6, 26)" in caplog.text
    plain, _ = load_remover(DR2Config(**vars(config) | {"tau": 5, "student": None}))
    assert remover.calls == 3
    assert torch.equal(remover(degraded(), Philox([1, 2])), plain(degraded(), Philox([1, 2])))
    other = {"low_pass": "gaussian", "sigma_px": 2.0, "omega": 16}
    with caplog.at_level(logging.WARNING):
        assert load_remover(DR2Config(**vars(config) | other))[0].calls == 3
    assert "was not taught N=gaussian" in caplog.text
    assert load_remover(DR2Config(**vars(config) | {"num_steps": 50}))[0].calls == 3
    # Gentler settings of one that it knows.
    taught, _ = load_remover(config)
    assert [one.calls for one, _ in gentler_removers(taught)] == [3, 3]


def test_results_and_records(config):
    remover, _ = load_remover(config)
    plain, _ = load_remover(DR2Config(**vars(config) | {"student": None}))
    assert describe_dr2(config, remover) == describe_dr2(
        DR2Config(**vars(config) | {"student": None}), plain
    )  # the weights have hashes of their own
    restorer = Restorer(remover, build_enhancer("none"), dtype=torch.bfloat16)
    assert {p.dtype for p in restorer.remover.student.parameters()} == {torch.bfloat16}
    result = restorer(degraded(), [1, 2])
    assert result.calls == [1, 1]
    exact = Restorer(load_remover(config)[0], build_enhancer("none"))(degraded(), [1, 2])
    assert (result.coarse - exact.coarse).abs().mean() < 4 / 255
    assert (exact.coarse - Restorer(plain, build_enhancer("none"))(degraded(), [1, 2]).coarse).any()


def test_students_that_cannot_be_used(config, unet, tmp_path):
    make_student(unet, "of another").save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match="is the student of another model than"):
        load_remover(DR2Config(**vars(config) | {"student": str(tmp_path / "other")}))
    with pytest.raises(CheckpointError, match="not a DR2Student; the recipe 'distil' makes one"):
        load_student(config.model + "/unet")
    with pytest.raises(ConfigError, match="must be a list of"):
        student_of(
            unet, [[2, 6]], num_steps=100, prediction_type="epsilon", teacher_sha256=""
        )  # fmt: skip
