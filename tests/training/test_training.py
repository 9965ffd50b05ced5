import json
import math
import os
import signal
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import (
    DEVICE,
    PATIENCE_SECONDS,
    ROOT,
    make_pictures,
    make_pixels,
    run_command,
    start_command,
    wait_until,
    waits_are_errors,
)
from PIL import Image
from safetensors.torch import load_file

from dr2pipe.core import precision
from dr2pipe.core.config import load_config
from dr2pipe.core.errors import ConfigError, FolderInUseError
from dr2pipe.core.files import locked
from dr2pipe.data.folders import FaceDataset
from dr2pipe.data.showings import ShuffledBatches
from dr2pipe.diffusion.pipeline import DR2Pipeline
from dr2pipe.training import recipes
from dr2pipe.training.recipes import run_recipe
from dr2pipe.training.recipes.ddpm import DDPMConfig, DDPMRecipe
from dr2pipe.training.trainer import Trainer

SCRIPT = ROOT / "scripts" / "train.py"
CONFIG = """
recipe: ddpm
data: {size: 16}
unet: {channels: [8, 16], attention_sizes: [8], attention_head_channels: 8, norm_groups: 4, dropout: 0.1}
learning_rate: 1.0e-3
warmup_steps: 3
schedule: cosine
max_timestep: 600
total_steps: 12
batch_size: 4
save_every_steps: 3
preview_every_steps: 5
log_every_steps: 2
ema_decay: 0.9
"""


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    pixels = np.stack([make_pixels(int(i), 16, 16) for i in rng.integers(0, 1000, 10)])
    source = np.array([0, 1] * 5, dtype=np.uint8)
    files = np.array([f"f{i}.png" for i in range(10)])
    np.savez(tmp_path / "faces.npz", images=pixels, files=files, source=source)
    return tmp_path / "faces.npz"


@pytest.fixture
def config_file(tmp_path):
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    return tmp_path / "tiny.yaml"


def train(config_file, data, output, *overrides):
    return run_recipe(config_file, [f"data.path={data}", f"output={output}", *overrides])


def weights_of(output, step):
    folder = output / "checkpoints" / f"step_{step:08d}"
    state = torch.load(folder / "training_state.pt", weights_only=True)
    live = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    return live, state["emas"]["unet"]["shadow_params"], state


def log_of(output):
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def assert_same_training(a, b, step):
    live_a, ema_a, state_a = weights_of(a, step)
    live_b, ema_b, state_b = weights_of(b, step)
    assert live_a.keys() == live_b.keys()
    assert all(torch.equal(live_a[k], live_b[k]) for k in live_a)
    assert all(torch.equal(x, y) for x, y in zip(ema_a, ema_b, strict=True))
    moments_a = state_a["optimizers"]["unet"]["state"]
    moments_b = state_b["optimizers"]["unet"]["state"]
    assert all(torch.equal(moments_a[i]["exp_avg"], moments_b[i]["exp_avg"]) for i in moments_a)


def test_a_finished_run_leaves_a_model_that_restores(config_file, data, tmp_path):
    assert train(config_file, data, tmp_path / "run") == 0
    run = tmp_path / "run"
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == [
        "step_00000009", "step_00000012"
    ]  # fmt: skip
    assert (run / "run.yaml").is_file()
    assert sorted(p.name for p in (run / "previews").iterdir()) == [
        "step_00000005.png", "step_00000010.png"
    ]  # fmt: skip
    assert any((run / "tensorboard").iterdir())
    records = log_of(run)
    assert [r["step"] for r in records] == [2, 4, 6, 8, 10, 12]
    assert all(math.isfinite(r["unet/loss"]) and r["images_per_second"] > 0 for r in records)
    pipeline = DR2Pipeline.from_pretrained(run / "final")
    _, ema, _ = weights_of(run, 12)
    assert all(torch.equal(p, e) for p, e in zip(pipeline.unet.parameters(), ema, strict=True))
    assert pipeline.max_timestep == 600
    assert pipeline(make_pixels(0), tau=3, factor=2).images[0].size == (16, 16)


def test_fp16_export(config_file, data, tmp_path):
    train(config_file, data, tmp_path / "run", "total_steps=2", "export_precision=fp16")
    weights = load_file(tmp_path / "run/final/unet/diffusion_pytorch_model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.float16}


def test_training_learns(config_file, data, tmp_path):
    train(config_file, data, tmp_path / "run", "total_steps=150", "save_every_steps=150",
          "preview_every_steps=1000", "log_every_steps=10", "schedule=constant")  # fmt: skip
    losses = [r["unet/loss"] for r in log_of(tmp_path / "run")]
    assert np.mean(losses[-3:]) < 0.7 * losses[0]


def test_resuming_repeats_an_undisturbed_run(config_file, data, tmp_path):
    train(config_file, data, tmp_path / "calm")
    # The learning-rate schedule needs the true end, so the first part is stopped, not shortened.
    dataset = FaceDataset(data, size=16)
    overrides = [f"data.path={data}", f"output={tmp_path / 'cut'}"]
    config = load_config(DDPMConfig, config_file, overrides)
    trainer = Trainer(config, DDPMRecipe(config), dataset)
    trainer.stop_requested = True
    assert trainer.run() == 130
    assert [p.name for p in (tmp_path / "cut" / "checkpoints").iterdir()] == ["step_00000001"]
    assert train(config_file, data, tmp_path / "cut") == 0
    assert_same_training(tmp_path / "calm", tmp_path / "cut", 12)
    calm = [(r["step"], r["unet/loss"]) for r in log_of(tmp_path / "calm")]
    cut = [(r["step"], r["unet/loss"]) for r in log_of(tmp_path / "cut")]
    # The line that the stop fell into is whole too, though it was summed in two parts.
    assert [step for step, _ in cut] == [step for step, _ in calm]
    assert [loss for _, loss in cut] == pytest.approx([loss for _, loss in calm], rel=1e-6)
    assert [r["pictures"] for r in log_of(tmp_path / "cut")] == [
        r["pictures"] for r in log_of(tmp_path / "calm")
    ]


def test_one_run_at_a_time(config_file, data, tmp_path):
    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run"), pytest.raises(FolderInUseError, match="another run"):
        train(config_file, data, tmp_path / "run")


def test_a_broken_gradient_never_reaches_a_checkpoint(config_file, data, tmp_path, monkeypatch):
    clip = Accelerator.clip_grad_norm_
    calls = []

    def broken(self, parameters, largest):
        calls.append(clip(self, parameters, largest))
        return torch.tensor(math.nan) if len(calls) == 3 else calls[-1]

    monkeypatch.setattr(Accelerator, "clip_grad_norm_", broken)
    with pytest.raises(
        FloatingPointError, match=r"gradient of 'unet' is nan at step 2; .*f\d\.png"
    ):
        train(config_file, data, tmp_path / "run", "save_every_steps=1")
    live, _, _ = weights_of(tmp_path / "run", 2)
    assert all(value.isfinite().all() for value in live.values())


def test_a_broken_step_is_found_late_and_named(config_file, data, tmp_path, monkeypatch):
    """Nothing is read from the device in between, and what is saved is never broken."""
    settings = ["log_every_steps=100", "save_every_steps=4", "preview_every_steps=100"]
    assert train(config_file, data, tmp_path / "calm", *settings) == 0
    step, seen = DDPMRecipe.step, []

    def broken(self, networks, batch):
        for name, loss, scalars in step(self, networks, batch):
            seen.append((batch["step"], list(batch["name"])))
            yield name, loss * math.nan if batch["step"] == 5 else loss, scalars

    monkeypatch.setattr(DDPMRecipe, "step", broken)
    with pytest.raises(FloatingPointError, match=r"the loss of 'unet' is nan at step 5") as raised:
        train(config_file, data, tmp_path / "run", *settings)
    assert "the same command repeats the steps" in str(raised.value)
    assert ", ".join(dict(seen)[5]) in str(raised.value)
    assert [at for at, _ in seen] == list(range(8))
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000004"]
    monkeypatch.undo()
    assert train(config_file, data, tmp_path / "run", *settings) == 0
    assert_same_training(tmp_path / "calm", tmp_path / "run", 12)


def test_weights_that_the_last_update_broke_are_not_saved(config_file, data, tmp_path, monkeypatch):
    step = DDPMRecipe.step

    def broken(self, networks, batch):
        yield from step(self, networks, batch)
        networks["unet"].conv_out.bias.data.fill_(math.inf)

    monkeypatch.setattr(DDPMRecipe, "step", broken)
    with pytest.raises(FloatingPointError, match="weights of 'unet' are not finite after step 1"):
        train(config_file, data, tmp_path / "run", "total_steps=1", "preview_every_steps=9")
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert not (tmp_path / "run" / "final").exists()


@pytest.mark.parametrize(
    ("seconds", "other_seconds", "asked"),
    [
        (0.01, 0.01, [1, 8, 16, 24]),  # when it saves, every 8 steps
        (2.0, 2.0, [1, 3, 5, 7, *range(8, 31, 2)]),
        (1.0, 7.0, list(range(1, 31))),  # the slow one counts, too
    ],
)
def test_processes_ask_each_other_for_a_stop_every_few_seconds(
    config_file, data, tmp_path, monkeypatch, seconds, other_seconds, asked
):
    overrides = [f"data.path={data}", f"output={tmp_path / 'run'}", "save_every_steps=8"]
    config = load_config(DDPMConfig, config_file, overrides)
    trainer = Trainer(config, DDPMRecipe(config), FaceDataset(data, size=16))
    flags = []

    def reduce(said, reduction):
        flags.append(float(said[0]))
        return said + torch.tensor([1.0, other_seconds])  # the other process was told to stop

    trainer.accelerator = SimpleNamespace(num_processes=2, device="cpu", reduce=reduce)
    start, stops = trainer._asked_at, []
    for trainer.step in range(1, 31):
        now = start + trainer.step * seconds
        monkeypatch.setattr("dr2pipe.training.trainer.time.monotonic", lambda now=now: now)
        if trainer._any_process_stops():
            stops.append(trainer.step)
    assert stops == asked
    assert flags == [0.0] * len(asked)


# A launcher or a cluster stops the whole group: the trainer and its loader's workers.
@pytest.mark.parametrize(
    ("number", "group"),
    [(signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGKILL, True)],
)
def test_stopped_from_outside(config_file, data, tmp_path, number, group):
    settings = ["schedule=constant", "save_every_steps=5", "preview_every_steps=1000"]
    folder = tmp_path / "cut" / "checkpoints"
    process = start_command(
        SCRIPT, config_file, f"data.path={data}", f"output={tmp_path / 'cut'}",
        f"loader_workers={int(group)}", *settings, "total_steps=1000000",
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_until(lambda: list(folder.glob("step_*")), process)
    (os.killpg if group else os.kill)(process.pid, number)
    code = process.wait(timeout=PATIENCE_SECONDS)
    assert code == (130 if number == signal.SIGTERM else -signal.SIGKILL)
    reached = max(int(path.name.removeprefix("step_")) for path in folder.glob("step_*"))
    end = reached + 4
    for name in ("cut", "calm"):
        assert train(config_file, data, tmp_path / name, *settings, f"total_steps={end}") == 0
    assert_same_training(tmp_path / "calm", tmp_path / "cut", end)
    assert not [p for p in folder.iterdir() if "partial" in p.name]


def test_two_processes_see_what_one_sees(config_file, data, tmp_path):
    common = ["total_steps=6", "log_every_steps=1", "unet.dropout=0.0", f"data.path={data}"]
    two = run_command(
        "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, SCRIPT, config_file,
        f"output={tmp_path / 'two'}", "batch_size=4", *common,
    )  # fmt: skip
    assert two.returncode == 0, two.stderr
    train(config_file, data, tmp_path / "one", "batch_size=8", *common)
    train(config_file, data, tmp_path / "acc", "batch_size=4", "accumulation_steps=2", *common)
    losses = {
        name: [r["unet/loss"] for r in log_of(tmp_path / name)] for name in ("one", "two", "acc")
    }
    assert np.allclose(losses["one"], losses["two"], atol=1e-4)
    assert np.allclose(losses["one"], losses["acc"], atol=1e-4)
    for name in losses:
        assert [r["pictures"] for r in log_of(tmp_path / name)] == [8] * 6


def test_nan_stops_with_the_step_and_the_files(config_file, data, tmp_path):
    with pytest.raises(FloatingPointError, match=r"of 'unet' is (nan|inf) at step \d+; .*f\d\.png"):
        train(config_file, data, tmp_path / "run", "learning_rate=1e30", "max_grad_norm=1e30")


@pytest.mark.parametrize("has_bf16", [True, False])
def test_auto_trains_in_what_the_machine_multiplies(
    config_file, data, tmp_path, monkeypatch, has_bf16
):
    used = set()

    class Watched(DDPMRecipe):
        def build(self):
            built = super().build()
            built["unet"].network.conv_in.register_forward_hook(
                lambda module, args, output: used.add(output.dtype)
            )
            return built

    schema, _, make_dataset = recipes.RECIPES["ddpm"]
    monkeypatch.setitem(recipes.RECIPES, "ddpm", (schema, Watched, make_dataset))
    monkeypatch.setattr(precision, "multiplies", lambda device, name: has_bf16)
    few = ["total_steps=1", "preview_every_steps=2"]
    train(config_file, data, tmp_path / "run", "precision=auto", *few)
    assert used == {torch.bfloat16 if has_bf16 else torch.float32}
    written = (tmp_path / "run" / "run.yaml").read_text()
    assert f"precision: {'bf16' if has_bf16 else 'fp32'}\n" in written


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["recipe=gan"], "unknown recipe 'gan'; choose one of ddpm"),
        (["data.size=32"], "holds 16x16x3 pictures, the config asks for 32x32x3"),
        (["data.sources=[7]"], r"has sources \[0, 1\], not \[7\]"),
        (["data.path=nowhere.npz"], "no training data at nowhere.npz"),
        (["schedule=linear"], "choose constant, cosine or halving"),
        (["precision=int4"], "choose auto, fp32, bf16, fp16"),
        (["max_timestep=1000"], r"0\.\.999"),
        (["unet.attention_sizes=[3]"], r"none of the feature sizes \[16, 8\]"),
        (["unet.width=3"], "unknown key 'unet.width'"),
        (["batch_size=0"], "batch_size=0 must be at least 1"),
        (["log_every_steps=0"], "log_every_steps=0 must be at least 1"),
        (["max_grad_norm=0"], "max_grad_norm=0.0 must be above 0; .inf clips no gradient"),
        (["max_grad_norm=-1"], "must be above 0"),
        (["ema_decay=1"], "ema_decay=1.0 must be at least 0 and below 1"),
        (["learning_rate=-1"], "learning_rate=-1.0 must not be below 0"),
        (["warmup_steps=-1"], "warmup_steps=-1 must not be below 0"),
        (["loader_workers=-1"], "loader_workers=-1 must not be below 0"),
        (["halve_at_steps=[1]"], "halve_at_steps belongs to schedule=halving"),
    ],
)
def test_errors_come_before_the_first_step(config_file, data, tmp_path, overrides, says):
    with pytest.raises(ValueError, match=says):
        train(config_file, data, tmp_path / "run", *overrides)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_network_is_refused(config_file, data, tmp_path):
    train(config_file, data, tmp_path / "run", "total_steps=1")
    with pytest.raises(ConfigError, match="another block_out_channels"):
        train(config_file, data, tmp_path / "run", "unet.channels=[8, 24]")


def test_resuming_with_other_settings_warns_and_uses_them(config_file, data, tmp_path, caplog):
    train(config_file, data, tmp_path / "run", "total_steps=2")
    caplog.clear()
    settings = ["total_steps=3", "learning_rate=0.5", "schedule=constant", "warmup_steps=0"]
    train(config_file, data, tmp_path / "run", *settings)
    assert "resuming with another" in caplog.text
    assert "learning_rate" in caplog.text
    _, _, state = weights_of(tmp_path / "run", 3)
    assert state["optimizers"]["unet"]["param_groups"][0]["lr"] == 0.5


def test_resuming_with_other_faces_warns(config_file, data, tmp_path, caplog):
    train(config_file, data, tmp_path / "run", "total_steps=2")
    caplog.clear()
    train(config_file, data, tmp_path / "run", "total_steps=3", "schedule=constant")
    assert "number of faces" not in caplog.text
    train(config_file, data, tmp_path / "run", "total_steps=4", "data.sources=[0]")
    assert "number of faces" in caplog.text


def test_another_end_of_a_cosine_is_told_and_a_past_end_refused(
    config_file, data, tmp_path, caplog
):
    train(config_file, data, tmp_path / "run", "total_steps=4")
    train(config_file, data, tmp_path / "run", "total_steps=5")
    assert "resuming with another total_steps" in caplog.text
    with pytest.raises(ConfigError, match="checkpoint of step 5, past total_steps=3"):
        train(config_file, data, tmp_path / "run", "total_steps=3")


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        (None, "is no readable .npz file"),
        ({"images": np.zeros((2, 16, 16, 3), np.uint8)}, "no .npz file with the arrays"),
        ({"images": np.zeros((2, 16, 16, 3)), "files": ["a", "b"]}, "images of float64"),
        ({"images": np.zeros((2, 16, 16, 3), np.uint8), "files": ["a"]}, "holds files"),
    ],
)
def test_npz_files_of_anything_else(config_file, tmp_path, arrays, says):
    path = tmp_path / "other.npz"
    if arrays is None:
        path.write_bytes(b"no archive")
    else:
        np.savez(path, **arrays)
    with pytest.raises(ValueError, match=says):
        train(config_file, path, tmp_path / "run")


def test_squeezed_pictures_are_told(tmp_path, caplog):
    make_pictures(tmp_path / "in", 2, height=30, width=30)
    FaceDataset(tmp_path / "in", size=16)
    assert not caplog.text
    make_pictures(tmp_path / "in" / "wide", 1, height=20, width=40)
    FaceDataset(tmp_path / "in", size=16)
    assert "1 of 3 pictures are not square" in caplog.text


def test_folders_of_pictures(tmp_path):
    make_pictures(tmp_path / "in", 3, height=30, width=30)
    dataset = FaceDataset(tmp_path / "in", size=16)
    item = dataset[(1, 0)]
    assert item["image"].shape == (3, 16, 16)
    assert item["name"].endswith("face_001.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no training pictures"):
        FaceDataset(tmp_path / "empty", size=16)
    # Pixels that are damaged in the middle of a file are found, and named, when they are read.
    whole = bytearray((tmp_path / "in" / "face_000.png").read_bytes())
    whole[len(whole) // 2] ^= 0xFF
    (tmp_path / "in" / "zz.png").write_bytes(whole)
    with pytest.raises(ValueError, match=r"zz\.png: truncated or damaged"):
        FaceDataset(tmp_path / "in", size=16)[(3, 0)]


def test_files_that_are_no_pictures_are_found_before_training(tmp_path):
    folder = tmp_path / "faces"
    folder.mkdir()
    Image.fromarray(make_pixels(0, 16, 16)).save(folder / "good.png")
    Image.fromarray(make_pixels(0, 4, 4)).save(folder / "tiny.png")
    (folder / "letter.jpg").write_text("no picture")
    for kind in ("png", "jpg"):
        Image.fromarray(make_pixels(1, 16, 16)).save(folder / f"half.{kind}")
        whole = (folder / f"half.{kind}").read_bytes()
        (folder / f"half.{kind}").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(make_pixels(2, 16, 12)).save(folder / "narrow.png")
    with pytest.raises(ValueError, match="5 of 6 files") as raised:
        FaceDataset(folder, size=16)
    assert "half.png: truncated" in str(raised.value)
    assert "half.jpg: truncated" in str(raised.value)
    assert "narrow.png: 12x16 pixels are fewer than data.size=16" in str(raised.value)
    assert "letter.jpg: not an image file" in str(raised.value)
    assert "tiny.png: 4x4 pixels are too few" in str(raised.value)


def test_every_pass_shows_every_face_once_and_half_are_flipped(data):
    dataset = FaceDataset(data, size=16, seed=3)
    batches = ShuffledBatches(
        10, seed=3, batch_size=5, accumulation_steps=1, rank=0, world_size=1,
        first_step=0, total_steps=200,
    )  # fmt: skip
    keys = [key for batch in batches for key in batch]
    assert [position for _, position in keys] == list(range(1000))
    for start in range(0, 1000, 10):
        assert sorted(index for index, _ in keys[start : start + 10]) == list(range(10))
    upright = FaceDataset(data, size=16, seed=3, flip=False)
    flips = 0
    for key in keys:
        shown, original = dataset[key]["image"], upright[key]["image"]
        mirrored = torch.equal(shown, original.flip(-1))
        assert mirrored or torch.equal(shown, original)
        assert mirrored == dataset[key]["flipped"]
        flips += mirrored
    assert 400 < flips < 600


def test_learned_variance_and_p2_weighting(config_file, data, tmp_path):
    run = tmp_path / "run"
    settings = ["variance=learned_range", "p2_gamma=1.0", "total_steps=20", "log_every_steps=5"]
    assert train(config_file, data, run, *settings) == 0
    records = log_of(run)
    assert all(r["unet/bound"] > 0 and r["unet/epsilon"] > 0 for r in records)
    assert records[-1]["unet/loss"] < records[0]["unet/loss"]
    pipeline = DR2Pipeline.from_pretrained(run / "final")
    assert pipeline.unet.config.out_channels == 6
    assert pipeline.scheduler.config.variance_type == "learned_range"
    assert pipeline(make_pixels(0), tau=3, omega=6, factor=2).images[0].size == (16, 16)


@pytest.mark.gpu
def test_a_step_waits_for_nothing(config_file, data, tmp_path):
    """Between two lines of the log, the host hands steps over without a wait."""
    settings = ["log_every_steps=100", "save_every_steps=100", "unet.dropout=0.1"]
    overrides = [f"data.path={data}", f"output={tmp_path / 'run'}", *settings]
    config = load_config(DDPMConfig, config_file, overrides)
    trainer = Trainer(config, DDPMRecipe(config), FaceDataset(data, size=16))
    assert trainer.accelerator.device.type == DEVICE
    batches = iter(trainer._loader())
    trainer._optimizer_step(batches)  # whatever is made once
    with waits_are_errors():
        for _ in range(3):
            trainer._optimizer_step(batches)
    assert all(math.isfinite(value) for value in trainer.window.means().values())


@pytest.mark.gpu
def test_training_on_a_gpu_resumes_and_restores(config_file, data, tmp_path):
    assert train(config_file, data, tmp_path / "run", "total_steps=3") == 0
    assert train(config_file, data, tmp_path / "run", "total_steps=6") == 0
    assert [r["step"] for r in log_of(tmp_path / "run")] == [2, 3, 4, 6]
    pipeline = DR2Pipeline.from_pretrained(tmp_path / "run" / "final").to(DEVICE)
    assert pipeline(make_pixels(0), tau=3, factor=2).images[0].size == (16, 16)
