"""Photos with faces at known places, made of numbers."""

import numpy as np

from dr2pipe.core.images import resize_pixels
from dr2pipe.faces.align import TEMPLATE


def landmarks_at(x, y, side_px, degrees=0.0):
    """Landmarks of a face whose aligned crop has this centre, side and rotation."""
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return (TEMPLATE - 0.5) * side_px @ turn.T + [x, y]


def smooth_photo(height=300, width=400, seed=0, cells=24):
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
    return resize_pixels(small, (height, width))


def detailed_photo(size, seed=0, fall=1.45):
    """Power that falls as in photos of faces: amplitude about 1/f^fall."""
    rng = np.random.default_rng(seed)
    spectrum = np.fft.rfft2(rng.normal(size=(size, size)))
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)) * size
    luma = np.fft.irfft2(spectrum / np.maximum(frequency, 1) ** fall, (size, size))
    luma = (luma - luma.mean()) / luma.std() * 50 + 128
    return np.repeat(np.clip(np.round(luma), 0, 255).astype(np.uint8)[..., None], 3, axis=2)
