"""Compression by the real codecs."""

from __future__ import annotations

import cv2
import numpy as np


def jpeg_roundtrip(pixels: np.ndarray, quality: int) -> np.ndarray:
    """(H,W,3) uint8 RGB after JPEG compression of ``quality`` 1..100."""
    return _roundtrip(pixels, ".jpg", cv2.IMWRITE_JPEG_QUALITY, quality)


def webp_roundtrip(pixels: np.ndarray, quality: int) -> np.ndarray:
    """(H,W,3) uint8 RGB after WebP compression of ``quality`` 1..100."""
    return _roundtrip(pixels, ".webp", cv2.IMWRITE_WEBP_QUALITY, quality)


def _roundtrip(pixels: np.ndarray, suffix: str, flag: int, quality: int) -> np.ndarray:
    data = cv2.imencode(suffix, pixels[..., ::-1], [flag, int(quality)])[1]
    return np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])
