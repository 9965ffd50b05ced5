"""ONet, the third network of MTCNN (Zhang et al., IEEE Signal Processing Letters 2016).

It looks at a face of 48 pixels and says where five points are, and whether it is a face at all.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from dr2pipe.core.images import Pixels
from dr2pipe.features.carried import CarriedFile

FILE = CarriedFile(
    package="mtcnn",
    version="1.0.0",
    name="assets/weights/onet.lz4",
    sha256="94f6ea2f4cf985275ee958cdd762d17b6009348a4fb9d8c6be39ba73ffd22ca3",
    size=1557637,
)
Points = npt.NDArray[np.float64]  # x, y in pixels

SIDE_PX = 48
# Where the five points lie in faces of 512 pixels that are aligned as those of FFHQ.
_FFHQ_POINTS = np.array(
    [
        [192.98138, 239.94708],
        [318.90277, 240.1936],
        [256.63416, 314.01935],
        [201.26117, 371.41043],
        [313.08905, 371.15118],
    ]
)
# Where ONet wants them: such faces a little larger, around another middle.
_TARGET = (_FFHQ_POINTS - [256, 300]) * (SIDE_PX / 512) * 1.4875 + SIDE_PX / 2
_PASSES = 2  # the second sees a face that the first has put upright
# Each pass takes the mean over views of a face at these sizes, and over their mirror images.
_SIZES = (0.9, 1.0, 1.1)
_MIRRORED = [1, 0, 2, 4, 3]  # order of the points in the mirror
_BATCH = 16


class ONet(nn.Module):
    """Four convolutions and one hidden layer; (B,3,48,48) RGB in [-1,1] to points and odds."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, kernel)
            for before, after, kernel in ((3, 32, 3), (32, 64, 3), (64, 64, 3), (64, 128, 2))
        )
        self.slopes = nn.ModuleList(nn.PReLU(width) for width in (32, 64, 64, 128, 256))
        self.hidden = nn.Linear(1152, 256)
        self.points, self.is_face = nn.Linear(256, 10), nn.Linear(256, 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Points (B,5,2) as x, y in shares of the side, and log-odds of being a face (B,)."""
        for i, convolution in enumerate(self.convolutions):
            x = self.slopes[i](convolution(x))
            if i < 3:  # (B,32,23,23), (B,64,10,10), (B,64,4,4)
                x = F.max_pool2d(x, kernel_size=3 if i < 2 else 2, stride=2, ceil_mode=True)
        # (B,128,3,3). The weights were trained where pictures are stored column by column.
        x = x.permute(0, 3, 2, 1).flatten(1)
        x = self.slopes[4](self.hidden(x))
        points = self.points(x).unflatten(1, (2, 5)).transpose(1, 2)  # all x stand before all y
        no, yes = self.is_face(x).unbind(dim=1)
        return points, yes - no

    @torch.no_grad()
    def refine(self, image: Pixels, landmarks: Points) -> tuple[Points, npt.NDArray[np.float64]]:
        """Move five points of each face to where they are, and say how likely each is a face.

        Args:
            image: (H,W,3) uint8 RGB.
            landmarks: (N,5,2) x, y in pixels, the first pixel's centre at 0.5: eyes, nose,
                corners of the mouth. Faces may be turned by any angle.

        Returns:
            landmarks (N,5,2) in the same order, and log-odds (N,) of being a face.
        """
        landmarks = np.array(landmarks, dtype=np.float64)
        odds = np.zeros(len(landmarks))
        for start in range(0, len(landmarks), _BATCH):
            part = slice(start, start + _BATCH)
            for _ in range(_PASSES):
                landmarks[part], odds[part] = self._refine_once(image, landmarks[part])
        return landmarks, odds

    def _refine_once(
        self, image: Pixels, landmarks: Points
    ) -> tuple[Points, npt.NDArray[np.float64]]:
        targets = [(_TARGET - SIDE_PX / 2) * size + SIDE_PX / 2 for size in _SIZES]
        matrices = [similarity(points, target) for points in landmarks for target in targets]
        crops = np.stack([_cut_out(image, matrix) for matrix in matrices])
        crops = np.concatenate([crops, crops[:, :, ::-1]])
        x = torch.from_numpy((crops.astype(np.float32) - 127.5) / 128).permute(0, 3, 1, 2)
        points, odds = self(x.contiguous())
        found, mirrored = points.double().numpy().reshape(2, -1, 5, 2)
        mirrored = mirrored[:, _MIRRORED]
        mirrored[..., 0] = 1 - mirrored[..., 0]
        moved = [
            _moved_back(points * SIDE_PX, matrix)
            for points, matrix in zip((found + mirrored) / 2, matrices, strict=True)
        ]
        by_face = (len(landmarks), len(_SIZES))
        mean_odds = odds.double().numpy().reshape(2, *by_face).mean(axis=(0, 2))
        return np.reshape(moved, (*by_face, 5, 2)).mean(axis=1), mean_odds


def _moved_back(points: Points, matrix: npt.NDArray[np.float64]) -> Points:
    return (points - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T


def similarity(source: Points, target: Points) -> npt.NDArray[np.float64]:
    """The turn, scale and shift (2,3) that bring points (P,2) nearest to others, least squares.

    Where all points of ``source`` are one, the scale is 0.
    """
    middle, target_middle = source.mean(axis=0), target.mean(axis=0)
    (x, y), (u, v) = (source - middle).T, (target - target_middle).T
    spread = max((x * x + y * y).sum(), 1e-12)
    a, b = (x * u + y * v).sum() / spread, (x * v - y * u).sum() / spread
    linear = np.array([[a, -b], [b, a]])
    return np.column_stack([linear, target_middle - linear @ middle])


def _cut_out(image: Pixels, matrix: npt.NDArray[np.float64]) -> Pixels:
    """(48,48,3): the face that ``matrix`` brings into the square; grey outside the picture."""
    import cv2

    square = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    corners = _moved_back(square * SIDE_PX, matrix)
    limits = np.array(image.shape[1::-1])
    low = np.clip(np.floor(corners.min(axis=0)) - 2, 0, limits - 1).astype(int)
    high = np.clip(np.ceil(corners.max(axis=0)) + 2, low + 1, limits).astype(int)
    around = np.ascontiguousarray(image[low[1] : high[1], low[0] : high[0]])
    # First by means of pixels to about twice the size, so that every pixel counts.
    scale = math.hypot(matrix[0, 0], matrix[1, 0])
    wanted = np.ceil((high - low) * min(2 * scale, 1)).clip(min=1)
    sides = wanted.astype(int).tolist()
    reduced = cv2.resize(around, sides, interpolation=cv2.INTER_AREA)
    linear = matrix[:, :2] * ((high - low) / wanted) * 2
    # OpenCV has the first pixel's centre at 0.
    shift = (matrix[:, :2] @ low + matrix[:, 2]) * 2 + linear @ [0.5, 0.5] - 0.5
    cut = cv2.warpAffine(
        reduced,
        np.column_stack([linear, shift]),
        (2 * SIDE_PX, 2 * SIDE_PX),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(128, 128, 128),
    )
    small = cv2.resize(cut, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA)
    return np.asarray(small, dtype=np.uint8)


def load_onet() -> ONet:
    """ONet with the weights that come with the package mtcnn.

    Raises:
        MissingPackageError: mtcnn is not installed.
        CheckpointError: its file is another one.
    """
    import joblib

    # The file is a pickle, which could run code. These bytes have the known sha256, so they hold
    # 21 arrays alone.
    return _from_arrays(joblib.load(io.BytesIO(FILE.read())))


def _from_arrays(arrays: Sequence[npt.NDArray[np.float32]]) -> ONet:
    """Four times kernel (height, width, in, out), bias, slopes; then matrices (in, out), biases."""
    network = ONet()
    tensors = [torch.from_numpy(np.array(array)) for array in arrays]
    state = {
        "hidden.weight": tensors[12].T,
        "hidden.bias": tensors[13],
        "slopes.4.weight": tensors[14],
    }
    for i in range(4):
        kernel, bias, slopes = tensors[3 * i : 3 * i + 3]
        state[f"convolutions.{i}.weight"] = kernel.permute(3, 2, 0, 1)
        state[f"convolutions.{i}.bias"] = bias
        state[f"slopes.{i}.weight"] = slopes.flatten()
    # Between them are the corrections of a box, which landmarks make needless.
    state |= {"points.weight": tensors[17].T, "points.bias": tensors[18]}
    state |= {"is_face.weight": tensors[19].T, "is_face.bias": tensors[20]}
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)
