"""Presets at their full size, on rule-made files in the official layouts."""

import json
import os
import subprocess
import sys
import time

import parity
import psutil
import pytest
import torch
from conftest import ROOT, make_pictures, run_command
from diffusers import UNet2DModel
from PIL import Image

from dr2pipe.core.precision import multiplies
from dr2pipe.diffusion.pipeline import DR2Pipeline
from dr2pipe.diffusion.timesteps import build_scheduler

pytestmark = pytest.mark.slow


# The configuration of google/ddpm-celebahq-256.
CELEBAHQ256 = {
    "sample_size": 256,
    "block_out_channels": (128, 128, 256, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": (*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4),
    "attention_head_dim": None,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "downsample_padding": 0,
    "norm_eps": 1e-6,
}


def convert(folder, file, fixture, kind):
    """The folder that the command makes of an official file."""
    record, _ = parity.load(fixture)
    if "models" in record:  # a runner's file
        weights = parity.make_model(record["models"]["net"])
        weights = {"meta": {}, "state_dict": {f"generator.{k}": v for k, v in weights.items()}}
    else:
        weights = parity.make_weights(record["keys"])
    torch.save(weights, folder / file)
    process = run_command("-m", "dr2pipe", "convert", folder / file, folder / kind, "--kind", kind)
    assert process.returncode == 0, process.stderr
    return folder / kind


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """By preset, the settings that name rule-made weights in the place of the official ones."""
    folder = tmp_path_factory.mktemp("official")
    dr2 = convert(folder, "DR2_FFHQ.pkl", "dr2_unet", "guided_diffusion_unet")
    sparnet = convert(folder, "SPARNetHD.pth", "sparnethd", "sparnet")
    gfpgan = convert(folder, "GFPGANv1.4.pth", "gfpgan_clean", "gfpgan_clean")
    vqfr = convert(folder, "VQFR_v1-33a1fac5.pth", "vqfr_v1", "vqfr_v1")
    panini = {
        kind: convert(folder, f"{kind}_latest.pth", kind.replace("_", "_net_"), kind)
        for kind in ("panini_mfr", "panini_sr")
    }
    torch.manual_seed(0)
    DR2Pipeline(UNet2DModel(**CELEBAHQ256), build_scheduler("ddpm")).save_pretrained(
        folder / "celebahq256"
    )
    return {
        "dr2_ffhq_sparnethd": [f"dr2.model={dr2}", f"enhancer.weights={sparnet}"],
        "celebahq256_gfpgan14": [
            f"dr2.model={folder / 'celebahq256'}",
            f"enhancer.weights={gfpgan}",
        ],
        "dr2_ffhq_vqfr": [f"dr2.model={dr2}", f"enhancer.weights={vqfr}"],
        "vqfr_only": [f"enhancer.weights={vqfr}"],
        "gfpgan14_only": [f"enhancer.weights={gfpgan}"],
        **{f"{kind}_only": [f"enhancer.weights={weights}"] for kind, weights in panini.items()},
    }


PRESETS = {  # name: most bytes, side of the result and of the coarse face
    "dr2_ffhq_sparnethd": (6e9, 512, 256),
    "celebahq256_gfpgan14": (8e9, 512, 256),
    "dr2_ffhq_vqfr": (6e9, 512, 256),
    "vqfr_only": (6e9, 512, 512),
    "panini_mfr_only": (8e9, 1024, 512),
    "panini_sr_only": (8e9, 1024, 64),
}


@pytest.mark.parametrize("preset", PRESETS)
def test_published_settings_run_in_little_memory(settings, tmp_path, preset):
    most_bytes, *sides = PRESETS[preset]
    source = make_pictures(tmp_path / "in", 1, height=300, width=260)
    command = [
        sys.executable, "-m", "dr2pipe", "restore", "--aligned", source, tmp_path / "out",
        "--preset", preset, "--set", *settings[preset], "save_coarse=true",
    ]  # fmt: skip
    start, peak = time.time(), 0
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    while process.poll() is None:
        peak = max(peak, psutil.Process(process.pid).memory_info().rss)
        time.sleep(0.1)
    assert process.returncode == 0
    print(f"{preset}: peak memory {peak / 1e9:.2f} GB, {time.time() - start:.0f} s with loading")
    assert peak < most_bytes
    for name, side in zip(("restored", "coarse"), sides, strict=True):
        assert Image.open(tmp_path / "out" / name / "face_000.png").size == (side, side)


@pytest.mark.parametrize(
    ("preset", "options", "batches"),
    [
        ("dr2_ffhq_sparnethd", ["--parts", "networks"], (1, 4)),
        ("gfpgan14_only", ["--parts", "networks", "restorer"], (1, 4)),
        ("vqfr_only", ["--parts", "networks", "restorer"], (1,)),
        ("panini_mfr_only", ["--parts", "networks", "restorer"], (1,)),
        ("panini_sr_only", ["--parts", "networks", "restorer"], (1,)),
    ],
)
def test_benchmarks_at_full_size(settings, tmp_path, preset, options, batches):
    source = make_pictures(tmp_path / "in", 1, height=300, width=260)
    report = tmp_path / "report.json"
    sizes = ["--batch-sizes", *map(str, batches)]
    # Without instructions for bf16, the first of them takes more than twenty minutes.
    precisions = ["fp32", "bf16"] if multiplies("cpu", "bf16") else ["fp32"]
    process = run_command(
        "-m", "dr2pipe", "benchmark", "--preset", preset, "--input", source, *options, *sizes,
        "--precisions", *precisions, "--json", report, "--set", *settings[preset],
        timeout=1200, OMP_NUM_THREADS="2",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    print(process.stdout)
    timed = {(r["precision"], r["batch"]) for r in json.loads(report.read_text())["rows"]}
    assert timed == {(precision, batch) for precision in precisions for batch in batches}
