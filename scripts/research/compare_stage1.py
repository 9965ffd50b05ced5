"""Coarse faces of several stage-1 models against clean faces, all compared at one size.

python scripts/research/compare_stage1.py NPZ MODEL [MODEL ...] [options]

NPZ holds clean faces (``images``, ``files``), for instance the check set of prepare_faces.py.
Prints the PSNR in dB of the inputs and of the coarse faces by chain, model and setting, and the
PSNR of each model's estimate of x0 by timestep. Models of another size get reduced inputs and
have their output enlarged; N is stated for the size of the NPZ. A setting is N,tau,omega.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from dr2pipe.core import images
from dr2pipe.core.config import stable_seed
from dr2pipe.core.models import find_model
from dr2pipe.core.sheets import contact_sheet
from dr2pipe.degradations import degrade
from dr2pipe.diffusion.dr2 import estimate_x0, remove_degradation
from dr2pipe.diffusion.low_pass import BicubicLowPass
from dr2pipe.diffusion.networks import FaceDDPM, load_ddpm
from dr2pipe.diffusion.pipeline import network_size
from dr2pipe.diffusion.timesteps import build_scheduler
from dr2pipe.metrics.reference import psnr

SETTINGS = ["4,6,16", "4,10,20", "8,6,16", "8,10,25", "8,10,35"]
_EVALUATIONS = 5
_TIMESTEPS = (20, 60, 100, 160, 220, 300, 360, 450)
_SHOWN = 10  # faces of a sheet


def degraded_faces(clean: np.ndarray, chain: str) -> torch.Tensor:
    """(B,3,S,S) in [-1,1]: every face of (B,S,S,3) uint8 through ``chain``, drawn by its place."""
    rngs = (np.random.default_rng(stable_seed(chain, place)) for place in range(len(clean)))
    degraded = [degrade(face, chain, rng)[0] for face, rng in zip(clean, rngs, strict=True)]
    size = clean.shape[1:3]
    return images.to_tensor(np.stack([images.resize_pixels(face, size) for face in degraded]))


def coarse_faces(
    model: FaceDDPM, degraded: torch.Tensor, factor: int, tau: int, omega: int
) -> torch.Tensor:
    """Coarse faces (B,3,S,S) in [-1,1], S the side of ``degraded`` and N stated for it."""
    side, size = degraded.shape[-1], network_size(model.unet)
    prediction = "epsilon" if model.scheduler is None else model.scheduler.config.prediction_type
    small = images.resize_tensor(degraded, size).clamp(-1, 1)
    coarse = [
        remove_degradation(
            model.unet,
            build_scheduler("ddim", prediction_type=prediction),
            BicubicLowPass(max(1, factor * size // side)),
            part,
            omega=omega,
            tau=tau,
            num_evaluations=_EVALUATIONS,
            generator=torch.Generator().manual_seed(place),
        )
        for place, part in enumerate(small.split(8))
    ]
    return images.resize_tensor(torch.cat(coarse), side).clamp(-1, 1)


@torch.no_grad()
def psnr_by_timestep(model: FaceDDPM, clean: torch.Tensor) -> list[float]:
    """Mean PSNR of the estimate of x0 at ``_TIMESTEPS``, at the network's size."""
    size = network_size(model.unet)
    prediction = "epsilon" if model.scheduler is None else model.scheduler.config.prediction_type
    alpha_bar = build_scheduler("ddim").alphas_cumprod
    small = images.resize_tensor(clean, size).clamp(-1, 1)
    noise = torch.randn(small.shape, generator=torch.Generator().manual_seed(0))
    means = []
    for t in _TIMESTEPS:
        x = alpha_bar[t].sqrt() * small + (1 - alpha_bar[t]).sqrt() * noise
        parts = x.to(model.unet.dtype).split(8)
        output = torch.cat([model.unet(part, t).sample[:, :3].float() for part in parts])
        x0 = estimate_x0(x, output, alpha_bar[t], prediction).clamp(-1, 1)
        means.append(float(psnr(x0, small).mean()))
    return means


def main() -> None:
    """Read the arguments, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("npz", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--png", type=Path)
    parser.add_argument("--chains", nargs="+", default=["medium", "severe"])
    parser.add_argument("--settings", nargs="+", default=SETTINGS)
    parser.add_argument("--every", type=int, default=1, help="take every n-th face")
    parser.add_argument("--bf16", action="store_true")
    options = parser.parse_args()
    with np.load(options.npz, allow_pickle=False) as archive:
        pixels = archive["images"][:: options.every]
    clean, rows = images.to_tensor(pixels), []
    models = {name: load_ddpm(find_model(name)) for name in options.models}
    if options.bf16:
        for model in models.values():
            model.unet.to(torch.bfloat16)
    step = -(-len(pixels) // _SHOWN)
    for name, model in models.items():
        found = " ".join(f"{value:.2f}" for value in psnr_by_timestep(model, clean))
        print(f"x0 at timesteps {_TIMESTEPS}: {found}  {name}", flush=True)
    for chain in options.chains:
        degraded = degraded_faces(pixels, chain)
        print(f"{chain}: input {psnr(degraded, clean).mean():.2f}", flush=True)
        rows += [list(pixels[::step]), list(images.to_uint8(degraded)[::step])]
        for name, model in models.items():
            best, best_coarse = 0.0, degraded
            for setting in options.settings:
                factor, tau, omega = map(int, setting.split(","))
                coarse = coarse_faces(model, degraded, factor, tau, omega)
                value = float(psnr(coarse, clean).mean())
                print(f"  {value:.2f}  N={factor} tau={tau} omega={omega}  {name}", flush=True)
                if value > best:
                    best, best_coarse = value, coarse
            rows.append(list(images.to_uint8(best_coarse)[::step]))
    if options.png:
        images.write_png(options.png, contact_sheet(rows))


if __name__ == "__main__":
    main()
