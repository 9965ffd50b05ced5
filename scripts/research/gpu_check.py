"""Everything that needs a GPU, in one run of a few minutes. Without one it is rehearsed on the CPU.

    python scripts/research/gpu_check.py --json gpu.json          # on a machine with a GPU
    python scripts/research/gpu_check.py --toy                    # small networks, on any machine

Runs the tests marked `gpu`; compares the default preset in fp32 on CPU and device, compiled and not,
and with both kinds of attention; then times networks of the published sizes (DR2 at 256 px, SPARNetHD
at 512 px, on random weights) with 21 calls, with five, and with a student's one, and in other layouts
of memory; the files without networks; and a training. What fails is said, and the rest goes on; the
exit code is 1 then.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dr2pipe.cli.benchmark import Benchmark
from dr2pipe.cli.benchmark_report import table
from dr2pipe.cli.commands import quiet_libraries
from dr2pipe.core import files, images
from dr2pipe.core.config import load_config, resource
from dr2pipe.core.processes import process_state
from dr2pipe.core.records import versions
from dr2pipe.core.seeding import random_stream
from dr2pipe.diffusion.networks import why_no_xformers
from dr2pipe.diffusion.pipeline import DR2Pipeline
from dr2pipe.diffusion.student import student_of
from dr2pipe.diffusion.timesteps import build_scheduler
from dr2pipe.enhancers import build_enhancer
from dr2pipe.restoration.batch_size import resolve_batch_size
from dr2pipe.restoration.restorer import Restorer
from dr2pipe.restoration.settings import load_restorer
from dr2pipe.runs.restore import RestoreConfig
from dr2pipe.training.recipes import run_recipe
from dr2pipe.training.recipes.ddpm import DDPMConfig, UNetConfig, build_unet
from dr2pipe.training.recipes.enhancer import EnhancerTrainConfig

ROOT = Path(__file__).resolve().parent.parent.parent
_MINUTES = 8
_TOY_UNET = UNetConfig(
    channels=[8, 16], attention_sizes=[8], attention_head_channels=8, norm_groups=4
)
_TOY_SPARNET = {"size": 32, "channels": [8, 16], "residual_blocks": 1, "hourglass_depth": 1}
_UNUSED = ["input=unused", "output=unused", "faces.mode=aligned"]


@dataclass
class Check:
    """What every check needs.

    Attributes:
        device: where networks run.
        toy: whether networks are small.
        folder: for models and runs.
        found: what was measured, by check; JSON can hold it.
    """

    device: torch.device
    toy: bool
    folder: Path
    found: dict[str, Any] = field(default_factory=dict)


def run_tests(check: Check) -> Any:
    """The tests marked `gpu`."""
    # The others need packages that a machine with a GPU may lack.
    marked = [p for p in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in p.read_text()]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    command += sorted(map(str, marked))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    if done.returncode != 0:
        raise RuntimeError(done.stdout[-3000:] + done.stderr[-1000:])
    return done.stdout.strip().splitlines()[-1]


def compare_devices(check: Check) -> Any:
    """The default preset in fp32 with the same noise on CPU and device, in levels of 255."""
    results = []
    for device in ("cpu", check.device):
        restorer = _default(device)
        pictures = _pictures(restorer, 4)
        results.append(restorer(pictures, [1, 2, 3, 4]).restored.cpu())
    difference = float((results[0] - results[1]).abs().max()) * 127.5
    if difference > 1:
        raise RuntimeError(f"results differ by {difference:.2f} of 255")
    return {"largest_difference_of_255": round(difference, 4)}


def compare_compiled(check: Check) -> Any:
    """The default preset compiled, and not: the difference, and seconds for a batch of 32."""
    batch, found = (2 if check.toy else 32), {}
    results = []
    for compiled in (False, True):
        restorer = _default(check.device, f"compile={str(compiled).lower()}", "precision=auto")
        pictures, seeds = _pictures(restorer, batch), list(range(batch))
        start = time.perf_counter()
        restorer(pictures, seeds).restored.cpu()
        first, start = time.perf_counter() - start, time.perf_counter()
        results.append(restorer(pictures, seeds).restored.cpu())
        name = "compiled" if compiled else "plain"
        found[name] = {"first_s": first, "then_s": time.perf_counter() - start}
    found["mean_difference_of_255"] = _mean_difference(results)
    return found


def compare_attention(check: Check) -> Any:
    """The attention of xformers, where it can be used, beside torch's."""
    reason = why_no_xformers(check.device)
    if reason is not None:
        return f"left out: {reason}"
    results = [
        restorer(_pictures(restorer, 4), [1, 2, 3, 4]).restored.cpu()
        for name in ("sdpa", "xformers")
        for restorer in [_default(check.device, f"attention={name}", "precision=auto")]
    ]
    return {"mean_difference_of_255": _mean_difference(results)}


def time_published_sizes(check: Check) -> Any:
    """Networks of the published sizes, compiled: 21 calls, five calls, and a student's one."""
    batch = 2 if check.toy else 32
    found = {}
    for calls, pictures in ((21, 512), (5, 1024), (1, 2048)):
        compiled = "false" if check.toy else "true"  # a rehearsal needs no compiler
        config = _published_config(check, calls, batch, f"compile={compiled}")
        pictures = 4 if check.toy else pictures
        parts = ["restorer", "run"] + (["networks"] if calls == 21 else [])
        report = Benchmark(config, batch_sizes=[batch], parts=parts, pictures=pictures).run()
        print(f"\n{calls} calls\n{table(report)}\n", flush=True)
        found[f"{calls} calls"] = report["rows"]
    found["batch_size=auto"] = resolve_batch_size("auto", load_restorer(config, check.device)[0])
    return found


def time_layouts(check: Check) -> Any:
    """The same networks with channels last and first, and compiled: what norms and borders cost.

    In torch 2.11, norms on a GPU take and give contiguous tensors, so that channels_last is converted
    around each of them.
    """
    batch, found = (2 if check.toy else 32), {}
    for setting in ("channels_last=true", "channels_last=false", "compile=true"):
        config = _published_config(check, 1, batch, setting)
        report = Benchmark(config, batch_sizes=[batch], parts=["networks"]).run()
        print(f"\n{setting}\n{table(report)}\n", flush=True)
        found[setting] = report["rows"]
    return found


def time_files(check: Check) -> Any:
    """A folder run without networks, with all cores."""
    config = load_config(RestoreConfig, None, [*_UNUSED, "batch_size=64"])
    pictures = 16 if check.toy else 512
    report = Benchmark(config, parts=["machinery"], pictures=pictures).run()
    print(f"\n{table(report)}\n", flush=True)
    return report["rows"]


def time_training(check: Check) -> Any:
    """Pictures per second of training the embedded DDPM, at 128 px on patches of 2x2."""
    faces = check.folder / "faces"
    for i in range(16):
        images.write_png(faces / f"{i}.png", images.to_uint8(_noise(i, 128))[0])
    steps, batch = (4, 2) if check.toy else (60, 64)
    settings = [f"data.path={faces}", f"output={check.folder / 'run'}"]
    settings += [f"total_steps={steps}", f"batch_size={batch}", f"log_every_steps={steps // 2}"]
    settings += ["preview_every_steps=1000", f"save_every_steps={steps}", "trackers=[]"]
    run_recipe(resource("configs") / "train" / "ddpm_portrait128.yaml", settings)
    last = json.loads((check.folder / "run" / "log.jsonl").read_text().splitlines()[-1])
    return {name: last[name] for name in ("images_per_second", "data_wait_share")}


CHECKS: dict[str, Callable[[Check], Any]] = {
    "tests": run_tests,
    "devices": compare_devices,
    "compile": compare_compiled,
    "attention": compare_attention,
    "published": time_published_sizes,
    "files": time_files,
    "training": time_training,
    "layouts": time_layouts,
}


def _default(device: torch.device | str, *overrides: str) -> Restorer:
    settings = [*_UNUSED, "precision=fp32", "noise=philox", *overrides]
    config = load_config(RestoreConfig, resource("configs") / "restore" / "default.yaml", settings)
    return load_restorer(config, device)[0]


def _mean_difference(results: list[torch.Tensor]) -> float:
    """In levels of 255; RuntimeError where that is more than bfloat16 makes."""
    difference = float((results[0] - results[1]).abs().mean()) * 127.5
    if difference > 2:
        raise RuntimeError(f"results differ by {difference:.2f} of 255 on average")
    return difference


def _published_config(check: Check, calls: int, batch: int, *more: str) -> RestoreConfig:
    """DR2 with 21 calls, five, or a student's one, and SPARNetHD."""
    models = _published_sizes(check)
    settings = {
        21: ["dr2.scheduler=ddpm", "dr2.variance=learned_range"],
        5: ["dr2.scheduler=dpmsolver++", "dr2.num_evaluations=5"],
        1: [f"dr2.student={models['student']}"],
    }[calls]
    settings += [f"dr2.model={models['dr2']}", "dr2.factor=4", "dr2.tau=22", "precision=auto"]
    settings += ["enhancer.name=sparnet", f"enhancer.weights={models['sparnet']}"]
    settings += [f"batch_size={batch}", *more]
    return load_config(RestoreConfig, None, [*_UNUSED, *settings])


def _pictures(restorer: Restorer, count: int) -> torch.Tensor:
    return torch.cat([_noise(i, restorer.input_size) for i in range(count)])


def _noise(seed: int, side: int) -> torch.Tensor:
    """(1,3,S,S): smooth noise in [-1,1]."""
    small = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return images.resize_tensor(small, side).clamp(-1, 1)


def _published_sizes(check: Check) -> dict[str, Path]:
    """Folders of random weights, made once: DR2, its student, SPARNetHD."""
    folders = {name: check.folder / name for name in ("dr2", "student", "sparnet")}
    if all(folder.is_dir() for folder in folders.values()):
        return folders
    configs = resource("configs") / "train"
    side, unet_config = (16, _TOY_UNET) if check.toy else (256, None)
    options: dict[str, Any] = _TOY_SPARNET
    if unet_config is None:
        unet_config = load_config(DDPMConfig, configs / "ddpm_ffhq256.yaml", ["data.path=-"]).unet
        sparnet_config = configs / "enhancer_sparnethd512.yaml"
        options = load_config(EnhancerTrainConfig, sparnet_config, ["data.path=-"]).enhancer.options
    with random_stream(torch.Generator().manual_seed(0)):
        unet = build_unet(unet_config, side, out_channels=6)
        sparnet = build_enhancer("sparnet", **options)
    DR2Pipeline(unet, build_scheduler("ddpm")).save_pretrained(folders["dr2"])
    student = student_of(
        unet, [[4, 22, 42]], num_steps=100, prediction_type="epsilon",
        teacher_sha256=files.sha256(folders["dr2"]),
    )  # fmt: skip
    student.save_pretrained(folders["student"])
    sparnet.save_pretrained(folders["sparnet"])
    return folders


def main() -> int:
    """Read the arguments, make the checks and print what they found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--toy", action="store_true", help="small networks")
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--minutes", type=float, default=_MINUTES, help="begin no check after it")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    quiet_libraries()
    device, began, failed = process_state().device, time.monotonic(), False
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU: a rehearsal"
    print(f"{device}, {name}, {versions()}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        check = Check(device, options.toy, Path(folder))
        for what in options.only:
            start = time.monotonic()
            if start - began > 60 * options.minutes:
                failed = True
                print(f"{what}: left out, {options.minutes:g} minutes are over")
                continue
            try:
                check.found[what] = CHECKS[what](check)
            # The rest is worth knowing, too: the machine may not come back.
            except Exception:
                failed = True
                check.found[what] = traceback.format_exc()
            print(f"{what} ({time.monotonic() - start:.0f} s): {check.found[what]}", flush=True)
            if options.json is not None:
                report = {"device": name, "versions": versions(), "found": check.found}
                files.write_bytes(options.json, (json.dumps(report, indent=1) + "\n").encode())
    print("FAILED" if failed else "all is well")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
