"""The recipe that teaches a student of DR2."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import make_patched, make_pixels

from dr2pipe.core.config import load_config
from dr2pipe.core.errors import ConfigError
from dr2pipe.data.folders import FaceDataset
from dr2pipe.diffusion.dr2 import clamp_x0
from dr2pipe.diffusion.noise import Philox
from dr2pipe.diffusion.stage1 import load_remover
from dr2pipe.diffusion.student import load_student, student_of
from dr2pipe.losses.reconstruction import log_error
from dr2pipe.training.recipes import face_pairs, run_recipe
from dr2pipe.training.recipes.distil import DistilConfig, DistilRecipe
from dr2pipe.training.trainer import Trainer

CONFIG = """
recipe: distil
data: {size: 16}
dr2: {scheduler: ddim, num_evaluations: 2}
taught: [[2, 6, 16], [4, 6, 26]]
pairs: {input_size: 16, degradations: {mild: 0.5, severe: 0.5}}
learning_rate: 3.0e-3
total_steps: 4
batch_size: 4
log_every_steps: 1
save_every_steps: 2
preview_every_steps: 4
ema_decay: 0.5
trackers: []
"""


@pytest.fixture
def given(tmp_path, model_folder):
    pixels = np.stack([make_pixels(i, 16, 16) for i in range(6)])
    np.savez(tmp_path / "faces.npz", images=pixels, files=np.array([f"f{i}" for i in range(6)]))
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    return [f"data.path={tmp_path / 'faces.npz'}", f"dr2.model={model_folder}"]


def train(tmp_path, given, output, *overrides):
    return run_recipe(
        tmp_path / "tiny.yaml", [*given, f"output={tmp_path / output}", *overrides]
    )  # fmt: skip


def test_the_loss_is_the_psnr():
    x = torch.rand(3, 3, 8, 8) * 2 - 1
    y = (x + torch.tensor([0.2, 0.02, 0.002]).view(3, 1, 1, 1)).requires_grad_()
    psnr = 10 * torch.log10(4 / (y - x).square().mean(dim=(1, 2, 3)))
    loss = log_error(y, x, floor=0.0)
    wanted = math.log(4) - float(psnr.detach().mean()) * math.log(10) / 10
    assert float(loss.detach()) == pytest.approx(wanted, abs=1e-3)
    loss.backward()
    # Smaller errors have larger gradients, until the floor.
    sizes = [float(g.abs().mean()) for g in y.grad]
    assert sizes[0] * 9 < sizes[1]
    assert sizes[1] * 9 < sizes[2]


def test_a_student_learns_and_restores(tmp_path, given):
    settings = ["total_steps=40", "log_every_steps=5", "save_every_steps=40", "ema_decay=0.8"]
    settings += ["export_precision=fp16", "preview_every_steps=1000"]
    assert train(tmp_path, given, "run", *settings) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").open()]
    errors = [line["student/squared_error"] for line in lines]
    assert np.mean(errors[-2:]) < 0.6 * errors[0]
    assert lines[-1]["student/loss"] < lines[0]["student/loss"] - 0.3
    # The exported student is nearer to its teacher than the teacher's own first estimate is.
    overrides = [*given, f"output={tmp_path / 'x'}"]
    config = load_config(DistilConfig, tmp_path / "tiny.yaml", overrides)
    item = face_pairs(config)[0, 999]
    y = item["input"][None]
    settings = {"factor": 2, "tau": 6}
    base = vars(config.dr2) | settings
    teacher, _ = load_remover(type(config.dr2)(**base))
    student, _ = load_remover(type(config.dr2)(**base | {"student": str(tmp_path / "run/final")}))
    assert (teacher.calls, student.calls) == (2, 1)
    untaught = DistilRecipe(config).build()["student"].network
    with torch.no_grad():
        wanted = teacher(y, Philox([5]))
        found = student(y, Philox([5]))
        first = untaught(*student.student_input(y, Philox([5])), 0)
    assert (found - wanted).square().mean() < 0.7 * (first - wanted).square().mean()


def test_resuming_repeats_an_undisturbed_run(tmp_path, given):
    assert train(tmp_path, given, "calm") == 0
    overrides = [*given, f"output={tmp_path / 'cut'}"]
    config = load_config(DistilConfig, tmp_path / "tiny.yaml", overrides)
    trainer = Trainer(config, DistilRecipe(config), face_pairs(config))
    trainer.stop_requested = True
    assert trainer.run() == 130
    assert train(tmp_path, given, "cut") == 0
    name = "checkpoints/step_00000004/student/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "calm" / name).read_bytes()
    assert [p.name for p in (tmp_path / "calm" / "previews").iterdir()] == ["step_00000004.png"]


def test_a_short_way_takes_fewer_calls(tmp_path, given):
    overrides = [*given, f"output={tmp_path / 'x'}", "dr2.num_evaluations=5"]
    overrides.append("taught=[[2,6,16],[2,14,16]]")
    recipe = DistilRecipe(load_config(DistilConfig, tmp_path / "tiny.yaml", overrides))
    assert [teacher.calls for teacher in recipe.teachers] == [5, 3]


def test_a_narrower_student_learns_and_restores(tmp_path, given):
    settings = ["total_steps=3", "channels=[8,8]"]
    assert train(tmp_path, given, "run", *settings) == 0
    assert train(tmp_path, given, "again", *settings) == 0
    name = "final/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    overrides = [*given, f"output={tmp_path / 'x'}"]
    config = load_config(DistilConfig, tmp_path / "tiny.yaml", overrides)
    taught = {"factor": 2, "tau": 6, "student": str(tmp_path / "run/final")}
    remover, _ = load_remover(type(config.dr2)(**vars(config.dr2) | taught))
    wide = DistilRecipe(config).build()["student"].network
    assert remover.student.num_parameters() < 0.7 * wide.num_parameters()
    coarse = remover(face_pairs(config)[0, 0]["input"][None], Philox([5]))
    assert coarse.shape == (1, 3, 16, 16)
    assert coarse.isfinite().all()


def test_a_student_goes_on_from_another(tmp_path, given):
    assert train(tmp_path, given, "run", "total_steps=2", "export_precision=fp16") == 0
    first = load_student(tmp_path / "run/final").state_dict()
    init = [*given, f"output={tmp_path / 'x'}", f"init={tmp_path / 'run/final'}"]
    config = load_config(DistilConfig, tmp_path / "tiny.yaml", init)
    begun = DistilRecipe(config).build()["student"].network.state_dict()
    assert all(torch.equal(begun[name], value) for name, value in first.items())
    for overrides, says in (
        (["channels=[8,8]"], r"fit: unet_config.block_out_channels=\[16, 16\] instead of \[8, 8\]"),
        (["taught=[[2,6,16]]"], "does not fit: taught="),
        (["init=nowhere"], "nowhere"),
    ):
        config = load_config(DistilConfig, tmp_path / "tiny.yaml", [*init, *overrides])
        with pytest.raises(ConfigError, match=says):
            DistilRecipe(config).build()


def test_a_teacher_in_bf16_teaches_nearly_the_same(tmp_path, given):
    coarse = []
    for precision in ("fp32", "bf16"):
        overrides = [*given, f"output={tmp_path / 'x'}", f"precision={precision}"]
        recipe = DistilRecipe(load_config(DistilConfig, tmp_path / "tiny.yaml", overrides))
        student = recipe.build()["student"].network
        degraded = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
        coarse.append(recipe._teach(0, degraded, torch.tensor([1, 2])))
        assert student.dtype == torch.float32
        assert recipe.teachers[0].unet.dtype == {"fp32": torch.float32}.get(
            precision, torch.bfloat16
        )
    assert coarse[1].dtype == torch.float32
    assert 0 < (coarse[1] - coarse[0]).abs().mean() < 0.02


def test_teacher_and_student_begin_with_the_same_noise(tmp_path, given):
    """With τ = ω the teacher makes one call, which a fresh student repeats."""
    overrides = [*given, f"output={tmp_path / 'x'}", "taught=[[2,6,6]]", "dr2.num_evaluations=null"]
    config = load_config(DistilConfig, tmp_path / "tiny.yaml", overrides)
    recipe = DistilRecipe(config)
    network = recipe.build()["student"].network
    item = face_pairs(config)[0, 0]
    batch = {"input": item["input"][None], "seed": torch.tensor([item["seed"]]), "step": 0}
    answers = []
    hook = network.register_forward_hook(lambda *given: answers.append(given[-1]))
    ((_, loss, scalars),) = recipe.step({"student": network}, batch)
    hook.remove()
    wanted = recipe.teachers[0](batch["input"], Philox(batch["seed"], "distil"))
    assert torch.allclose(clamp_x0(answers[0]), wanted, atol=1e-5)
    assert loss.requires_grad
    assert scalars["student/squared_error"] < 1e-2  # by what is outside [-1,1]


def test_heads_of_attention_do_not_get_narrower():
    teacher = make_patched()
    with pytest.raises(ConfigError, match="narrower than a head of the teacher's attention"):
        student_of(
            teacher,
            [(2, 6, 16)],
            num_steps=100,
            prediction_type="sample",
            teacher_sha256="",
            channels=[4, 4],
        )


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["taught=[]"], "must be a list of"),
        (["taught=[[2,6]]"], "must be a list of"),
        (["dr2.mode=auto"], "dr2.mode of a teacher must be fixed"),
        (["dr2.student=x"], "dr2.student of a teacher must be None"),
        (["pairs.input_size=32"], "must be the side of the teacher's faces, 16"),
        (["export_precision=int8"], "choose fp32 or fp16"),
        (["channels=[8]"], "must be 2 widths"),
        (["channels=[8,12]"], "a multiple of its 8 norm groups"),
        (["channels=[-8,8]"], "a multiple of its 8 norm groups"),
    ],
)
def test_settings_that_cannot_be(tmp_path, given, overrides, says):
    config = load_config(
        DistilConfig, tmp_path / "tiny.yaml", [*given, f"output={tmp_path / 'x'}", *overrides]
    )
    with pytest.raises(ConfigError, match=says):
        DistilRecipe(config).build()
    assert len(FaceDataset(config.data.path, size=16)) == 6
