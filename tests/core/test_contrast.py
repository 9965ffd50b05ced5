"""Dark, hazy and faded pictures get the usual range of levels; all others stay as they are."""

import numpy as np
import pytest
from colour_files import RGB_SPACES, encode, profile_of
from conftest import make_pixels
from PIL import Image

from dr2pipe.core import images
from dr2pipe.core.images import colour, find_stretch
from dr2pipe.degradations import degrade


def usual(seed=0, height=96, width=80):
    """A picture of muted colours from nearly black to nearly white, (H,W,3) uint8."""
    pixels = make_pixels(seed, height, width).astype(float)
    luma = pixels @ np.array(images.LUMA)
    black, white = np.percentile(luma, [0.5, 99.5])
    pixels = luma[..., None] + 0.3 * (pixels - luma[..., None])
    return images.round_to_uint8(np.clip((pixels - black) / (white - black) * 205 + 15, 0, 255))


def error(a, b):
    return np.sqrt(np.square(a.astype(float) - b).mean())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["low_light", "haze"])
@pytest.mark.parametrize("severity", [3, 4, 5])
def test_dark_and_faded_pictures_come_nearer_to_what_they_were(kind, severity, seed):
    clean = usual(seed)
    damaged = images.round_to_uint8(
        degrade(clean, kind, np.random.default_rng(seed), severity=severity)[0]
    )
    stretch = find_stretch(damaged)
    assert error(stretch.apply(damaged), clean) < 0.6 * error(damaged, clean)
    assert 1 < stretch.gain <= 8


@pytest.mark.parametrize("seed", range(8))
def test_usual_pictures_stay_as_they_are(seed):
    assert find_stretch(usual(seed)) is None
    dark = images.round_to_uint8(usual(seed) * 0.2)
    assert find_stretch(np.asarray(find_stretch(dark).apply(dark))) is None


@pytest.mark.parametrize("level", [0, 3, 128, 255])
@pytest.mark.parametrize("texture", [0, 3, 7])
def test_black_frames_and_blank_pages_have_nothing_to_stretch(level, texture):
    rng = np.random.default_rng(level)
    page = np.full((40, 40, 3), level) + rng.integers(0, texture + 1, (40, 40, 1)) - texture // 2
    assert find_stretch(images.round_to_uint8(page)) is None


@pytest.mark.parametrize("share", [0.04, 0.06, 0.1, 0.15])
def test_black_stays_black_where_the_gain_has_its_limit(share):
    dark = images.round_to_uint8(usual() * share)
    stretch = find_stretch(dark)
    assert stretch.gain == pytest.approx(8, abs=0.01) or share == 0.15
    after = stretch.apply(dark)
    assert np.percentile(after, 1) < 40
    assert after.mean() > 3 * dark.mean()
    pale = images.round_to_uint8(255 - usual() * 0.15)  # faded to nearly white
    after = find_stretch(pale).apply(pale)
    assert np.percentile(after, 99) > 225
    assert np.ptp(after) > 4 * np.ptp(pale)


def test_specks_and_borders_of_few_pixels_decide_nothing():
    dark = images.round_to_uint8(usual() * 0.2)
    expected = find_stretch(dark).gain
    dark[5, 5], dark[40, 9] = 255, 0
    assert find_stretch(dark).gain == pytest.approx(expected, rel=0.05)


def test_large_pictures_are_judged_as_their_small_copies_are():
    dark = images.round_to_uint8(usual() * 0.2)
    large = np.asarray(Image.fromarray(dark).resize((800, 960), Image.Resampling.BICUBIC))
    assert find_stretch(large).gain == pytest.approx(find_stretch(dark).gain, rel=0.05)


@pytest.mark.parametrize("type", [np.uint8, np.uint16])
def test_undone_it_is_the_picture_again(type):
    dark = images.round_to_uint8(usual() * 0.25 + 60)
    stretch = find_stretch(dark)
    levels = dark.astype(type) * (257 if type == np.uint16 else 1)
    changed = stretch.apply(levels)
    assert changed.dtype == type
    inside = (changed > 0) & (changed < np.iinfo(type).max)
    assert inside.mean() > 0.95
    difference = np.abs(stretch.undo(changed).astype(int) - levels)[inside]
    assert difference.max() <= 1  # the gain is above 1: what rounding loses is within a level


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("name", [None, *RGB_SPACES])
def test_the_files_own_samples_look_like_the_pixels(name, bits):
    srgb = images.round_to_uint8(usual() * 0.25 + 90).astype(np.uint16) * 257
    profile = None if name is None else profile_of(name)
    space = None if name is None else colour.space_of_profile(profile)
    wide = srgb if space is None else space.from_srgb(srgb)
    levels = wide if bits == 16 else images.reduced(wide)
    picture = images.decode_image(encode(levels, "PNG", profile), keep_own=True)
    before = picture.pixels.copy()
    picture.stretch_contrast()
    own = picture.own
    assert own.levels.dtype == (np.uint16 if bits == 16 else np.uint8)
    seen = images.reduced(own.to_srgb(own.levels)).astype(float)
    assert np.abs(seen - picture.pixels).mean() < (4 if bits == 8 else 2)
    assert picture.pixels.std() > 2 * before.std()


def test_a_monochrome_picture_stays_in_its_tint():
    luma = usual().mean(axis=2, keepdims=True) * 0.3 + 100
    sepia = images.round_to_uint8(luma * [1.04, 0.98, 0.9])
    picture = images.picture_of(Image.fromarray(sepia), keep_own=True, whole_photo=True)
    picture.stretch_contrast()
    picture.set_tint_aside()
    assert picture.tint is not None
    assert np.ptp(picture.pixels) > 1.8 * np.ptp(luma)
    grey = Image.fromarray(images.round_to_uint8(luma[..., 0]))
    picture = images.picture_of(grey, keep_own=True, whole_photo=True)
    picture.stretch_contrast()
    assert picture.own.levels.ndim == 2
    assert (picture.pixels == picture.own.levels[..., None]).all()
