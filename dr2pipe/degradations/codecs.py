"""Compression by the real codecs."""

from __future__ import annotations

import cv2
import numpy as np

from dr2pipe.degradations.kernels import Pixels


def jpeg_roundtrip(pixels: Pixels, quality: int) -> Pixels:
    """(H,W,3) uint8 RGB after JPEG compression of ``quality`` 1..100."""
    return _roundtrip(pixels, ".jpg", cv2.IMWRITE_JPEG_QUALITY, quality)


def webp_roundtrip(pixels: Pixels, quality: int) -> Pixels:
    """(H,W,3) uint8 RGB after WebP compression of ``quality`` 1..100."""
    return _roundtrip(pixels, ".webp", cv2.IMWRITE_WEBP_QUALITY, quality)


def _roundtrip(pixels: Pixels, suffix: str, flag: int, quality: int) -> Pixels:
    data = cv2.imencode(suffix, pixels[..., ::-1], [flag, int(quality)])[1]
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
    if decoded is None:
        raise RuntimeError(f"OpenCV cannot read the {suffix} file that it wrote")
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)
