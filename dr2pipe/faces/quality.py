"""How much detail a face in a photo has: a face better than a network's results is left alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dr2pipe.core.images import LUMA, Pixels
from dr2pipe.faces.align import Alignment, cut

_LUMA = np.array(LUMA)
_LARGEST_PX = 512  # side of the crop that is looked at
# Bands of half an octave, from 4 cycles per side of an aligned crop on.
_FIRST_CYCLES, _LOW_BANDS = 4.0, 4
# log10 of the power in these bands, less the mean of the first four: the median of 60 sharp
# faces at 512 px (scripts/research/measure_photos.py prints it).
_SHARP = (0.75, 0.26, -0.27, -0.71, -1.11, -1.61, -2.06, -2.47, -2.85, -3.17, -3.48, -4.07)
# A band has detail when its power is within this of a sharp face's, and this many times the
# noise's.
_FALL, _OVER_NOISE = 1.1, 4.0
# Printed dots and square pixels stand out of their band by more than this, in two directions: at
# least 350 times, where sixty sharp faces reach 50, and straight scratches and stripes about 100.
_SCREEN = 250.0
_SECTORS = 12  # of half a turn
_MEDIAN_TO_SIGMA = 0.6745  # of a normal distribution: Donoho and Johnstone 1994
_JPEG_BLOCK_PX = 8
# JPEG qualities below about 65 reach it.
_BLOCKY = 0.25
# A face has all the detail of its pixels from this share of them on: bands are half an octave wide.
# Small faces are steep, so their own detail counts as some noise.
_FULL, _CLEAN_NOISE, _CLEAN_BLOCKINESS = 0.7, 5.0, 0.2
_BLOCKS_MATTER_BELOW = 3
_TINY = 0.05


@dataclass(frozen=True)
class Quality:
    """What can be told of a face without a reference.

    Attributes:
        side_px: side of the aligned crop in pixels of the photo.
        effective_px: side in pixels that an aligned crop needs to hold the detail of the face.
        noise: standard deviation of the luma's noise, in levels of 255.
        blockiness: log ratio of jumps across JPEG's grid of 8 pixels to other jumps; about 0
            without a grid, 1 at JPEG quality 10.
        has_screen: whether detail ends at the dots of a print, or at square pixels.
    """

    side_px: float
    effective_px: float
    noise: float
    blockiness: float
    has_screen: bool = False

    def is_better_than(self, size: float, scale: int = 1) -> bool:
        """Whether a result with the detail of ``size`` pixels a side adds nothing to the face.

        It either has more detail, or as much as its pixels can show when the photo is enlarged
        ``scale`` times, without noise and blocks.
        """
        # Blocks are finer than the result's pixels where the face is much larger than the result.
        is_blocky = self.blockiness >= _BLOCKY and self.side_px < _BLOCKS_MATTER_BELOW * size
        if self.effective_px >= size:
            return not is_blocky
        # The lowest bands are taken for granted, so they say nothing about tiny faces.
        is_known = self.effective_px > 2 * _FIRST_CYCLES * 2 ** (_LOW_BANDS / 2)
        is_full = is_known and self.effective_px >= self.side_px * scale * _FULL
        return is_full and self.noise < _CLEAN_NOISE and self.blockiness < _CLEAN_BLOCKINESS


def estimate_quality(pixels: Pixels, alignment: Alignment) -> Quality:
    """Look at a face of a photo (H,W,3) uint8 sRGB, at its own size."""
    size = min(_LARGEST_PX, max(16, round(alignment.side_px)))
    luma = cut(pixels, alignment, size) @ _LUMA  # (size,size)
    noise = _noise(luma)
    power, peaks = band_power(luma)
    signal = power - noise**2
    low = np.log10(np.maximum(power[:_LOW_BANDS], 1e-9)).mean()
    expected = 10 ** (low + np.array(_SHARP[: len(power)]) - _FALL)
    has_detail = (signal >= expected) & (signal >= _OVER_NOISE * noise**2)
    is_screen = peaks >= _SCREEN * power
    found = has_detail & ~is_screen
    found[:_LOW_BANDS] = True
    bands = len(power) if found.all() else int(np.argmin(found))
    has_screen = bands < len(power) and bool(has_detail[bands] and is_screen[bands])
    effective_px = 2 * _FIRST_CYCLES * 2 ** (bands / 2)
    blockiness = _blockiness(pixels, alignment)
    return Quality(alignment.side_px, effective_px, noise, blockiness, has_screen)


def band_power(
    luma: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Power (levels squared) of (S,S) in bands of half an octave, up to S/2 cycles per side.

    By the median, which is log 2 of the mean where nothing stands out: a scratch or a fold has its
    power in one direction of the spectrum, and is no detail of the face. The second array has each
    band's largest value in other directions than that of its peak: dots have several, lines one.
    """
    size = len(luma)
    window = np.outer(np.hanning(size), np.hanning(size))
    spectrum = np.abs(np.fft.rfft2((luma - luma.mean()) * window)) ** 2 / np.square(window).sum()
    cycles = np.hypot(np.fft.fftfreq(size)[:, None] * size, np.arange(size // 2 + 1))
    band = np.floor(2 * np.log2(np.maximum(cycles, 1e-9) / _FIRST_CYCLES)).astype(int)
    count = min(len(_SHARP), int(2 * np.log2(size / 2 / _FIRST_CYCLES) + 1e-9))
    parts = [spectrum[band == i] for i in range(count)]
    power = np.array([np.median(part) / math.log(2) for part in parts])
    turned = np.arctan2(np.fft.fftfreq(size)[:, None] * size, np.arange(size // 2 + 1))
    sector = np.floor(turned / np.pi * _SECTORS).astype(int) % _SECTORS
    peaks = [_second_peak(part, sector[band == i]) for i, part in enumerate(parts)]
    return power, np.array(peaks)


def _second_peak(power: npt.NDArray[np.float64], sector: npt.NDArray[np.int_]) -> float:
    """The largest power in other directions than that of the largest of all."""
    apart = (sector - sector[np.argmax(power)]) % _SECTORS
    elsewhere = power[np.minimum(apart, _SECTORS - apart) > 1]
    return float(elsewhere.max()) if elsewhere.size else 0.0


def _noise(luma: npt.NDArray[np.float64]) -> float:
    """σ by the finest diagonal Haar detail."""
    side = len(luma) // 2 * 2
    x = luma[:side, :side]
    diagonal = (x[::2, ::2] - x[1::2, ::2] - x[::2, 1::2] + x[1::2, 1::2]) / 2
    return float(np.median(np.abs(diagonal)) / _MEDIAN_TO_SIGMA)


def _blockiness(pixels: Pixels, alignment: Alignment) -> float:
    """Of the part of the photo that holds the face, on the photo's own grid."""
    height, width = pixels.shape[:2]
    low = np.clip(alignment.corners().min(axis=0), 0, None) // _JPEG_BLOCK_PX * _JPEG_BLOCK_PX
    high = np.minimum(alignment.corners().max(axis=0), [width, height])
    (left, top), (right, bottom) = low.astype(int), high.astype(int)
    luma = pixels[top:bottom, left:right] @ _LUMA
    if min(luma.shape) < 2 * _JPEG_BLOCK_PX:
        return 0.0
    return float(np.mean([_across_grid(luma, axis) for axis in (0, 1)]))


def _across_grid(luma: npt.NDArray[Any], axis: int) -> float:
    jumps = np.abs(np.diff(luma, axis=axis)).mean(axis=1 - axis)
    on_grid = np.arange(1, len(jumps) + 1) % _JPEG_BLOCK_PX == 0
    return float(np.log((jumps[on_grid].mean() + _TINY) / (jumps[~on_grid].mean() + _TINY)))
