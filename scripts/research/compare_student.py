"""How near the coarse faces of a student come to those of its teacher, by degradation.

    python scripts/research/compare_student.py val128.npz runs/distil_portrait128/final
    python scripts/research/compare_student.py val128.npz STUDENT --settings 2,6,16 4,14,26 --every 4

Prints PSNR and SSIM against the clean faces for each chain and unseen family, of teacher and
student from the same first noise, with the preset's settings or those that are given (N,tau,omega),
and a line that says whether the student is as good as it should be. --set changes others:
--set dr2.antithetic=false dr2.num_evaluations=5
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

import numpy as np
import torch

from dr2pipe.core import images
from dr2pipe.core.config import load_config, stable_seed
from dr2pipe.core.models import find_file
from dr2pipe.degradations import UNSEEN, degrade
from dr2pipe.diffusion.low_pass import BicubicLowPass
from dr2pipe.diffusion.noise import Philox
from dr2pipe.diffusion.stage1 import Remover, load_remover
from dr2pipe.metrics.reference import psnr, ssim
from dr2pipe.runs.restore import RestoreConfig

CHAINS = ["mild", "medium", "severe"]
FAMILIES = ["salt_and_pepper", "halftone", "pixelation", "motion_blur", "speckle", "film_grain"]
_SEVERITY = 3
# What a student may lose: dB and SSIM, on average and in the worst family.
_MEAN_DB, _WORST_DB, _SSIM = -0.1, -0.3, -0.01
_BATCH = 8


def degraded_faces(clean: np.ndarray, name: str) -> torch.Tensor:
    """(B,3,S,S) in [-1,1]: every face of (B,S,S,3) uint8 degraded, drawn by its place."""
    severity = _SEVERITY if name in UNSEEN else None
    faces = [
        degrade(face, name, np.random.default_rng(stable_seed(name, place)), severity=severity)[0]
        for place, face in enumerate(clean)
    ]
    size = clean.shape[1:3]
    return images.to_tensor(np.stack([images.resize_pixels(face, size) for face in faces]))


@torch.no_grad()
def coarse_faces(remover: Remover, degraded: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Coarse faces (B,3,S,S), and seconds of a core for each."""
    start, found = time.process_time(), []
    for first in range(0, len(degraded), _BATCH):
        part = degraded[first : first + _BATCH]
        found.append(remover(part, Philox(range(first, first + len(part)))))
    return torch.cat(found), (time.process_time() - start) / len(degraded)


def load_both(
    preset: str, student: str, setting: str | None, changes: list[str]
) -> tuple[Remover, Remover]:
    """Teacher and student with the settings of a preset, or with its other settings and N,tau,omega."""
    preset_path = find_file("configs/restore", preset, what="preset")
    config = load_config(RestoreConfig, preset_path, ["input=x", "output=x", *changes]).dr2
    config = dataclasses.replace(config, mode="fixed")
    if setting is not None:
        factor, tau, omega = (int(part) for part in setting.split(","))
        calls = min(config.num_evaluations or omega, omega - tau + 1)
        config = dataclasses.replace(
            config, factor=factor, tau=tau, omega=omega, num_evaluations=calls
        )
    teacher = load_remover(dataclasses.replace(config, student=None))[0]
    taught = load_remover(dataclasses.replace(config, student=student))[0]
    assert isinstance(teacher, Remover)
    assert isinstance(taught, Remover)
    return teacher, taught


def main() -> None:
    """Read the arguments, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("npz", type=Path)
    parser.add_argument("student")
    parser.add_argument("--preset", default="default", help="a name, or a file")
    parser.add_argument("--settings", nargs="+", metavar="N,TAU,OMEGA")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", dest="changes")
    parser.add_argument("--every", type=int, default=1, help="take every n-th face")
    parser.add_argument("--families", nargs="+", default=FAMILIES)
    options = parser.parse_args()
    with np.load(options.npz, allow_pickle=False) as archive:
        pixels = archive["images"][:: options.every]
    for setting in options.settings or [None]:
        teacher, student = load_both(options.preset, options.student, setting, options.changes)
        compare(teacher, student, pixels, options.families)


def compare(teacher: Remover, student: Remover, pixels: np.ndarray, families: list[str]) -> None:
    """Print a table of both for (B,S,S,3) uint8, and what follows from it."""
    clean = images.to_tensor(pixels)
    assert isinstance(teacher.low_pass, BicubicLowPass)
    print(
        f"N {teacher.low_pass.factor}, tau {teacher.tau}, omega {teacher.omega}, "
        f"{len(pixels)} faces; {teacher.calls} calls, and {student.calls}"
    )
    print("| degradation | input | teacher | student | difference | SSIM | SSIM | difference |")
    print("|---|---|---|---|---|---|---|---|")
    seconds, losses = np.zeros(2), []
    for name in [*CHAINS, *families]:
        degraded, cells = degraded_faces(pixels, name), []
        for place, remover in enumerate((teacher, student)):
            coarse, took = coarse_faces(remover, degraded)
            seconds[place] += took
            cells.append([float(metric(coarse, clean).mean()) for metric in (psnr, ssim)])
        (db, similarity), (student_db, student_similarity) = cells
        losses.append([student_db - db, student_similarity - similarity])
        print(
            f"| {name} | {psnr(degraded, clean).mean():.2f} | {db:.2f} | {student_db:.2f} "
            f"| {losses[-1][0]:+.2f} | {similarity:.4f} | {student_similarity:.4f} "
            f"| {losses[-1][1]:+.4f} |",
            flush=True,
        )
    found = np.array(losses)
    print(
        f"mean {found[:, 0].mean():+.3f} dB, worst {found[:, 0].min():+.3f} dB, "
        f"SSIM {found[:, 1].mean():+.4f}, worst {found[:, 1].min():+.4f}"
    )
    is_good = (
        found[:, 0].mean() >= _MEAN_DB
        and found[:, 0].min() >= _WORST_DB
        and found[:, 1].min() >= _SSIM
    )
    print(f"seconds of a core for each face: {seconds[0] / len(losses):.4f}, "
          f"{seconds[1] / len(losses):.4f}: {seconds[0] / seconds[1]:.2f} times as fast")  # fmt: skip
    print("as good as it should be" if is_good else "not yet as good as it should be")


if __name__ == "__main__":
    main()
