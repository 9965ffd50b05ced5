"""Coarse faces cached on disk: results of DR2 for clean faces.

The enhancer of DR2 is trained on y = k_σ * DR2(x; N, ω, τ) (Wang et al., CVPR 2023, §3.3). DR2(x)
is slow, so ``dr2pipe make-coarse`` makes it once, in several variants with their own settings.
The blur k_σ is drawn anew for every showing.
"""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from dr2pipe.core import files, images
from dr2pipe.core.errors import ConfigError, Dr2pipeError, PictureError
from dr2pipe.core.foreign import read_object
from dr2pipe.core.images import Pixels
from dr2pipe.core.pairing import Pairing
from dr2pipe.core.records import RunRecords
from dr2pipe.data.folders import FaceDataset, written_name
from dr2pipe.data.shards import are_shards

PLAN = "coarse.json"  # holds the number of variants that a complete folder has
CLEAN = "clean"  # the faces of an .npz, as files


class CoarseCache:
    """The coarse faces of a folder made by ``dr2pipe make-coarse``.

    Each is found by the record of the run that made it. In a variant without records, such as
    one that another tool made, it is found by its name, see :mod:`dr2pipe.core.pairing`.

    Raises:
        Dr2pipeError: the folder holds no variant, or fewer than planned.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.variants = sorted(p for p in self.folder.glob("variant_*") if p.is_dir())
        if not self.variants:
            raise Dr2pipeError(f"no coarse faces in {folder}; dr2pipe make-coarse makes them")
        plan = self.folder / PLAN
        planned = read_object(plan).get("variants") if os.path.lexists(plan) else 0
        if not isinstance(planned, int) or len(self.variants) < planned:
            raise Dr2pipeError(
                f"{folder} has {len(self.variants)} of {planned} variants; run "
                f"dr2pipe make-coarse to its end first"
            )
        self._found: list[dict[str, Path]] = []  # by variant, the file by the name of the face

    def find(self, faces: FaceDataset) -> None:
        """Find a coarse face of every clean face in every variant, made of it as it is.

        Raises:
            Dr2pipeError: faces without one, or a face that was replaced since.
        """
        self._found, hashes = [], dict[str, str]()
        for variant in self.variants:
            records = RunRecords(variant).finished()
            if not records:
                self._found.append(_by_name(variant, faces))
                continue
            if not hashes:
                hashes = {name: self._sha256_of(faces, i) for i, name in enumerate(faces.names)}
            found = {}
            for name in faces.names:
                record = records.get(_path_in_run(faces, name), {})
                if not isinstance(record.get("output"), str):
                    continue
                if record.get("sha256") != hashes[name]:
                    raise Dr2pipeError(
                        f"{name} has changed since its coarse version in {variant} was made; run "
                        "dr2pipe make-coarse again"
                    )
                path = files.safe_join(variant, record["output"])
                if path.is_file():
                    found[name] = path
            _check_all(variant, faces, found)
            self._found.append(found)

    def read(self, name: str, rng: np.random.Generator) -> Pixels:
        """A random variant of a face, (S,S,3) RGB.

        Args:
            name: one of the ``names`` of the faces that :meth:`find` got.
            rng: of the choice.

        Raises:
            PictureError: the file cannot be read.
        """
        path = self._found[int(rng.integers(len(self._found)))][name]
        try:
            return images.read_image(path).pixels
        except PictureError as error:
            raise PictureError(f"{path}: {error}") from None

    def _sha256_of(self, faces: FaceDataset, place: int) -> str:
        """Of the file that the coarse versions of a face are to be made of."""
        name = faces.names[place]
        if are_shards(str(faces.root)):
            raise ConfigError(f"{faces.root}: tar files have no coarse versions; use a folder")
        if faces.pixels is None:
            return images.hash_bytes(images.read_file(name))
        path = files.safe_join(self.folder / CLEAN, written_name(name))
        if not path.is_file() or not np.array_equal(
            images.read_image(path).pixels, faces.pixels[place]
        ):
            raise Dr2pipeError(
                f"{name} of {faces.root} is not the face in {path}, of which the coarse ones were "
                "made; run dr2pipe make-coarse into another folder"
            )
        return images.hash_bytes(images.read_file(path))


def _path_in_run(faces: FaceDataset, name: str) -> str:
    """The path by which the run that makes coarse faces knows a face."""
    return written_name(name) if faces.pixels is not None else faces.relative(name)


def _by_name(variant: Path, faces: FaceDataset) -> dict[str, Path]:
    folder = variant / "restored"
    offered = images.find_images(folder).paths if folder.is_dir() else []
    wanted = [faces.relative(name) for name in faces.names]
    pairing = Pairing(wanted, [path.relative_to(folder).as_posix() for path in offered], folder)
    found = {
        name: folder / pairing.partner(relative)
        for name, relative in zip(faces.names, wanted, strict=True)
        if pairing.has_partner(relative)
    }
    _check_all(variant, faces, found)
    return found


def _check_all(variant: Path, faces: FaceDataset, found: dict[str, Path]) -> None:
    missing = [name for name in faces.names if name not in found]
    if missing:
        raise Dr2pipeError(
            f"{len(missing)} faces have no coarse version in {variant}, the first is {missing[0]}"
        )


def gaussian_blur(pixels: npt.NDArray[np.uint8], sigma_px: float) -> npt.NDArray[np.uint8]:
    """(H,W,3) blurred by a Gaussian k_σ; unchanged below a tenth of a pixel."""
    if sigma_px < 0.1:
        return pixels
    blurred = cv2.GaussianBlur(np.ascontiguousarray(pixels), (0, 0), sigma_px)
    return blurred.astype(np.uint8, copy=False)
