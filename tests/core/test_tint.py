"""Black-and-white and tinted pictures keep their colours, and colour pictures are left alone."""

import cv2
import numpy as np
import pytest
from conftest import make_pixels

from dr2pipe.core import images
from dr2pipe.core.images.tint import to_grey


def portrait(seed=0, side=96):
    """Grey shapes with a little grain."""
    rng = np.random.default_rng(seed)
    grey = make_pixels(seed, side, side)[..., 1].astype(float)
    return np.clip(grey + rng.normal(0, 4, grey.shape), 0, 255)


def toned(grey, dark, light):
    """A print in one colour: levels between two colours."""
    share = (grey / 255)[..., None] ** 0.9
    return np.round(np.array(dark) * (1 - share) + np.array(light) * share).astype(np.uint8)


SEPIA, CYANOTYPE = ((40, 22, 10), (245, 228, 190)), ((5, 30, 80), (225, 238, 245))


def chroma(pixels):
    return pixels.max(axis=2).astype(int) - pixels.min(axis=2)


@pytest.mark.parametrize("seed", range(3))
def test_grey_stays_grey(seed):
    grey = np.repeat(np.round(portrait(seed)).astype(np.uint8)[..., None], 3, axis=2)
    tint = images.find_tint(grey)
    assert tint is not None
    coloured = np.clip(grey.astype(int) + np.array([30, -20, 10]), 0, 255).astype(np.uint8)
    assert chroma(tint.apply(coloured)).max() <= 1
    assert (tint.apply(grey) == grey).all()


@pytest.mark.parametrize("colours", [SEPIA, CYANOTYPE])
def test_a_toned_print_gets_its_own_tone_back(colours):
    pixels = toned(portrait(1), *colours)
    tint = images.find_tint(pixels)
    assert tint is not None
    again = tint.apply(to_grey(pixels)).astype(int)
    assert np.abs(again - pixels).mean() < 2
    assert np.abs(again - pixels).max() <= 8


def test_a_faint_stain_is_no_colour_photograph():
    pixels = toned(portrait(2), *SEPIA).astype(float)
    place = np.linspace(-1, 1, 96)
    stain = np.exp(-((place[:, None] - 0.5) ** 2 + place**2) * 1.5)
    pixels[..., 2] -= 9 * stain
    pixels = np.clip(np.round(pixels), 0, 255).astype(np.uint8)
    tint = images.find_tint(pixels)
    assert tint is not None
    assert np.abs(tint.apply(to_grey(pixels)).astype(int) - pixels).mean() < 2.5


@pytest.mark.parametrize("seed", range(5))
def test_colour_pictures_are_colour_pictures(seed):
    assert images.find_tint(make_pixels(seed, 96, 96)) is None
    light = np.linspace(0.5, 1, 96)[None, :, None]
    skin = np.full((96, 96, 3), (150, 155, 165), np.uint8)
    cv2.circle(skin, (48, 48), 25, (200, 150, 130), -1)
    assert images.find_tint((skin * light).astype(np.uint8)) is None


def test_16_bits_and_other_sizes():
    pixels = toned(portrait(1), *SEPIA)
    tint = images.find_tint(pixels)
    deep = np.repeat(np.round(portrait(1)).astype(np.uint16)[..., None] * 257, 3, axis=2)
    large = cv2.resize(deep, (200, 150))
    toned_again = tint.apply(large)
    assert toned_again.dtype == np.uint16
    assert toned_again.shape == (150, 200, 3)
    assert (toned_again[..., 0].astype(int) - toned_again[..., 2]).mean() > 20 * 257
