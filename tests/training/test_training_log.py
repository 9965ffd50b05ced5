"""What a run writes beside checkpoints: log lines, trackers, previews."""

import json

import numpy as np
import pytest
import torch
from conftest import make_pixels
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dr2pipe.core.config import load_config
from dr2pipe.core.errors import ConfigError, NotFiniteError
from dr2pipe.data.folders import FaceDataset
from dr2pipe.training.log import LogWindow, chosen_trackers
from dr2pipe.training.previews import tile_rows
from dr2pipe.training.recipes import run_recipe
from dr2pipe.training.recipes.ddpm import DDPMConfig, DDPMRecipe
from dr2pipe.training.trainer import Trainer


@pytest.fixture
def given(tmp_path):
    pixels = np.stack([make_pixels(i, 16, 16) for i in range(4)])
    files = np.array([f"f{i}.png" for i in range(4)])
    np.savez(tmp_path / "faces.npz", images=pixels, files=files)
    return [
        "recipe=ddpm", f"data.path={tmp_path / 'faces.npz'}", "data.size=16", f"output={tmp_path / 'run'}",
        "unet.channels=[8, 16]", "unet.attention_sizes=[8]", "unet.attention_head_channels=8",
        "unet.norm_groups=4", "total_steps=4", "batch_size=2", "log_every_steps=1",
        "preview_every_steps=2", "save_every_steps=10",
    ]  # fmt: skip


@pytest.fixture
def config_file(tmp_path):
    (tmp_path / "empty.yaml").write_text("recipe: ddpm\n")
    return tmp_path / "empty.yaml"


def board_of(run):
    board = EventAccumulator(str(run / "tensorboard" / "dr2pipe"))
    board.Reload()
    return board


def test_trackers_have_what_the_log_has(config_file, given, tmp_path):
    run = tmp_path / "run"
    run_recipe(config_file, given)
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    board = board_of(run)
    assert set(board.Tags()["scalars"]) == set(lines[0]) - {"step"}
    events = board.Scalars("unet/loss")
    assert [event.step for event in events] == [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [e.value for e in events] == pytest.approx([x["unet/loss"] for x in lines], rel=1e-6)
    (tag,) = board.Tags()["images"]
    shown = {image.step: (image.width, image.height) for image in board.Images(tag)}
    assert shown.keys() == {2, 4}
    for step, size in shown.items():
        assert Image.open(run / f"previews/step_{step:08d}.png").size == size


def test_the_logs_of_a_resumed_run_go_on(config_file, given, tmp_path):
    run = tmp_path / "run"
    config = load_config(DDPMConfig, None, given)
    trainer = Trainer(config, DDPMRecipe(config), FaceDataset(config.data.path, size=16))
    trainer.stop_requested = True
    assert trainer.run() == 130
    with (run / "log.jsonl").open("a") as log:  # of steps after the last checkpoint
        log.write('{"step": 2, "unet/loss": 7.0}\n{"step": 3, "unet')
    run_recipe(config_file, given)
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[1]["unet/loss"] != 7.0
    assert [event.step for event in board_of(run).Scalars("unet/loss")] == [1, 2, 3, 4]


def test_without_trackers_only_the_log_is_written(config_file, given, tmp_path):
    run_recipe(config_file, [*given, "trackers=[]"])
    assert (tmp_path / "run/log.jsonl").is_file()
    assert not (tmp_path / "run/tensorboard").exists()


def test_training_leaves_the_global_stream_alone(config_file, given):
    before = torch.get_rng_state()
    run_recipe(config_file, [*given, "unet.dropout=0.1"])
    assert torch.equal(torch.get_rng_state(), before)


def test_unknown_and_missing_trackers(monkeypatch, caplog):
    assert chosen_trackers(None) == chosen_trackers(["tensorboard"]) == ["tensorboard"]
    with pytest.raises(ConfigError, match="unknown 'mlflow'; choose from tensorboard, wandb"):
        chosen_trackers(["mlflow"])
    monkeypatch.setattr("dr2pipe.training.log.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="wandb is not installed; run: pip install wandb"):
        chosen_trackers(["wandb"])
    with caplog.at_level("INFO"):
        assert chosen_trackers(None) == []
    assert "scalars go to log.jsonl alone" in caplog.text


def test_previews_are_rows_of_pictures():
    rows = [torch.full((2, 3, 4, 5), value) for value in (0.5, -3.0)]
    tiled = tile_rows(*rows)
    assert tiled.shape == (3, 8, 10)
    assert (tiled[:, :4] == 0.5).all()
    assert (tiled[:, 4:] == -1).all()


def test_a_window_reads_nothing_before_it_is_asked():
    window = LogWindow()
    # A tensor without content: whoever reads it fails.
    window.add("loss", torch.zeros((), device="meta"), step=0)
    with pytest.raises(NotImplementedError):
        window.read()


def test_a_window_of_many_values():
    window = LogWindow()
    for step in range(4):
        window.add("b/loss", torch.tensor(float(step), requires_grad=True), step=step, what="b")
        window.add("a/some", torch.tensor([step / 2], dtype=torch.float64), step=step)
    window.add("rare", torch.tensor(torch.inf), step=3)  # which it may be
    assert window.means() == {"a/some": 0.75, "b/loss": 1.5, "rare": torch.inf}
    later = LogWindow()
    later.load_state_dict(window.state_dict())
    later.add("b/loss", torch.tensor(6.5), step=4, what="b")
    assert later.means()["b/loss"] == 2.5
    assert later.counts == {"a/some": 4, "b/loss": 5, "rare": 1}


def test_a_window_names_the_first_broken_value():
    window = LogWindow()
    for step, value in enumerate((1.0, torch.nan, torch.inf)):
        pictures = [f"p{step}.png"]
        window.add(
            "loss", torch.tensor(value), step=step, pictures=pictures, what="the loss of 'x'"
        )
    with pytest.raises(NotFiniteError, match=r"^the loss of 'x' is nan at step 1; .*: p1\.png\. "):
        window.means()
