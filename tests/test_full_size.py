"""The published system at its full size, on rule-made files in the official layouts."""

import os
import subprocess
import sys
import time

import parity
import psutil
import pytest
import torch
from conftest import ROOT, make_pictures, run_command

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """Native folders converted by the command from DR2_FFHQ.pkl and SPARNetHD layouts."""
    folder = tmp_path_factory.mktemp("official")
    files = {"DR2_FFHQ.pkl": ("dr2_unet", "guided_diffusion_unet"),
             "SPARNetHD.pth": ("sparnethd", "sparnet")}  # fmt: skip
    for file, (fixture, kind) in files.items():
        record, _ = parity.load(fixture)
        torch.save(parity.make_weights(record["keys"]), folder / file)
        process = run_command(
            "-m", "dr2pipe.cli", "convert", folder / file, folder / kind, "--kind", kind
        )
        assert process.returncode == 0, process.stderr
    return folder


def settings(official):
    return [
        f"dr2.model={official / 'guided_diffusion_unet'}",
        f"enhancer.weights={official / 'sparnet'}",
    ]


def test_published_settings_run_in_six_gigabytes(official, tmp_path):
    source = make_pictures(tmp_path / "in", 1, height=300, width=260)
    command = [
        sys.executable, "-m", "dr2pipe.cli", "restore", source, tmp_path / "out",
        "--preset", "dr2_ffhq_sparnethd", "--set", *settings(official), "save_coarse=true",
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    peak = 0
    while process.poll() is None:
        peak = max(peak, psutil.Process(process.pid).memory_info().rss)
        time.sleep(0.1)
    assert process.returncode == 0
    print(f"peak memory {peak / 1e9:.2f} GB")
    assert peak < 6e9
    from PIL import Image

    assert Image.open(tmp_path / "out" / "restored" / "face_000.png").size == (512, 512)
    assert Image.open(tmp_path / "out" / "coarse" / "face_000.png").size == (256, 256)


def test_benchmark_of_the_published_system(official, tmp_path):
    source = make_pictures(tmp_path / "in", 1, height=300, width=260)
    preset = ROOT / "configs" / "restore" / "dr2_ffhq_sparnethd.yaml"
    process = run_command(
        "scripts/benchmark.py", preset, f"input={source}", *settings(official),
        timeout=1200, OMP_NUM_THREADS="2",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    print(process.stdout)
    for precision in ("fp32", "bf16"):
        for batch in (1, 4):
            assert [precision, str(batch)] in [
                line.split()[:2] for line in process.stdout.splitlines()
            ]
