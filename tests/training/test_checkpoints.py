import logging
import os
import resource
import subprocess
import sys

import pytest
import torch
import yaml
from conftest import ROOT, make_pictures

from dr2pipe.core.errors import CheckpointError, ConfigError
from dr2pipe.core.markers import read_marker
from dr2pipe.data.folders import FaceDataset
from dr2pipe.training.recipes import export_run, run_recipe

CONFIG = """
recipe: ddpm
data: {size: 16, sources: null}
unet: {channels: [8, 8], attention_sizes: [], attention_head_channels: 8, norm_groups: 4}
batch_size: 2
save_every_steps: 1
preview_every_steps: 1
trackers: []
"""


@pytest.fixture
def config_file(tmp_path):
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    make_pictures(tmp_path / "faces", 3, height=16, width=16)
    return tmp_path / "tiny.yaml"


def train(config_file, steps, output="run"):
    folder = config_file.parent
    paths = [f"data.path={folder / 'faces'}", f"output={folder / output}"]
    return run_recipe(config_file, [*paths, f"total_steps={steps}"])


@pytest.mark.parametrize("name", ["training_state.pt", "unet/diffusion_pytorch_model.safetensors"])
@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "gone", "fifo"])
def test_the_newest_whole_checkpoint_is_taken(config_file, tmp_path, caplog, name, damage):
    assert train(config_file, 3) == 0
    assert train(config_file, 4, "other") == 0
    newest = tmp_path / "run" / "checkpoints" / "step_00000003" / name
    content = newest.read_bytes()
    middle = len(content) // 2
    newest.unlink()
    if damage == "fifo":
        os.mkfifo(newest)
    elif damage != "gone":
        flipped = bytearray(content)
        for place in range(middle, middle + 300):
            flipped[place] ^= 255
        newest.write_bytes({"empty": b"", "cut": content[:middle], "flipped": flipped}[damage])
    with caplog.at_level(logging.WARNING):
        assert train(config_file, 4) == 0
    assert "step_00000003 is damaged and was passed over" in caplog.text
    same = "checkpoints/step_00000004/unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "run" / same).read_bytes() == (tmp_path / "other" / same).read_bytes()


def test_all_checkpoints_damaged(config_file, tmp_path):
    train(config_file, 2)
    for state in (tmp_path / "run").rglob("training_state.pt"):
        state.write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=r"all checkpoints in .* the newest is .*step_00000002"
    ):
        train(config_file, 3)


def test_the_newest_whole_checkpoint_is_exported(config_file, tmp_path):
    train(config_file, 2)
    (tmp_path / "run/checkpoints/step_00000002/training_state.pt").write_bytes(b"")
    assert export_run(tmp_path / "run", tmp_path / "model") == 1
    (tmp_path / "run/checkpoints/step_00000001/training_state.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="step_00000001"):
        export_run(tmp_path / "run", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_settings_that_train_more_networks(config_file, tmp_path):
    train(config_file, 1)
    given = [f"data.path={tmp_path / 'faces'}", f"output={tmp_path / 'run'}", "total_steps=2"]
    with pytest.raises(ConfigError, match="has no slow: these settings train more networks"):
        run_recipe(config_file, [*given, "slow_ema_decay=0.9"])
    assert train(config_file, 2) == 0


def test_a_state_that_holds_something_else(config_file, tmp_path, caplog):
    train(config_file, 2)
    torch.save({"recipe": "ddpm"}, tmp_path / "run/checkpoints/step_00000002/training_state.pt")
    assert train(config_file, 2) == 0
    assert "training_state.pt has no config, step" in caplog.text


@pytest.mark.parametrize(
    "change", [{"optimizers": {}}, {"emas": []}, {"window": 3}, {"step": "many"}, {"config": None}]
)
def test_a_state_that_does_not_fit(config_file, tmp_path, change):
    train(config_file, 2)
    path = tmp_path / "run/checkpoints/step_00000002/training_state.pt"
    torch.save(torch.load(path, weights_only=True) | change, path)
    with pytest.raises(CheckpointError, match="checkpoint that does not fit this configuration"):
        train(config_file, 3)


def test_a_run_in_the_folder_of_faces_does_not_train_on_its_own_pictures(config_file, tmp_path):
    train(config_file, 2, "faces/run")
    assert list((tmp_path / "faces/run/previews").iterdir())
    assert len(FaceDataset(tmp_path / "faces", size=16)) == 3
    marker = read_marker(tmp_path / "faces" / "run")
    assert marker["kind"] == "training"
    assert marker["config"]["total_steps"] == 2


def test_folders_of_others_are_refused(config_file, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.yaml").write_text("mine: 1\n")
    with pytest.raises(ConfigError, match=r"holds run\.yaml, which no run of this command wrote"):
        train(config_file, 1)
    assert yaml.safe_load((folder / "run.yaml").read_text()) == {"mine": 1}
    (folder / "run.yaml").write_text("dr2pipe_run: 1\nresult_folders: [restored]\n")
    with pytest.raises(ConfigError, match="results of another command"):
        train(config_file, 1)


def test_a_limit_of_the_file_size_is_one_line_and_keeps_the_earlier_checkpoint(
    config_file, tmp_path
):
    train(config_file, 1)
    paths = [f"data.path={tmp_path / 'faces'}", f"output={tmp_path / 'run'}", "total_steps=3"]
    done = subprocess.run(
        [sys.executable, "-m", "dr2pipe", "train", str(config_file), *paths],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000)),
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "step_00000002" in done.stderr.splitlines()[-1]
    assert [p.name for p in (tmp_path / "run" / "checkpoints").glob("step_*")] == ["step_00000001"]
    assert train(config_file, 3) == 0
