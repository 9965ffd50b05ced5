"""Chains of blur, shrinking, noise and compression with random strengths.

y = [(x * k) ↓r + n]_JPEG ↑r (GFP-GAN, CVPR 2021, eq. 1, and most of the field). Ranges are given
for 512-pixel faces and scaled to each picture: a blur of 10 pixels at 512 is one of 1.25 pixels
at 64.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from omegaconf import MISSING

from dr2pipe.core import images
from dr2pipe.core.config import load_config, resource
from dr2pipe.core.errors import ConfigError
from dr2pipe.degradations import codecs
from dr2pipe.degradations.kernels import Image, Pixels, blur, gaussian_kernel, motion_kernel

_REFERENCE_SIDE_PX = 512
_INTERPOLATIONS = {
    "nearest": cv2.INTER_NEAREST,
    "linear": cv2.INTER_LINEAR,
    "cubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
}


@dataclass
class BlindRanges:
    """Ranges of the GFP-GAN family, ``configs/degradations``; each value is drawn uniformly.

    Attributes:
        sigma_px: standard deviation of the blur on a 512-pixel face; half the kernels are
            anisotropic, with two of them and a random angle.
        kernel_px: largest side of its kernel on a 512-pixel face, beyond which it is cut off; None:
            as far as three standard deviations.
        shrink: factor of the bilinear reduction of a 512-pixel face; a smaller picture is
            reduced to the same side, or not at all.
        noise: standard deviation of the Gaussian noise, in 8-bit levels.
        jpeg_quality: 1..100.
        colour_shift: largest shift per channel in 8-bit levels, with its probability.
        grey_probability: of losing the colours.
        jitter_probability: of random brightness, contrast, saturation and hue.
        grey_noise: whether all channels have the same noise, as the grain of a film has.
    """

    sigma_px: list[float] = MISSING
    shrink: list[float] = MISSING
    noise: list[float] = MISSING
    jpeg_quality: list[int] = MISSING
    colour_shift: float = 20.0
    colour_shift_probability: float = 0.0
    grey_probability: float = 0.0
    jitter_probability: float = 0.0
    grey_noise: bool = False
    kernel_px: int | None = None


def degrade_blind(
    pixels: Pixels,
    rng: np.random.Generator,
    ranges: BlindRanges,
    noise_rng: np.random.Generator | None = None,
) -> tuple[Pixels, dict[str, Any]]:
    """A degraded copy of (H,W,3) uint8 RGB, the same size, and the parameters drawn for it.

    Args:
        pixels: the picture.
        rng: everything random is drawn from it.
        ranges: of the parameters.
        noise_rng: draws the noise in place of ``rng``, where pictures share all other draws.
    """
    height, width = pixels.shape[:2]
    scale = max(height, width) / _REFERENCE_SIDE_PX
    sigmas = rng.uniform(ranges.sigma_px[0], ranges.sigma_px[1], size=2) * scale
    isotropic = rng.random() < 0.5
    sigma_x, sigma_y = (sigmas[0], sigmas[0]) if isotropic else sigmas
    angle = 0.0 if isotropic else rng.uniform(-math.pi, math.pi)
    shrink = rng.uniform(ranges.shrink[0], ranges.shrink[1])
    noise = rng.uniform(ranges.noise[0], ranges.noise[1])
    quality = int(rng.integers(ranges.jpeg_quality[0], ranges.jpeg_quality[1] + 1))
    reach = math.ceil(3 * max(sigma_x, sigma_y))
    if ranges.kernel_px is not None:
        reach = min(reach, round(ranges.kernel_px * scale) // 2)
    size = 2 * max(reach, 1) + 1
    kernel = gaussian_kernel(size, max(sigma_x, 1e-3), max(sigma_y, 1e-3), angle)
    reduction = max(shrink * scale, 1.0)
    small = (max(1, round(width / reduction)), max(1, round(height / reduction)))
    image: Image = blur(pixels.astype(np.float32), kernel)
    image = cv2.resize(image, small, interpolation=cv2.INTER_LINEAR)
    drawn = (noise_rng or rng).normal(0, noise, image.shape).astype(np.float32)
    image = image + (drawn[..., :1] if ranges.grey_noise else drawn)
    image = codecs.jpeg_roundtrip(images.round_to_uint8(image), quality).astype(np.float32)
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    parameters: dict[str, Any] = {
        "sigma_x_px": sigma_x,
        "sigma_y_px": sigma_y,
        "angle": angle,
        "shrink": shrink,
        "noise": noise,
        "jpeg_quality": quality,
    }
    # These draws happen at every probability, so that a seed gives the same blur, noise and
    # compression with and without the colour changes.
    chances, shift = rng.random(3), rng.uniform(-1, 1, size=3) * ranges.colour_shift
    if chances[0] < ranges.colour_shift_probability:
        image = image + shift.astype(np.float32)
        parameters["colour_shift"] = [round(float(s), 3) for s in shift]
    if chances[1] < ranges.grey_probability:
        image = _grey(image)
        parameters["grey"] = True
    if chances[2] < ranges.jitter_probability:
        image, jitter = jitter_colours(image, rng)
        parameters |= jitter
    return images.round_to_uint8(image), _rounded(parameters)


def degrade_sparnet(
    pixels: Pixels, rng: np.random.Generator, noise_rng: np.random.Generator | None = None
) -> tuple[Pixels, dict[str, Any]]:
    """SPARNet's training chain: one of four blurs, a tiny size, noise, strong JPEG.

    SPARNet learns to sharpen grey pictures, not to colour them: where the parameter
    ``grey_target`` is true, the clean picture that it is trained on is grey too.
    """
    height, width = pixels.shape[:2]
    scale = max(height, width) / _REFERENCE_SIDE_PX
    image: Image = pixels.astype(np.float32)
    parameters: dict[str, Any] = {}
    if rng.random() < 0.3:
        image = _grey(image)
        parameters |= {"grey": True, "grey_target": True}
    if rng.random() < 0.5:
        kind = str(rng.choice(["gaussian", "average", "median", "motion"]))
        image, parameters["blur_px"] = _sparnet_blur(image, kind, scale, rng)
        parameters["blur"] = kind
    side = max(4, round(rng.integers(32, 128) * scale))
    interpolation = str(rng.choice(list(_INTERPOLATIONS)))
    image = cv2.resize(image, (side, side), interpolation=_INTERPOLATIONS[interpolation])
    parameters |= {"side_px": side, "interpolation": interpolation}
    if rng.random() < 0.2:
        noise = rng.uniform(0, 25.5)
        channels = 3 if rng.random() < 0.5 else 1
        pattern = (noise_rng or rng).normal(0, noise, (side, side, channels))
        image = image + pattern.astype(np.float32)
        parameters |= {"noise": noise, "noise_channels": channels}
    if rng.random() < 0.7:
        quality = int(rng.integers(35, 91))  # a compression of 10..65 out of 100
        image = codecs.jpeg_roundtrip(images.round_to_uint8(image), quality).astype(np.float32)
        parameters["jpeg_quality"] = quality
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    return images.round_to_uint8(image), _rounded(parameters)


def jitter_colours(image: Image, rng: np.random.Generator) -> tuple[Image, dict[str, float]]:
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
    image: Image, kind: str, scale: float, rng: np.random.Generator
) -> tuple[Image, float]:
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


def _grey(image: Image) -> Image:
    """Luma of (H,W,3), repeated in all channels (ITU-R BT.601 weights)."""
    luma: npt.NDArray[Any] = image @ np.array(images.LUMA, np.float32)
    return np.repeat(luma[..., None], 3, axis=2)


def _rounded(parameters: dict[str, Any]) -> dict[str, Any]:
    """For the records of a run; whole numbers, texts and lists stay as they are."""
    return {k: round(float(v), 4) if isinstance(v, float) else v for k, v in parameters.items()}


# (pixels, rng, noise_rng) to the degraded picture and its parameters by name
Chain = Callable[..., tuple[Pixels, dict[str, Any]]]

# Chains with code of their own; chains that differ only in their ranges are YAML files.
_CODED_CHAINS: dict[str, Chain] = {"sparnet": degrade_sparnet}


def chain_names() -> list[str]:
    """The chains that come with the package."""
    return [*_CODED_CHAINS, *sorted(p.stem for p in _ranges_folder().glob("*.yaml"))]


def is_chain(name: str) -> bool:
    """Whether a name is that of a chain, or the path of a YAML file."""
    return name in _CODED_CHAINS or _ranges_file(name).is_file()


def find_chain(name: str) -> Chain:
    """A chain by a name for which :func:`is_chain` is true.

    Raises:
        ConfigError: a file that does not hold valid ranges.
    """
    if name in _CODED_CHAINS:
        return _CODED_CHAINS[name]
    path = _ranges_file(name)
    ranges = _cached_ranges(path, path.stat().st_mtime_ns)
    return functools.partial(degrade_blind, ranges=ranges)


def describe_chain(name: str) -> dict[str, Any] | None:
    """The ranges of a chain, for the records of a run; None for a chain without a YAML file."""
    path = _ranges_file(name)
    if not path.is_file():
        return None
    described = dataclasses.asdict(load_ranges(path))
    if not described["grey_noise"]:  # what was made before this setting stays valid
        del described["grey_noise"]
    return described


def load_ranges(path: str | Path) -> BlindRanges:
    """The ranges of a YAML file.

    Raises:
        ConfigError: unknown or missing keys, wrong types, impossible values.
    """
    ranges = load_config(BlindRanges, path)
    lowest = {"sigma_px": 0, "shrink": 0.1, "noise": 0, "jpeg_quality": 1}
    for key, least in lowest.items():
        values = getattr(ranges, key)
        if len(values) != 2 or not least <= values[0] <= values[1] < math.inf:
            raise ConfigError(f"{path}: {key}={values} must be [low, high] with low >= {least}")
    if ranges.jpeg_quality[1] > 100:
        raise ConfigError(f"{path}: jpeg_quality={ranges.jpeg_quality} must end at 100 or below")
    for key, value in vars(ranges).items():
        if key.endswith("_probability") and not 0 <= value <= 1:
            raise ConfigError(f"{path}: {key}={value} must lie in [0, 1]")
    return ranges


@functools.cache
def _cached_ranges(path: Path, changed_ns: int) -> BlindRanges:
    """The ranges of a file, which are looked up for every picture; an edited file is read again."""
    return load_ranges(path)


def _ranges_file(name: str) -> Path:
    return Path(name) if name.endswith((".yaml", ".yml")) else _ranges_folder() / f"{name}.yaml"


def _ranges_folder() -> Path:
    return resource("configs") / "degradations"
