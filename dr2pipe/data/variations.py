"""Random moves and colours of faces, so that a network cannot memorise few faces."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import torch


def draw_move(strength: float, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """A random affine map (2,3) that turns, scales and shifts a picture about its middle.

    Args:
        strength: 0..1; 1 turns by up to 0.2 radians, scales by up to 15 % and shifts by up to
            8 % of the side.
        rng: of the draws.

    Returns:
        In units of the picture's side.
    """
    angle = strength * rng.uniform(-0.2, 0.2)
    scale = 1 + strength * rng.uniform(-0.15, 0.15)
    shift = strength * rng.uniform(-0.08, 0.08, size=2)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    offset = 0.5 + shift - turn @ [0.5, 0.5]
    return np.column_stack([turn, offset])


def move(pixels: npt.NDArray[np.uint8], by: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Move a picture; the border is filled by mirroring.

    Args:
        pixels: (S,S,3).
        by: what :func:`draw_move` returns; it has the same effect at every size.

    Returns:
        (S,S,3).
    """
    side = len(pixels)
    matrix = by.copy()
    # Pixel i has its centre at (i + 0.5) / side.
    matrix[:, 2] = side * by[:, 2] + 0.5 * (by[:, :2].sum(axis=1) - 1)
    moved = cv2.warpAffine(
        np.ascontiguousarray(pixels),
        matrix,
        (side, side),
        flags=cv2.INTER_CUBIC,  # Lanczos takes four times as long, most of making a pair
        borderMode=cv2.BORDER_REFLECT_101,
    )
    return moved.astype(np.uint8, copy=False)


def draw_colours(strength: float, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Random gain and shift (3,1,1) for a picture in [-1,1].

    Args:
        strength: 0..1; all channels change by up to this, and each by up to half of it more.
        rng: of the draws.
    """
    gain = (1 + strength * rng.uniform(-1, 1)) * (1 + strength / 2 * rng.uniform(-1, 1, size=3))
    shift = strength * rng.uniform(-1, 1) + strength / 2 * rng.uniform(-1, 1, size=3)
    gain_tensor, shift_tensor = (
        torch.tensor(v, dtype=torch.float32).view(3, 1, 1) for v in (gain, shift)
    )
    return gain_tensor, shift_tensor
