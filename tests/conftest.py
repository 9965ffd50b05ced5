"""Tiny real networks and pictures; nothing here needs a download or a GPU."""

import contextlib
import csv
import io
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from diffusers import UNet2DModel
from diffusers.utils import logging as diffusers_logging
from PIL import Image

from dr2pipe.core import files
from dr2pipe.core.config import load_config
from dr2pipe.diffusion.auto import INPUTS, AutoSetting
from dr2pipe.diffusion.degradation_features import FEATURES
from dr2pipe.diffusion.patched_unet import PatchedUNet
from dr2pipe.diffusion.pipeline import DR2Pipeline
from dr2pipe.diffusion.timesteps import build_scheduler
from dr2pipe.enhancers import build_enhancer
from dr2pipe.evaluation.evaluate import evaluate
from dr2pipe.evaluation.fit_auto import save_auto
from dr2pipe.evaluation.protocol import Protocol
from dr2pipe.runs import video
from dr2pipe.runs.video_config import VideoConfig

ROOT = Path(__file__).resolve().parent.parent
# One thread: several tests run at once, and small networks gain nothing from more. The processes
# that tests start inherit it: the last bits of a convolution depend on the number of threads.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(1)
# Of tests marked gpu. Without a GPU, `pytest -m gpu` rehearses them on the CPU.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def make_unet(out_channels=3, size=16, seed=0):
    torch.manual_seed(seed)
    return UNet2DModel(
        sample_size=size,
        in_channels=3,
        out_channels=out_channels,
        layers_per_block=1,
        block_out_channels=(16, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=8,
    ).eval()


def make_patched(**settings):
    torch.manual_seed(0)
    sizes = {"channels": (8, 16), "attention_sizes": (4,), "attention_head_channels": 8}
    return PatchedUNet(**{"sample_size": 16, "norm_groups": 4} | sizes | settings).eval()


@pytest.fixture(autouse=True)
def libraries_are_loud_again():
    """A command silences diffusers for the rest of its process, which here goes on.

    Fixtures of whole modules run commands too, so it is undone before each test.
    """
    diffusers_logging.set_verbosity_warning()
    diffusers_logging.enable_progress_bar()


@pytest.fixture(autouse=True)
def accelerate_is_as_new():
    """A training that ends by an error leaves its precision behind, which the next one refuses."""
    AcceleratorState._reset_state()


@pytest.fixture(autouse=True)
def same_random_numbers():
    """A test draws the same, alone and after others."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory, monkeypatch):
    """No test reads or writes the downloads of the person who runs it."""
    if "DR2PIPE_HOME" not in os.environ:
        monkeypatch.setenv("DR2PIPE_HOME", str(tmp_path_factory.getbasetemp() / "home"))


@pytest.fixture(scope="session")
def unet():
    return make_unet()


@pytest.fixture(scope="session")
def unet6():
    return make_unet(out_channels=6)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, unet):
    """A DR2 pipeline folder with a 16-pixel network."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    DR2Pipeline(unet, build_scheduler("ddim")).save_pretrained(folder)
    return folder


def make_pixels(seed, height=20, width=20, channels=3):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 4, channels), dtype=np.uint8)
    image = Image.fromarray(coarse if channels > 1 else coarse[..., 0])
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def make_pictures(folder, count, **size):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(make_pixels(i, **size)).save(folder / f"face_{i:03d}.png")
    return folder


@pytest.fixture
def pictures(tmp_path):
    return make_pictures(tmp_path / "in", 6)


# Options of an EXE-GAN of any size with few channels.
TINY_EXEGAN = {"style_channels": 16, "mapping_layers": 2, "narrow": 1 / 64}

# settings of restore for aligned faces and the tiny network, as overrides
TINY = ["faces.mode=aligned", "dr2.tau=2", "dr2.omega=8", "dr2.factor=2", "dr2.num_evaluations=2"]


# What takes minutes on a machine under heavy load is no fault; what never ends is one.
PATIENCE_SECONDS = 400


def run_here(*arguments):
    """``python ARGUMENTS`` in this process: a script, or ``-m MODULE``; as ``run_command``."""
    first, *rest = map(str, arguments)
    output, errors = io.StringIO(), io.StringIO()
    code, before = 0, sys.argv
    sys.argv = rest if first == "-m" else [first, *rest]
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            if first == "-m":
                runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(str(ROOT / first), run_name="__main__")
    except SystemExit as ended:
        code = ended.code or 0
    finally:
        sys.argv = before
    return subprocess.CompletedProcess(arguments, code, output.getvalue(), errors.getvalue())


def run_command(*arguments, timeout=PATIENCE_SECONDS, **environment):
    """``python ARGUMENTS`` in a process of its own: for signals, ranks, launchers and imports.

    Where it takes longer than ``timeout`` seconds, the error shows where each thread stood.
    """
    process = start_command(
        *arguments,
        env=os.environ | {"PYTHONFAULTHANDLER": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        said, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        for member in psutil.Process(process.pid).children(recursive=True):
            member.send_signal(signal.SIGABRT)
        time.sleep(2)
        kill_with_children(process)
        raise TimeoutError("\n".join(map(str, (process.args, *process.communicate())))) from None
    return subprocess.CompletedProcess(process.args, process.returncode, said, errors)


def start_command(*arguments, **options):
    """``python ARGUMENTS`` in a process group of its own, which goes on beside the test."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, text=True, start_new_session=True, **options)


def kill_with_children(process):
    """Kill a launcher and the ranks that it started, and wait for their end."""
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family)
    process.wait()


def wait_until(happened, process):
    """Wait for what a process leaves, or for its end; a process that does neither is a failure."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not happened() and process.poll() is None:
        if time.monotonic() > deadline:
            kill_with_children(process)
            raise TimeoutError(f"nothing happened: {process.args}")
        time.sleep(0.01)


@pytest.fixture
def auto_by_brightness(model_folder, tmp_path):
    """File of an automatic setting: the tiny network for bright pictures, nothing for dark ones."""
    count = len(FEATURES)
    weights = np.zeros((INPUTS, 2))
    weights[FEATURES.index("normalised_brightness")] = 1, -1
    dr2 = {"enabled": True, "factor": 2, "tau": 2, "omega": 8, "num_evaluations": 2}
    setting = AutoSetting(
        model_sha256=files.sha256(model_folder),
        sweep="s",
        candidates=[dr2, {"enabled": False}],
        fixed=0,
        fallback=0,
        mean=[0.0] * count,
        scale=[1.0] * count,
        inverse=np.eye(10).tolist(),
        known=[[0.0] * 10],
        known_scores=[[0.0, 0.0]],
        farthest=1e9,
        weights=weights.tolist(),
        deviation=[1.0, 1.0],
    )
    save_auto(setting, tmp_path / "auto.json", "psnr")
    return tmp_path / "auto.json"


@contextlib.contextmanager
def waits_are_errors():
    """On a GPU, torch raises in the block where the host would wait for it."""
    if DEVICE == "cpu":
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


# -- studies ---------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def clean(tmp_path_factory):
    """Folder of faces for a study."""
    return make_pictures(tmp_path_factory.mktemp("clean") / "faces", 5, height=32, width=32)


@pytest.fixture(scope="session")
def network(tmp_path_factory):
    """Folder of a small enhancer to 32 px."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("enhancer") / "spar"
    options = {"size": 32, "channels": [8, 16], "residual_blocks": 1, "hourglass_depth": 1}
    build_enhancer("sparnet", **options).save_pretrained(folder)
    return folder


@pytest.fixture
def protocol(tmp_path, clean, network, model_folder):
    """A protocol file; the output is named on top."""
    dr2 = {"model": str(model_folder), "factor": 2, "tau": 2, "omega": 8, "num_evaluations": 2}
    bicubic = {"name": "bicubic", "options": {"size": 32}}
    enhancer = {"name": "sparnet", "weights": str(network)}
    content = {
        "name": "toy",
        "clean": {"path": str(clean)},
        "size": 32,
        "degraded_size": 16,
        "degradations": ["mild", "severe", "speckle:4", "rain:2"],
        "methods": {
            "input": {},
            "coarse": {"dr2": dr2},
            "baseline": {"enhancer": bicubic},
            "enhancer": {"enhancer": enhancer},
            "DR2 + enhancer": {"dr2": dr2, "enhancer": enhancer},
        },
        "baseline": "baseline",
        "metrics": ["psnr", "ssim"],
        "batch_size": 2,
    }
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def run_study(protocol, output, *overrides):
    return evaluate(load_config(Protocol, protocol, [f"output={output}", *overrides]))


def study_rows(folder):
    return list(csv.DictReader((folder / "results.csv").open()))


# -- videos ------------------------------------------------------------------------------------

VIDEO_NETWORK = ["dr2.tau=2", "dr2.omega=8", "dr2.factor=2", "dr2.num_evaluations=2"]
VIDEO_COMMON = ["faces.skip_good=false", "identity.measure=false", "faces.min_px=8", "batch_size=3"]


@pytest.fixture
def video_settings(model_folder):
    """A tiny network and small batches."""
    return [f"dr2.model={model_folder}", *VIDEO_NETWORK, *VIDEO_COMMON]


@pytest.fixture
def waiting(monkeypatch):
    """How many frames of a video waited for their faces each time that faces were restored."""
    counts = []
    restored = video.VideoRun._restored

    def watched(self, part, progress):
        counts.append(len(part))
        return restored(self, part, progress)

    monkeypatch.setattr(video.VideoRun, "_restored", watched)
    return counts


@pytest.fixture
def restore_video(video_settings, monkeypatch):
    """Restores a video in which discs are faces."""
    from videos import DiscDetector

    monkeypatch.setattr(video, "build_detector", lambda config: DiscDetector())

    def run(source, output, *overrides, segment_frames=6):
        given = [f"input={source}", f"output={output}", *video_settings, *overrides]
        config = load_config(VideoConfig, None, given)
        return video.restore_video(config, segment_frames=segment_frames)

    return run


@pytest.fixture(scope="module")
def uneven_clip(tmp_path_factory):
    """16 frames with sound, the times between them uneven."""
    from videos import moving, write_video

    ticks = np.cumsum([0] + [3600, 3600, 5400, 1800] * 4)[:16].tolist()
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", moving(16), ticks=ticks)
