"""Masks for face inpainting: random ones for training, and shapes that follow a face.

A mask is (size,size) bool, True in the holes, which are to be filled. The random masks are those
that EXE-GAN trains with: the strokes of Yu et al., "Free-Form Image Inpainting with Gated
Convolution" (ICCV 2019), with rectangles, and the large masks of Zhao et al., "Large Scale Image
Completion via Co-Modulated Generative Adversarial Networks" (ICLR 2021).

Published lengths are pixels of a 256-pixel picture. Here they grow with the picture, so that a
seed gives the same shapes at every size. ``reference_px`` is the side at which the published
lengths hold: ``reference_px=size`` uses them unscaled, as EXE-GAN does at 512.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from dr2pipe.core.errors import ConfigError, Dr2pipeError

PUBLISHED_PX = 256
# As seen in the picture: eyeL and mouthL are those nearer to its left side.
LANDMARKS = ("eyeL", "eyeR", "nose", "mouthL", "mouthR")
Landmarks = Mapping[str, Sequence[float] | npt.NDArray[Any]]
Mask = npt.NDArray[np.bool_]  # (size,size)
Canvas = npt.NDArray[np.uint8]  # (side,side) of 0 and 1, on which masks are drawn
Places = npt.NDArray[np.float64]


def draw_mask(name: str, size: int, rng: np.random.Generator) -> Mask:
    """One mask (size,size) bool of the kind ``name`` of ``MASKS``, neither empty nor full.

    Raises:
        ConfigError: unknown name.
    """
    if name not in MASKS:
        raise ConfigError(f"unknown mask {name!r}; choose from {', '.join(MASKS)}")
    _check_size(size)
    while True:
        mask = MASKS[name](size, rng)
        if 0 < mask.mean() < 1:
            return mask


def stroke_rect(size: int, rng: np.random.Generator, *, reference_px: int = PUBLISHED_PX) -> Mask:
    """Up to 4 rectangles with sides below 128 px, up to 9 below 64 px, and free-form strokes.

    On average, holes cover about two thirds.
    """
    canvas, scale = _canvas(size, reference_px)
    for most, side_px in ((4, 128), (9, 64)):
        _fill_rectangles(canvas, rng, most, side_px * scale, overhang=False)
    _draw_free_strokes(canvas, rng, scale)
    return _to_mask(canvas, size)


def free_form(size: int, rng: np.random.Generator, *, reference_px: int = PUBLISHED_PX) -> Mask:
    """Ten free-form strokes; on average, holes cover about six tenths."""
    canvas, scale = _canvas(size, reference_px)
    _draw_free_strokes(canvas, rng, scale)
    return _to_mask(canvas, size)


def comodulated(
    size: int,
    rng: np.random.Generator,
    *,
    reference_px: int = PUBLISHED_PX,
    largest_rectangle: float = 1.0,
) -> Mask:
    """Large holes: up to 13 rectangles and 19 zigzag strokes, redrawn if empty or full.

    Up to 4 rectangles have sides below the share ``largest_rectangle`` of the picture's, up to 9
    below half of that. On average, holes cover 0.73 of the picture, and 0.60 with a
    ``largest_rectangle`` of 0.5. ``reference_px`` concerns only the widths of strokes: other
    lengths are shares of the picture.
    """
    if not 0 < largest_rectangle <= 1:
        raise ValueError(f"largest_rectangle must be in (0, 1], got {largest_rectangle}")
    while True:
        canvas, scale = _canvas(size, reference_px)
        _draw_zigzags(canvas, rng, scale)
        # All zigzags run to the right. EXE-GAN's code was meant to mirror them, but drops the
        # mirrored copy. Mirroring each by itself would make larger holes, so all are mirrored
        # together.
        canvas = canvas[:: rng.choice((-1, 1)), :: rng.choice((-1, 1))].copy()
        largest = largest_rectangle * len(canvas)
        for most, side in ((9, largest / 2), (4, largest)):
            _fill_rectangles(canvas, rng, most, side, overhang=True)
        mask = _to_mask(canvas, size)
        if 0 < mask.mean() < 1:
            return mask


def center(size: int, rng: np.random.Generator | None = None) -> Mask:
    """The middle half of the rows and of the columns; ``rng`` is not used."""
    _check_size(size)
    side = size // 2
    middle = slice((size - side) // 2, (size + side) // 2)
    mask = np.zeros((size, size), bool)
    mask[middle, middle] = True
    return mask


def glasses(size: int, landmarks: Landmarks) -> Mask:
    """Two rounded lenses, a bridge, and temples that run to the picture's sides.

    ``landmarks`` maps ``LANDMARKS`` to (x, y) in pixels, the first pixel's centre at 0.5. Parts
    outside the picture are cut off.

    Raises:
        Dr2pipeError: a landmark is missing or not finite, or all lie on one line.
    """
    u, v, _ = _face_coordinates(size, landmarks)
    across = np.abs(np.abs(u) - 0.5) / 0.41
    along = np.abs(v - 0.03) / 0.34
    # The third power lies between an ellipse (2) and a rectangle: lenses with round corners.
    lenses: Mask = across**3 + along**3 <= 1
    temples: Mask = np.abs(v + 0.04) <= 0.06
    return lenses | temples


def mouth_mask(size: int, landmarks: Landmarks) -> Mask:
    """A surgical mask: from the bridge of the nose over the cheeks to below the chin.

    ``landmarks`` and errors as for ``glasses``.
    """
    u, v, (nose_u, nose_v) = _face_coordinates(size, landmarks)
    # A turned head moves the nose, on which the cloth peaks, and shows more of the other cheek.
    nose_u = min(max(nose_u, -0.5), 0.5)
    left, right, peak = 1.05 + 0.6 * nose_u, 1.05 - 0.6 * nose_u, 0.6 * nose_u
    upper = np.interp(
        u,
        [-left, -0.5, peak - 0.1, peak + 0.1, 0.5, right],
        [0.5, 0.42, 0.4 * nose_v, 0.4 * nose_v, 0.42, 0.5],
    )
    outwards = np.where(u < 0, -u / left, u / right)
    mask: Mask = (outwards <= 1) & (upper <= v) & (v <= 1.95 - 0.95 * outwards**3)
    return mask


MASKS: dict[str, Callable[[int, np.random.Generator], Mask]] = {
    "stroke_rect": stroke_rect,
    "free_form": free_form,
    "comodulated": comodulated,
    "center": center,
}


def _draw_free_strokes(canvas: Canvas, rng: np.random.Generator, scale: float) -> None:
    """Draw ten paths of up to 20 straight pieces, each with its own direction and width."""
    for _ in range(10):
        pieces = int(rng.integers(0, 21))
        start = rng.uniform(0, len(canvas), size=2)
        angles = rng.uniform(0, 2 * math.pi, pieces)
        lengths = rng.uniform(0, 100 * scale, pieces)
        widths = rng.integers(10, 25, pieces) // 2 * 2 * scale
        _draw_path(canvas, start, angles, lengths, widths)


def _draw_zigzags(canvas: Canvas, rng: np.random.Generator, scale: float) -> None:
    """Up to 19 paths of 4 to 17 vertices that go up and down by turns, 12 to 48 px wide."""
    side = len(canvas)
    typical, spread = side * math.sqrt(2) / 8, 2 * math.pi / 15
    for _ in range(int(rng.integers(0, 20))):
        pieces = int(rng.integers(4, 18)) - 1
        start = rng.uniform(0, side, size=2)
        lowest, highest = 2 * math.pi / 5 + np.array([-1, 1]) * rng.uniform(0, spread, size=2)
        angles = rng.uniform(lowest, highest, pieces)
        angles[::2] *= -1
        lengths = rng.normal(typical, typical / 2, pieces).clip(0, 2 * typical)
        width = (rng.integers(12, 49) - 1) * scale  # cv2 draws lines a pixel wider
        _draw_path(canvas, start, angles, lengths, np.full(pieces, width))


def _draw_path(
    canvas: Canvas, start: Places, angles: Places, lengths: Places, widths: npt.NDArray[Any]
) -> None:
    """Draw thick pieces with round ends; a piece that leaves the canvas ends at its edge."""
    edge = len(canvas) - 1
    steps = np.stack([np.cos(angles), np.sin(angles)], axis=1) * lengths[:, None]
    x, y = (min(float(value), edge) for value in start)
    for (step_x, step_y), width in zip(steps.tolist(), widths.tolist(), strict=True):
        end_x, end_y = min(max(x + step_x, 0), edge), min(max(y + step_y, 0), edge)
        ends = (round(x), round(y)), (round(end_x), round(end_y))
        cv2.line(canvas, *ends, 1, max(round(width), 1))
        x, y = end_x, end_y


def _fill_rectangles(
    canvas: Canvas, rng: np.random.Generator, most: int, side: float, *, overhang: bool
) -> None:
    """Fill 0 to ``most`` rectangles with sides below ``side``; with overhang, half may be outside."""
    count = int(rng.integers(0, most + 1))
    sides = rng.uniform(0, side, size=(count, 2))
    place = rng.random((count, 2))
    if overhang:
        first = place * len(canvas) - sides / 2
    else:
        first = place * np.maximum(len(canvas) - sides, 0)
    corners = np.round(np.concatenate([first, first + sides], axis=1)).clip(0).astype(int)
    for top, left, bottom, right in corners:
        canvas[top:bottom, left:right] = 1


def _canvas(size: int, reference_px: int) -> tuple[Canvas, float]:
    """An empty canvas, and its pixels per published pixel.

    Small masks are drawn on a whole multiple of their size: line widths are whole pixels, and
    rounding them at 64 px would change the share of the hole.
    """
    _check_size(size)
    if reference_px <= 0:
        raise ValueError(f"reference_px must be positive, got {reference_px}")
    side = size * math.ceil(PUBLISHED_PX / size)
    return np.zeros((side, side), np.uint8), side / reference_px


def _to_mask(canvas: Canvas, size: int) -> Mask:
    """(size,size): each pixel takes the value at its middle, which keeps the share of the holes."""
    times = len(canvas) // size
    return canvas[times // 2 :: times, times // 2 :: times] > 0


def _face_coordinates(
    size: int, landmarks: Landmarks
) -> tuple[Places, Places, tuple[float, float]]:
    """(u, v) of every pixel's centre, both (size,size), and those of the nose.

    Affine coordinates in which the eyes are at (-0.5, 0) and (0.5, 0) and the middle of the
    mouth at (0, 1): shapes given in them turn and grow with the face, and lean with a head that
    looks to the side.
    """
    _check_size(size)
    left, right, nose, *corners = (_point(landmarks, name) for name in LANDMARKS)
    middle, across = (left + right) / 2, right - left
    down = sum(corners) / 2 - middle
    area = across[0] * down[1] - across[1] * down[0]
    if abs(area) < 1e-6:
        raise Dr2pipeError("the landmarks span no face: eyes and mouth lie on one line")

    def in_face(x: Any, y: Any) -> tuple[Any, Any]:
        x, y = x - middle[0], y - middle[1]
        return (x * down[1] - y * down[0]) / area, (y * across[0] - x * across[1]) / area

    centres = np.arange(size) + 0.5
    return *in_face(centres[None], centres[:, None]), in_face(*nose)


def _point(landmarks: Landmarks, name: str) -> Places:
    if name not in landmarks:
        raise Dr2pipeError(f"landmark {name!r} is missing; needed are {', '.join(LANDMARKS)}")
    point = np.asarray(landmarks[name], float)
    if point.shape != (2,) or not np.isfinite(point).all():
        raise Dr2pipeError(f"landmark {name!r} must be a finite (x, y), got {landmarks[name]}")
    return point


def _check_size(size: int) -> None:
    if not isinstance(size, (int, np.integer)) or size < 2:
        raise ValueError(f"size must be a whole number of pixels from 2 upwards, got {size!r}")
