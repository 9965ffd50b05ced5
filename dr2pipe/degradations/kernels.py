"""Blur kernels (K,K) float32 that sum to one, and the types of pictures."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]  # (H,W,3) RGB
Image = npt.NDArray[Any]  # (H,W,3) float32 RGB in 0..255, not rounded; it may lie outside
Kernel = npt.NDArray[np.float32]


def gaussian_kernel(size: int, sigma_x_px: float, sigma_y_px: float, angle: float = 0.0) -> Kernel:
    """Anisotropic Gaussian; ``angle`` in radians turns its first axis from x towards y."""
    offsets = np.arange(size) - (size - 1) / 2
    y, x = np.meshgrid(offsets, offsets, indexing="ij")
    along = np.cos(angle) * x + np.sin(angle) * y
    across = -np.sin(angle) * x + np.cos(angle) * y
    kernel = np.exp(-0.5 * ((along / sigma_x_px) ** 2 + (across / sigma_y_px) ** 2))
    return _normalised(kernel)


def motion_kernel(length_px: float, angle: float) -> Kernel:
    """A straight line of ``length_px`` pixels at ``angle`` radians, one pixel wide."""
    size = 2 * int(np.ceil(length_px / 2)) + 3
    scale = 16  # drawn enlarged, so that short and slanted lines keep their length
    canvas = np.zeros((size * scale, size * scale), np.float32)
    centre = (size * scale - 1) / 2
    reach = max(length_px - 1, 0) / 2 * scale
    ends = [
        (centre + sign * reach * np.cos(angle), centre + sign * reach * np.sin(angle))
        for sign in (-1, 1)
    ]
    points = [tuple(round(v) for v in end) for end in ends]
    cv2.line(canvas, points[0], points[1], 1.0, thickness=scale)
    return _normalised(cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA))


def disk_kernel(radius_px: float) -> Kernel:
    """A defocused lens: a uniform disk with an antialiased rim."""
    size = 2 * int(np.ceil(radius_px)) + 1
    offsets = np.arange(size) - (size - 1) / 2
    distance = np.hypot(offsets[:, None], offsets[None])
    return _normalised(np.clip(radius_px + 0.5 - distance, 0, 1))


def blur(image: Image, kernel: Kernel) -> Image:
    """(H,W,3) float32 convolved with ``kernel``; borders are reflected."""
    return cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101)


def _normalised(kernel: npt.NDArray[Any]) -> Kernel:
    normalised: Kernel = (kernel / kernel.sum()).astype(np.float32)
    return normalised
