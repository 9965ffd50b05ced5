"""What stage 1 does to dark and pale faces, with and without dr2.exposure=normalise.

python scripts/research/measure_exposure.py FACES.npz [--faces 12] [--model portrait128]

Prints PSNR in dB against the clean faces, for each degradation: of the input, of the coarse face,
and of the coarse face with normalised exposure; then the same after brightness and contrast of
every channel have been matched to the clean face, which shows what became of the face itself.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dr2pipe.core import images
from dr2pipe.core.config import stable_seed
from dr2pipe.data.folders import FaceDataset
from dr2pipe.degradations import degrade
from dr2pipe.diffusion.stage1 import DR2Config
from dr2pipe.restoration.restorer import EnhancerConfig, build_restorer

CASES: list[tuple[str, int | None]] = [
    *((name, severity) for name in ("low_light", "haze", "over_exposure") for severity in (2, 4)),
    *((name, None) for name in ("mild", "medium", "severe")),
]


def psnr(found: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """(B,) in dB of (B,3,H,W) in [-1,1]."""
    return 10 * torch.log10(4 / (found.clamp(-1, 1) - clean).square().mean(dim=(1, 2, 3)))


def matched(found: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """``found`` with gain and offset of every channel by least squares."""
    x, y = (t - t.mean(dim=(2, 3), keepdim=True) for t in (found, clean))
    gain = (x * y).sum(dim=(2, 3), keepdim=True) / x.square().sum(dim=(2, 3), keepdim=True)
    return gain * x + clean.mean(dim=(2, 3), keepdim=True)


def main() -> None:
    """Read the arguments and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clean", type=Path, help=".npz of faces at the model's size")
    parser.add_argument("--faces", type=int, default=12)
    parser.add_argument("--model", default="portrait128")
    options = parser.parse_args()
    settings: dict[str, Any] = {"scheduler": "ddim", "factor": 2, "tau": 6, "omega": 16}
    settings["num_evaluations"] = 5
    restorers = [
        build_restorer(
            DR2Config(model=options.model, exposure=exposure, **settings), EnhancerConfig()
        )[0]
        for exposure in ("keep", "normalise")
    ]
    side = restorers[0].input_size
    faces = FaceDataset(options.clean, size=side, flip=False)
    clean = torch.stack([faces[i, 0]["image"] for i in range(options.faces)])
    pixels = images.to_uint8(clean)
    print("degradation: input, coarse, normalised | with exposure matched: the same")
    for name, severity in CASES:
        degraded = []
        for i, face in enumerate(pixels):
            rng = np.random.default_rng(stable_seed("exposure", name, severity, i))
            spoilt, _ = degrade(face, name, rng, severity=severity)
            degraded.append(images.resize_pixels(spoilt, (side, side)))
        x = images.to_tensor(np.stack(degraded))
        found = [x, *(restorer(x, list(range(len(x)))).coarse for restorer in restorers)]
        plain = ", ".join(f"{psnr(f, clean).mean():.2f}" for f in found)
        after = ", ".join(f"{psnr(matched(f, clean), clean).mean():.2f}" for f in found)
        print(f"{name} {severity or ''}: {plain} | {after}", flush=True)


if __name__ == "__main__":
    main()
