"""Degradation families kept for evaluation, each with a severity of 1..5.

They are for studies of robustness, and training refuses them by name. SPARNet's own chain has a
median and a motion blur, and GFP-GAN's changes brightness and contrast: for networks trained on
these chains, such families are not unseen.

Lengths are shares of the picture's side, so that a severity looks similar at every size. Every
function takes (H,W,3) float32 in 0..255 and returns the same, not yet rounded, with its
parameters for this picture. Values drawn per pixel (noise, displacements) are not reported; the
seed reproduces them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from dr2pipe.core import images
from dr2pipe.degradations import codecs
from dr2pipe.degradations.kernels import Image, Pixels, blur, disk_kernel, motion_kernel

SEVERITIES = (1, 2, 3, 4, 5)
Degraded = tuple[Image, dict[str, Any]]  # the picture, and its parameters by name
Family = Callable[[Image, int, np.random.Generator], Degraded]


def degrade_unseen(
    pixels: Pixels, name: str, severity: int, rng: np.random.Generator
) -> tuple[Pixels, dict[str, Any]]:
    """Apply the family ``name`` of ``UNSEEN`` to (H,W,3) uint8 RGB; also returns its parameters."""
    degraded, parameters = UNSEEN[name](pixels.astype(np.float32), severity, rng)
    return images.round_to_uint8(degraded), parameters


def motion_blur(image: Image, severity: int, rng: np.random.Generator) -> Degraded:
    """A straight movement of the camera, in a random direction."""
    length = _side(image) * (0.03, 0.05, 0.08, 0.12, 0.17)[severity - 1]
    length, angle = max(length, 1.5), rng.uniform(0, math.pi)
    return blur(image, motion_kernel(length, angle)), {"length_px": length, "angle_rad": angle}


def defocus(image: Image, severity: int, rng: np.random.Generator) -> Degraded:
    """A lens out of focus: a uniform disk."""
    radius = _side(image) * (0.012, 0.02, 0.032, 0.046, 0.065)[severity - 1]
    return blur(image, disk_kernel(radius)), {"radius_px": radius}


def salt_and_pepper(image: Image, severity: int, rng: np.random.Generator) -> Degraded:
    """Black and white pixels at random places."""
    share = (0.02, 0.05, 0.1, 0.17, 0.27)[severity - 1]
    chance = rng.random(image.shape[:2])
    image = image.copy()
    image[chance < share / 2] = 0
    image[chance > 1 - share / 2] = 255
    return image, {"share": share}


def poisson_noise(image: Image, severity: int, rng: np.random.Generator) -> Degraded:
    """Photon noise: few photons per pixel."""
    photons = (80, 35, 16, 8, 4)[severity - 1]  # per pixel at full brightness
    degraded = rng.poisson(image / 255 * photons) * (255 / photons)
    return degraded.astype(np.float32), {"photons": photons}


def speckle(image: Image, severity: int, rng: np.random.Generator) -> Degraded:
    """Noise that is multiplied, as in ultrasound or radar pictures."""
    strength = (0.1, 0.18, 0.28, 0.4, 0.55)[severity - 1]
    noise = rng.standard_normal(image.shape).astype(np.float32)
    return image * (1 + strength * noise), {"strength": strength}


def pixelation(image: Image, severity: int, rng: np.random.Generator) -> Degraded:
    """Few large square cells."""
    height, width = image.shape[:2]
    cells = (40, 28, 20, 15, 11)[severity - 1]
    small = cv2.resize(image, (min(cells, width), min(cells, height)), interpolation=cv2.INTER_AREA)
    degraded = cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST)
    return degraded, {"cells": cells}


def webp(image: Image, severity: int, rng: np.random.Generator) -> Degraded:
    """The real WebP codec, on a reduced copy: at full size its artefacts would be too small."""
    height, width = image.shape[:2]
    shrink = (1.0, 1.3, 1.7, 2.2, 3.0)[severity - 1]
    small = images.resize_pixels(
        images.round_to_uint8(image), (round(height / shrink), round(width / shrink))
    )
    quality = (20, 12, 8, 4, 1)[severity - 1]
    degraded = images.resize_pixels(codecs.webp_roundtrip(small, quality), (height, width))
    return degraded.astype(np.float32), {"shrink": shrink, "quality": quality}


def median(image: Image, severity: int, rng: np.random.Generator) -> Degraded:
    """A median filter, which removes fine structure and keeps edges."""
    window = max(round(_side(image) * (0.03, 0.05, 0.075, 0.105, 0.14)[severity - 1]) | 1, 3)
    degraded = cv2.medianBlur(images.round_to_uint8(image), window)
    return degraded.astype(np.float32), {"window_px": window}


def low_bit_depth(image: Image, severity: int, rng: np.random.Generator) -> Degraded:
    """Few grey levels per channel, without dithering."""
    levels = (12, 8, 5, 4, 3)[severity - 1]
    return np.round(image / 255 * (levels - 1)) * (255 / (levels - 1)), {"levels": levels}


def haze(image: Image, severity: int, rng: np.random.Generator) -> Degraded:
    """A faded photo: little contrast left over a light, slightly tinted veil."""
    kept = (0.75, 0.6, 0.45, 0.32, 0.22)[severity - 1]
    veil = 200 + rng.uniform(-15, 15, size=3).astype(np.float32)
    degraded = image * kept + veil * (1 - kept)
    return degraded, {"kept": kept, "veil": [round(float(level), 2) for level in veil]}


def over_exposure(image: Image, severity: int, rng: np.random.Generator) -> Degraded:
    """Too much light: bright parts are lost."""
    gain = (1.25, 1.5, 1.8, 2.2, 2.7)[severity - 1]
    return image * gain + 10, {"gain": gain}


def low_light(image: Image, severity: int, rng: np.random.Generator) -> Degraded:
    """Under-exposed, with the noise that such pictures have."""
    kept = (0.6, 0.45, 0.33, 0.24, 0.16)[severity - 1]
    noise = (2, 3, 4, 6, 8)[severity - 1]
    degraded = image * kept + rng.normal(0, noise, image.shape).astype(np.float32)
    return degraded, {"kept": kept, "noise": noise}


def rain(image: Image, severity: int, rng: np.random.Generator) -> Degraded:
    """Bright, slanted streaks."""
    side = _side(image)
    count = (15, 30, 55, 90, 140)[severity - 1]
    layer: npt.NDArray[Any] = np.zeros(image.shape[:2], np.float32)
    angle = math.pi / 2 + rng.uniform(-0.35, 0.35)
    for x, y in rng.uniform(0, 1, size=(count, 2)) * image.shape[1::-1]:
        length = side * rng.uniform(0.05, 0.13)
        end = (x + length * math.cos(angle), y + length * math.sin(angle))
        _line(layer, (x, y), end, rng.uniform(0.35, 0.8), max(1, round(side / 150)))
    layer = cv2.GaussianBlur(layer, (0, 0), max(side / 400, 0.3))[..., None]
    return image * (1 - layer) + 235 * layer, {"streaks": count, "angle_rad": angle}


def scratches(image: Image, severity: int, rng: np.random.Generator) -> Degraded:
    """Light and dark cracks, as on an old print."""
    side = _side(image)
    image = image.copy()
    count = (2, 4, 7, 11, 16)[severity - 1]
    for _ in range(count):
        point = rng.uniform(0, side, size=2)
        angle = rng.uniform(0, 2 * math.pi)
        colour = 240.0 if rng.random() < 0.7 else 25.0
        thickness = max(1, round(side * rng.uniform(0.004, 0.016)))
        for _ in range(int(rng.integers(3, 9))):
            angle += rng.normal(0, 0.35)
            step = side * rng.uniform(0.04, 0.12)
            following = point + step * np.array([math.cos(angle), math.sin(angle)])
            _line(
                image, (point[0], point[1]), (following[0], following[1]), (colour,) * 3, thickness
            )
            point = following
    return image, {"scratches": count}


def interlacing(image: Image, severity: int, rng: np.random.Generator) -> Degraded:
    """Every second row comes from a moment later: shifted sideways."""
    shift = max(1, round(_side(image) * (0.015, 0.03, 0.05, 0.075, 0.11)[severity - 1]))
    shift = shift if rng.random() < 0.5 else -shift
    image = image.copy()
    image[1::2] = np.roll(image, shift, axis=1)[1::2]
    return image, {"shift_px": shift}


def halftone(image: Image, severity: int, rng: np.random.Generator) -> Degraded:
    """The dots of a print, larger where the picture is darker, blended with the picture."""
    cell = max(_side(image) * (0.02, 0.025, 0.032, 0.042, 0.055)[severity - 1], 2.0)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]].astype(np.float32)
    degraded = np.empty_like(image)
    for channel, angle in enumerate(np.deg2rad([15, 45, 75])):
        along = np.cos(angle) * x + np.sin(angle) * y
        across = -np.sin(angle) * x + np.cos(angle) * y
        screen = np.cos(2 * np.pi * along / cell) + np.cos(2 * np.pi * across / cell)
        threshold = 127.5 + 60 * screen
        degraded[..., channel] = 255 / (1 + np.exp((threshold - image[..., channel]) / 18))
    share = (0.45, 0.6, 0.75, 0.88, 1.0)[severity - 1]
    return image * (1 - share) + degraded * share, {"cell_px": cell, "share": share}


def film_grain(image: Image, severity: int, rng: np.random.Generator) -> Degraded:
    """Coarse noise, strongest in the middle tones, the same in all channels."""
    side = _side(image)
    grain: npt.NDArray[Any] = rng.standard_normal(image.shape[:2]).astype(np.float32)
    grain = cv2.GaussianBlur(grain, (0, 0), max(side / 180, 0.5))
    grain = grain / grain.std()
    luma = image.mean(axis=2) / 255
    strength = (12, 20, 30, 42, 58)[severity - 1]
    amount = strength * (0.4 + 2.4 * luma * (1 - luma))
    return image + (grain * amount)[..., None], {"strength": strength}


def atmospheric_warp(image: Image, severity: int, rng: np.random.Generator) -> Degraded:
    """Turbulent air: a smooth random displacement and a little blur."""
    side = _side(image)
    height, width = image.shape[:2]
    largest = side * (0.008, 0.014, 0.022, 0.032, 0.045)[severity - 1]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    fields = []
    for _ in range(2):
        field: npt.NDArray[Any] = rng.standard_normal((height, width)).astype(np.float32)
        field = cv2.GaussianBlur(field, (0, 0), side * 0.05, borderType=cv2.BORDER_REFLECT_101)
        fields.append(field / np.abs(field).max() * largest)
    warped = cv2.remap(
        image, x + fields[0], y + fields[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    sigma = max(side * 0.002 * severity, 0.1)
    return cv2.GaussianBlur(warped, (0, 0), sigma), {"largest_px": largest, "sigma_px": sigma}


UNSEEN: dict[str, Family] = {
    "motion_blur": motion_blur,
    "defocus": defocus,
    "salt_and_pepper": salt_and_pepper,
    "poisson_noise": poisson_noise,
    "speckle": speckle,
    "pixelation": pixelation,
    "webp": webp,
    "median": median,
    "low_bit_depth": low_bit_depth,
    "haze": haze,
    "over_exposure": over_exposure,
    "low_light": low_light,
    "rain": rain,
    "scratches": scratches,
    "interlacing": interlacing,
    "halftone": halftone,
    "film_grain": film_grain,
    "atmospheric_warp": atmospheric_warp,
}


def _side(image: Image) -> int:
    return int(max(image.shape[:2]))


def _line(
    canvas: npt.NDArray[Any],
    start: tuple[float, float],
    end: tuple[float, float],
    colour: float | tuple[float, ...],
    thickness: int,
) -> None:
    """Draw an antialiased line on (H,W) or (H,W,3) float32."""
    shift = 4  # cv2 takes sixteenths of a pixel
    (x, y), (end_x, end_y) = ([round(v * (1 << shift)) for v in p] for p in (start, end))
    colours = colour if isinstance(colour, tuple) else (colour,)
    cv2.line(canvas, (x, y), (end_x, end_y), colours, thickness, cv2.LINE_AA, shift)
