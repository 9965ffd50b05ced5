"""Random moves and colours of faces, against learning a few by heart."""

from __future__ import annotations

import cv2
import numpy as np
import torch


def draw_move(strength: float, rng: np.random.Generator) -> np.ndarray:
    """(2,3): turn, scale and shift about the middle of a picture whose side is 1."""
    angle = strength * rng.uniform(-0.2, 0.2)
    scale = 1 + strength * rng.uniform(-0.15, 0.15)
    shift = strength * rng.uniform(-0.08, 0.08, size=2)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    offset = 0.5 + shift - turn @ [0.5, 0.5]
    return np.column_stack([turn, offset])


def move(pixels: np.ndarray, by: np.ndarray) -> np.ndarray:
    """(S,S,3) uint8 moved alike at every size; what comes in from outside is mirrored."""
    side = len(pixels)
    matrix = by.copy()
    # Pixel i has its centre at (i + 0.5) / side.
    matrix[:, 2] = side * by[:, 2] + 0.5 * (by[:, :2].sum(axis=1) - 1)
    return cv2.warpAffine(
        np.ascontiguousarray(pixels),
        matrix,
        (side, side),
        flags=cv2.INTER_LANCZOS4,
        borderMode=cv2.BORDER_REFLECT_101,
    )


def draw_colours(strength: float, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Gain and shift (3,1,1) of pictures in [-1,1]; channels differ half as much as pictures."""
    gain = (1 + strength * rng.uniform(-1, 1)) * (1 + strength / 2 * rng.uniform(-1, 1, size=3))
    shift = strength * rng.uniform(-1, 1) + strength / 2 * rng.uniform(-1, 1, size=3)
    return tuple(torch.tensor(v, dtype=torch.float32).view(3, 1, 1) for v in (gain, shift))
