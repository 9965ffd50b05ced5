"""Coarse faces cached on disk: what DR2 makes of clean (or degraded) faces.

The enhancer of DR2 is trained on y = k_σ * DR2(x; N, ω, τ) (paper §3.3). DR2(x) is slow and
is made once by ``scripts/make_coarse.py``, in several variants with settings of their own;
the blur k_σ is drawn anew for every showing.
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from dr2pipe.core import images

PLAN = "coarse.json"  # how many variants there are to be


class CoarseCache:
    """The coarse faces of a folder made by ``scripts/make_coarse.py``.

    Raises:
        ValueError: the folder holds no variant, or fewer than were to be made.
    """

    def __init__(self, folder: str | Path):
        self.variants = sorted(p / "restored" for p in Path(folder).glob("variant_*"))
        self.variants = [p for p in self.variants if p.is_dir()]
        if not self.variants:
            raise ValueError(f"no coarse faces in {folder}; scripts/make_coarse.py makes them")
        plan = Path(folder) / PLAN
        planned = json.loads(plan.read_text())["variants"] if plan.is_file() else 0
        if len(self.variants) < planned:
            raise ValueError(
                f"{folder} has {len(self.variants)} of {planned} variants; run "
                f"scripts/make_coarse.py to its end first"
            )

    def has(self, name: str) -> bool:
        """Whether every variant has the face of that path below the clean faces' folder."""
        return all(self._path(variant, name).is_file() for variant in self.variants)

    def read(self, name: str, rng: np.random.Generator) -> np.ndarray:
        """One of the variants, (S,S,3) uint8 RGB."""
        variant = self.variants[int(rng.integers(len(self.variants)))]
        return images.read_image(self._path(variant, name)).pixels

    @staticmethod
    def _path(variant: Path, name: str) -> Path:
        return (variant / name).with_suffix(".png")


def gaussian_blur(pixels: np.ndarray, sigma_px: float) -> np.ndarray:
    """(H,W,3) uint8 blurred by k_σ; nothing below a tenth of a pixel."""
    if sigma_px < 0.1:
        return pixels
    return cv2.GaussianBlur(np.ascontiguousarray(pixels), (0, 0), sigma_px)
