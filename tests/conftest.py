"""Tiny real networks and pictures; nothing here needs a download or a GPU."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import UNet2DModel
from PIL import Image

from dr2pipe.core import files
from dr2pipe.core.config import load_config
from dr2pipe.diffusion.auto import AutoSetting
from dr2pipe.diffusion.degradation_features import FEATURES
from dr2pipe.diffusion.pipeline import DR2Pipeline
from dr2pipe.diffusion.timesteps import build_scheduler
from dr2pipe.enhancers import build_enhancer
from dr2pipe.evaluation.evaluate import evaluate
from dr2pipe.evaluation.fit_auto import save_auto
from dr2pipe.evaluation.protocol import Protocol

ROOT = Path(__file__).resolve().parent.parent
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


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


# dr2 settings for the tiny network, as overrides
TINY = ["dr2.tau=2", "dr2.omega=8", "dr2.factor=2", "dr2.num_evaluations=2"]


def run_command(*arguments, timeout=300, cwd=ROOT, **environment):
    """Run a command of the package in a process of its own."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.fixture
def auto_by_brightness(model_folder, tmp_path):
    """File of an automatic setting: the tiny network for bright pictures, nothing for dark ones."""
    count = len(FEATURES)
    weights = np.zeros((2 * count + 1, 2))
    weights[FEATURES.index("brightness")] = 1, -1
    dr2 = {"enabled": True, "factor": 2, "tau": 2, "omega": 8, "num_evaluations": 2}
    setting = AutoSetting(
        model_sha256=files.sha256(model_folder),
        sweep="s",
        candidates=[dr2, {"enabled": False}],
        fixed=0,
        fallback=0,
        mean=[0.0] * count,
        scale=[1.0] * count,
        low=[-1e9] * count,
        high=[1e9] * count,
        weights=weights.tolist(),
        deviation=[1.0, 1.0],
    )
    save_auto(setting, tmp_path / "auto.json")
    return tmp_path / "auto.json"


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
