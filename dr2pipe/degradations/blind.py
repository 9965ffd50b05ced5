"""Chains of blur, shrinking, noise and compression with random strengths.

y = [(x * k) ↓r + n]_JPEG ↑r (GFP-GAN, CVPR 2021, eq. 1, and most of the field). Ranges are given
for 512-pixel faces and scaled to the picture at hand: a blur of 10 pixels at 512 is one of
1.25 pixels at 64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from dr2pipe import images
from dr2pipe.degradations.kernels import blur, gaussian_kernel, motion_kernel

_REFERENCE_SIDE_PX = 512
_INTERPOLATIONS = {
    "nearest": cv2.INTER_NEAREST,
    "linear": cv2.INTER_LINEAR,
    "cubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
}
Range = tuple[float, float]


@dataclass(frozen=True)
class BlindRanges:
    """Ranges of the GFP-GAN family; each value is drawn uniformly.

    Attributes:
        sigma_px: standard deviation of the blur on a 512-pixel face; half the kernels are
            anisotropic, with two of them and a random angle.
        shrink: factor of the bilinear reduction of a 512-pixel face; a smaller picture is
            reduced to the same side, or not at all.
        noise: standard deviation of the Gaussian noise, in 8-bit levels.
        jpeg_quality: 1..100.
        colour_shift: largest shift per channel in 8-bit levels, with its probability.
        grey_probability: of losing the colours.
        jitter_probability: of random brightness, contrast, saturation and hue.
    """

    sigma_px: Range = (0.1, 10.0)
    shrink: Range = (0.8, 8.0)
    noise: Range = (0.0, 20.0)
    jpeg_quality: Range = (60, 100)
    colour_shift: float = 20.0
    colour_shift_probability: float = 0.0
    grey_probability: float = 0.0
    jitter_probability: float = 0.0


def degrade_blind(
    pixels: np.ndarray, rng: np.random.Generator, ranges: BlindRanges
) -> tuple[np.ndarray, dict[str, Any]]:
    """A degraded copy of (H,W,3) uint8 RGB, the same size, and what was drawn."""
    height, width = pixels.shape[:2]
    scale = max(height, width) / _REFERENCE_SIDE_PX
    sigmas = rng.uniform(*ranges.sigma_px, size=2) * scale
    isotropic = rng.random() < 0.5
    sigma_x, sigma_y = (sigmas[0], sigmas[0]) if isotropic else sigmas
    angle = 0.0 if isotropic else rng.uniform(-math.pi, math.pi)
    shrink = rng.uniform(*ranges.shrink)
    noise = rng.uniform(*ranges.noise)
    quality = int(rng.integers(int(ranges.jpeg_quality[0]), int(ranges.jpeg_quality[1]) + 1))
    size = max(3, 2 * math.ceil(3 * max(sigma_x, sigma_y)) + 1)
    kernel = gaussian_kernel(size, max(sigma_x, 1e-3), max(sigma_y, 1e-3), angle)
    reduction = max(shrink * scale, 1.0)
    small = (max(1, round(width / reduction)), max(1, round(height / reduction)))
    image = blur(pixels.astype(np.float32), kernel)
    image = cv2.resize(image, small, interpolation=cv2.INTER_LINEAR)
    image = image + rng.normal(0, noise, image.shape).astype(np.float32)
    image = images.jpeg_roundtrip(images.round_to_uint8(image), quality).astype(np.float32)
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    drawn = {
        "sigma_x_px": sigma_x,
        "sigma_y_px": sigma_y,
        "angle": angle,
        "shrink": shrink,
        "noise": noise,
        "jpeg_quality": quality,
    }
    # The draws happen whatever the probabilities are, so that a seed means the same blur,
    # noise and compression with and without the colour changes.
    chances, shift = rng.random(3), rng.uniform(-1, 1, size=3) * ranges.colour_shift
    if chances[0] < ranges.colour_shift_probability:
        image = image + shift.astype(np.float32)
        drawn["colour_shift"] = [round(float(s), 3) for s in shift]
    if chances[1] < ranges.grey_probability:
        image = _grey(image)
        drawn["grey"] = True
    if chances[2] < ranges.jitter_probability:
        image, jitter = jitter_colours(image, rng)
        drawn |= jitter
    return images.round_to_uint8(image), _rounded(drawn)


def degrade_sparnet(
    pixels: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, dict[str, Any]]:
    """SPARNet's training chain: one of four blurs, a tiny size, noise, strong JPEG."""
    height, width = pixels.shape[:2]
    scale = max(height, width) / _REFERENCE_SIDE_PX
    image, drawn = pixels.astype(np.float32), {}
    if rng.random() < 0.3:
        image = _grey(image)
        drawn["grey"] = True
    if rng.random() < 0.5:
        kind = str(rng.choice(["gaussian", "average", "median", "motion"]))
        image, drawn["blur_px"] = _sparnet_blur(image, kind, scale, rng)
        drawn["blur"] = kind
    side = max(4, round(rng.integers(32, 128) * scale))
    interpolation = str(rng.choice(list(_INTERPOLATIONS)))
    image = cv2.resize(image, (side, side), interpolation=_INTERPOLATIONS[interpolation])
    drawn |= {"side_px": side, "interpolation": interpolation}
    if rng.random() < 0.2:
        noise = rng.uniform(0, 25.5)
        channels = 3 if rng.random() < 0.5 else 1
        image = image + rng.normal(0, noise, (side, side, channels)).astype(np.float32)
        drawn |= {"noise": noise, "noise_channels": channels}
    if rng.random() < 0.7:
        quality = int(rng.integers(35, 91))  # a compression of 10..65 out of 100
        image = images.jpeg_roundtrip(images.round_to_uint8(image), quality).astype(np.float32)
        drawn["jpeg_quality"] = quality
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    return images.round_to_uint8(image), _rounded(drawn)


def jitter_colours(
    image: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, dict[str, float]]:
    """Brightness, contrast 0.5..1.5, saturation 0..1.5 and hue ±0.1 turns, in random order."""
    factors = {
        "brightness": rng.uniform(0.5, 1.5),
        "contrast": rng.uniform(0.5, 1.5),
        "saturation": rng.uniform(0.0, 1.5),
        "hue": rng.uniform(-0.1, 0.1),
    }
    for name in rng.permutation(list(factors)):
        factor = np.float32(factors[str(name)])
        image = np.clip(image, 0, 255)
        if name == "brightness":
            image = image * factor
        elif name == "contrast":
            mean = _grey(image).mean()
            image = mean + (image - mean) * factor
        elif name == "saturation":
            grey = _grey(image)
            image = grey + (image - grey) * factor
        else:
            hsv = cv2.cvtColor(image / np.float32(255), cv2.COLOR_RGB2HSV)  # hue in degrees
            hsv[..., 0] = (hsv[..., 0] + 360 * factor) % 360
            image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255
    return image, factors


def _sparnet_blur(
    image: np.ndarray, kind: str, scale: float, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    if kind == "gaussian":
        sigma = max(rng.uniform(3, 15) * scale, 0.1)
        return cv2.GaussianBlur(image, (0, 0), sigma), sigma
    if kind == "motion":
        length = max(rng.uniform(5, 25) * scale, 1.0)
        return blur(image, motion_kernel(length, rng.uniform(-math.pi, math.pi))), length
    size = max(1, round(rng.uniform(3, 15) * scale))
    if kind == "average":
        return cv2.blur(image, (size, size), borderType=cv2.BORDER_REFLECT_101), size
    size = size | 1  # a median window has a middle
    return cv2.medianBlur(images.round_to_uint8(image), size).astype(np.float32), size


def _grey(image: np.ndarray) -> np.ndarray:
    """Luma of (H,W,3), repeated in all channels (ITU-R BT.601 weights)."""
    luma = image @ np.array([0.299, 0.587, 0.114], np.float32)
    return np.repeat(luma[..., None], 3, axis=2)


def _rounded(drawn: dict[str, Any]) -> dict[str, Any]:
    return {k: round(float(v), 4) if isinstance(v, float) else v for k, v in drawn.items()}


Chain = Callable[[np.ndarray, np.random.Generator], tuple[np.ndarray, dict[str, Any]]]

# "gfpgan" holds the published training ranges, "severe" the harsher ones of DifFace; mild,
# medium and heavy are the three fixed strengths of our own tables.
CHAINS: dict[str, BlindRanges | Chain] = {
    "gfpgan": BlindRanges(
        colour_shift_probability=0.3, grey_probability=0.01, jitter_probability=0.3
    ),
    "severe": BlindRanges(sigma_px=(0.1, 15.0), shrink=(0.8, 32.0), jpeg_quality=(30, 100)),
    "sparnet": degrade_sparnet,
    "mild": BlindRanges((1, 4), (1, 8), (0, 10), (60, 90)),
    "medium": BlindRanges((4, 10), (8, 16), (5, 20), (40, 70)),
    "heavy": BlindRanges((8, 16), (12, 24), (15, 35), (20, 50)),
}


def degrade_with_chain(
    pixels: np.ndarray, rng: np.random.Generator, chain: BlindRanges | Chain
) -> tuple[np.ndarray, dict[str, Any]]:
    """Apply ranges or a chain with ranges of its own."""
    if isinstance(chain, BlindRanges):
        return degrade_blind(pixels, rng, chain)
    return chain(pixels, rng)
