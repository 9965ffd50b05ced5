"""Coarse faces cached on disk: results of DR2 for clean faces.

The enhancer of DR2 is trained on y = k_σ * DR2(x; N, ω, τ) (Wang et al., CVPR 2023, §3.3). DR2(x)
is slow, so ``scripts/make_coarse.py`` makes it once, in several variants with their own settings.
The blur k_σ is drawn anew for every showing.
"""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from dr2pipe.core import files, images
from dr2pipe.core.errors import Dr2pipeError, PictureError
from dr2pipe.core.foreign import read_object
from dr2pipe.core.images import Pixels
from dr2pipe.core.records import RunRecords
from dr2pipe.data.folders import FaceDataset, written_name

PLAN = "coarse.json"  # holds the number of variants that a complete folder has
CLEAN = "clean"  # the faces of an .npz, as files


class CoarseCache:
    """The coarse faces of a folder made by ``scripts/make_coarse.py``.

    Each is found by the record of the run that made it.

    Raises:
        Dr2pipeError: the folder holds no variant, or fewer than planned.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        numbered = sorted(p for p in self.folder.glob("variant_*") if p.is_dir())
        if not numbered:
            raise Dr2pipeError(f"no coarse faces in {folder}; scripts/make_coarse.py makes them")
        plan = self.folder / PLAN
        planned = read_object(plan).get("variants") if os.path.lexists(plan) else 0
        if not isinstance(planned, int) or len(numbered) < planned:
            raise Dr2pipeError(
                f"{folder} has {len(numbered)} of {planned} variants; run "
                f"scripts/make_coarse.py to its end first"
            )
        # By variant: record of the run by the path of the clean face.
        self.variants = {variant: RunRecords(variant).finished() for variant in numbered}

    def check(self, faces: FaceDataset) -> None:
        """Check that every variant has a coarse face of every clean face, made of it as it is.

        Raises:
            Dr2pipeError: a face without one, or one that was replaced since; the message names it.
        """
        for place, name in enumerate(faces.names):
            made_of = self._name_of(faces, name)
            sha256 = self._sha256_of(faces, place)
            for variant, records in self.variants.items():
                record = records.get(made_of, {})
                if not isinstance(record.get("output"), str):
                    raise Dr2pipeError(
                        f"{name} has no coarse version in {variant}; run scripts/make_coarse.py"
                    )
                if record.get("sha256") != sha256:
                    raise Dr2pipeError(
                        f"{name} has changed since its coarse version in {variant} was made; run "
                        "scripts/make_coarse.py again"
                    )
                path = files.safe_join(variant, record["output"])
                if not path.is_file():
                    raise Dr2pipeError(f"{path} is missing; run scripts/make_coarse.py again")

    def read(self, faces: FaceDataset, name: str, rng: np.random.Generator) -> Pixels:
        """A random variant of one of ``faces``, (S,S,3) RGB.

        Raises:
            PictureError: the file cannot be read.
        """
        variant = list(self.variants)[int(rng.integers(len(self.variants)))]
        record = self.variants[variant][self._name_of(faces, name)]
        path = files.safe_join(variant, record["output"])
        try:
            return images.read_image(path).pixels
        except PictureError as error:
            raise PictureError(f"{path}: {error}") from None

    @staticmethod
    def _name_of(faces: FaceDataset, name: str) -> str:
        """The path by which the run that made the coarse faces knew a face."""
        return (
            written_name(name)
            if faces.pixels is not None
            else Path(faces.relative(name)).as_posix()
        )

    def _sha256_of(self, faces: FaceDataset, place: int) -> str:
        """Of the file that the coarse faces are to be made of."""
        if faces.pixels is None:
            return images.hash_bytes(images.read_file(faces.names[place]))
        path = files.safe_join(self.folder / CLEAN, written_name(faces.names[place]))
        if not path.is_file() or not np.array_equal(
            images.read_image(path).pixels, faces.pixels[place]
        ):
            raise Dr2pipeError(
                f"{faces.names[place]} of {faces.root} is not the face in {path}, of which the "
                "coarse ones were made; run scripts/make_coarse.py into another folder"
            )
        return images.hash_bytes(images.read_file(path))


def gaussian_blur(pixels: npt.NDArray[np.uint8], sigma_px: float) -> npt.NDArray[np.uint8]:
    """(H,W,3) blurred by a Gaussian k_σ; unchanged below a tenth of a pixel."""
    if sigma_px < 0.1:
        return pixels
    blurred = cv2.GaussianBlur(np.ascontiguousarray(pixels), (0, 0), sigma_px)
    return blurred.astype(np.uint8, copy=False)
