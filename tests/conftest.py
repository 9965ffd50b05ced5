"""Tiny real networks and pictures; nothing here needs a download or a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from PIL import Image

from dr2pipe.diffusion.pipeline import DR2Pipeline
from dr2pipe.diffusion.timesteps import build_scheduler

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
