"""Coarse faces cached on disk: results of DR2 for clean faces.

The enhancer of DR2 is trained on y = k_σ * DR2(x; N, ω, τ) (Wang et al., CVPR 2023, §3.3). DR2(x)
is slow, so ``scripts/make_coarse.py`` makes it once, in several variants with their own settings.
The blur k_σ is drawn anew for every showing.
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from dr2pipe.core import images
from dr2pipe.core.errors import Dr2pipeError

PLAN = "coarse.json"  # holds the number of variants that a complete folder has


class CoarseCache:
    """The coarse faces of a folder made by ``scripts/make_coarse.py``.

    Raises:
        Dr2pipeError: the folder holds no variant, or fewer than planned.
    """

    def __init__(self, folder: str | Path):
        self.variants = sorted(p / "restored" for p in Path(folder).glob("variant_*"))
        self.variants = [p for p in self.variants if p.is_dir()]
        if not self.variants:
            raise Dr2pipeError(f"no coarse faces in {folder}; scripts/make_coarse.py makes them")
        plan = Path(folder) / PLAN
        planned = json.loads(plan.read_text())["variants"] if plan.is_file() else 0
        if len(self.variants) < planned:
            raise Dr2pipeError(
                f"{folder} has {len(self.variants)} of {planned} variants; run "
                f"scripts/make_coarse.py to its end first"
            )

    def has(self, name: str) -> bool:
        """Whether every variant has the face.

        Args:
            name: path of the clean face below the folder of clean faces.
        """
        return all(self._path(variant, name).is_file() for variant in self.variants)

    def read(self, name: str, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
        """A random variant of the face, (S,S,3) RGB.

        Raises:
            PictureError: the file cannot be read.
        """
        variant = self.variants[int(rng.integers(len(self.variants)))]
        return images.read_image(self._path(variant, name)).pixels

    @staticmethod
    def _path(variant: Path, name: str) -> Path:
        return (variant / name).with_suffix(".png")


def gaussian_blur(pixels: npt.NDArray[np.uint8], sigma_px: float) -> npt.NDArray[np.uint8]:
    """(H,W,3) blurred by a Gaussian k_σ; unchanged below a tenth of a pixel."""
    if sigma_px < 0.1:
        return pixels
    blurred = cv2.GaussianBlur(np.ascontiguousarray(pixels), (0, 0), sigma_px)
    return blurred.astype(np.uint8, copy=False)
