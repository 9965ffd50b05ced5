"""Faces cut from photos and put back: the geometry, the masks, and what they leave alone."""

import cv2
import numpy as np
import pytest
import skimage
from photos import detailed_photo, landmarks_at, smooth_photo

from dr2pipe.core import images
from dr2pipe.core.errors import PictureError
from dr2pipe.degradations import degrade
from dr2pipe.faces import DetectorConfig, build_detector
from dr2pipe.faces.align import TEMPLATE, align, apply, cut
from dr2pipe.faces.paste import face_mask, face_patches, photo_weights
from dr2pipe.faces.quality import estimate_quality


@pytest.mark.parametrize("degrees", [-170, -30, 0, 12.5, 90])
@pytest.mark.parametrize("side_px", [20, 300, 4000])
def test_align_finds_place_size_and_rotation(degrees, side_px):
    found = align(landmarks_at(500, 300, side_px, degrees))
    assert found.side_px == pytest.approx(side_px, rel=1e-4)
    corners = landmarks_at(500, 300, side_px, degrees) - apply(found.to_photo, TEMPLATE)
    assert np.abs(corners).max() < 1e-3 * side_px
    assert np.allclose(found.landmarks, TEMPLATE, atol=1e-4)


@pytest.mark.parametrize("wrong", range(5))
def test_one_wrong_landmark_does_not_count(wrong):
    points = landmarks_at(200, 150, 120, 10)
    right = align(points)
    points[wrong] += [60, -45]
    assert np.allclose(align(points).corners(), right.corners(), atol=3)


@pytest.mark.parametrize(
    "points", [np.zeros((5, 2)), np.ones((4, 2)), np.full((5, 2), np.nan), TEMPLATE * 0.5]
)
def test_landmarks_of_no_face(points):
    with pytest.raises(PictureError, match="landmark"):
        align(points)


@pytest.mark.parametrize("degrees", [0, 17, -40])
@pytest.mark.parametrize("side_px", [64, 128])
def test_cut_then_paste_returns_the_photo(side_px, degrees):
    photo = smooth_photo()
    alignment = align(landmarks_at(200.3, 150.7, side_px, degrees))
    crop = cut(photo, alignment, side_px)
    errors = [
        (patch.pixels - photo[patch.place])[patch.weights > 0]
        for patch in face_patches(crop.astype(np.float32), alignment, photo.shape[:2])
    ]
    assert 10 * np.log10(255**2 / np.square(np.concatenate(errors)).mean()) > 45


def test_a_crop_where_the_photo_is_aligned_is_the_photo():
    photo = smooth_photo(128, 128)
    upright = align(TEMPLATE * 128)
    assert np.abs(cut(photo, upright, 128).astype(int) - photo).max() <= 1


@pytest.mark.parametrize("degrees", [0, 25, -70])
@pytest.mark.parametrize("side_px", [50, 200])
def test_a_dot_stays_in_its_place(side_px, degrees):
    """Its middle, so that opposite errors of cutting and pasting cannot hide."""
    alignment = align(landmarks_at(200, 150, side_px, degrees))
    y, x = np.mgrid[:300, :400] + 0.5
    dot = np.exp(-(np.square(x - 205.3) + np.square(y - 148.6)) / 2 / (side_px / 20) ** 2) * 255
    crop = cut(np.repeat(np.round(dot).astype(np.uint8)[..., None], 3, axis=2), alignment, 64)
    rows, columns = np.mgrid[:64, :64] + 0.5
    weights = crop[..., 0].astype(float)
    found = [np.average(columns, weights=weights), np.average(rows, weights=weights)]
    expected = apply(alignment.to_crop, np.array([[205.3, 148.6]]))[0] * 64
    assert np.abs(found - expected).max() < 0.1


def test_large_faces_are_pasted_in_strips():
    photo = smooth_photo(900, 1000)
    alignment = align(landmarks_at(500, 450, 800, 10))
    crop = cut(photo, alignment, 512)
    patches = list(face_patches(crop.astype(np.float32), alignment, photo.shape[:2]))
    assert len(patches) > 2
    bottoms = [patch.place[0].stop for patch in patches]
    assert [patch.top for patch in patches[1:]] == bottoms[:-1]
    for patch in patches:
        error = (patch.pixels - photo[patch.place])[patch.weights > 0]
        assert np.abs(error).mean() < 1


def test_fine_detail_is_averaged_not_aliased():
    photo = np.zeros((800, 800, 3), np.uint8)
    photo[::2, ::2] = photo[1::2, 1::2] = 255
    crop = cut(photo, align(landmarks_at(400, 400, 700, 20)), 64)
    assert abs(float(crop.mean()) - 127.5) < 2
    assert float(crop.std()) < 3


@pytest.mark.parametrize("shape", [(1, 400), (400, 1), (3, 3), (40, 30)])
def test_a_face_over_the_border(shape):
    photo = smooth_photo(*shape)
    alignment = align(landmarks_at(10, 10, 100, 30))
    crop = cut(photo, alignment, 64)
    assert crop.shape == (64, 64, 3)
    weights = photo_weights(alignment, shape)
    assert weights.shape == shape
    assert 0 <= weights.min() <= weights.max() <= 1


def test_a_face_outside_the_photo_has_no_patch():
    alignment = align(landmarks_at(-300, 100, 100))
    nothing = np.zeros((64, 64, 3), np.float32)
    assert not list(face_patches(nothing, alignment, (200, 200)))


def test_the_mask_is_soft_and_inside_the_crop():
    mask = face_mask(align(landmarks_at(200, 200, 200)), 128)
    assert mask.min() == 0
    assert mask.max() == 1
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    assert border.max() < 0.02
    # Nowhere an edge: neighbouring weights differ by a few percent.
    assert max(np.abs(np.diff(mask, axis=axis)).max() for axis in (0, 1)) < 0.12
    for x, y in TEMPLATE:
        assert mask[round(y * 128), round(x * 128)] > 0.95


def test_overlapping_faces_share_their_pixels():
    shape = (300, 400)
    left, right = (align(landmarks_at(x, 150, 160)) for x in (150, 230))
    shares = [photo_weights(left, shape, [right]), photo_weights(right, shape, [left])]
    total = sum(shares)
    assert total.max() <= 1 + 1e-6
    assert total.max() > 0.95
    # The middle of the other face belongs to the other face.
    assert photo_weights(left, shape)[150, 195] > 0
    assert shares[0][150, 230] == 0
    assert shares[0].sum() < photo_weights(left, shape).sum()


# -- quality ---------------------------------------------------------------------------------


def test_a_reduced_face_has_less_detail():
    photo = detailed_photo(512)
    alignment = align(landmarks_at(256, 256, 500))
    found = []
    for size in (512, 128, 64, 32):
        soft = images.resize_pixels(images.resize_pixels(photo, (size, size)), (512, 512))
        found.append(estimate_quality(soft, alignment).effective_px)
    assert found[0] > found[1]
    for size, effective_px in zip((128, 64, 32), found[1:], strict=True):
        assert size <= effective_px <= 1.5 * size


def test_noise_counts_as_damage():
    photo = detailed_photo(512)
    alignment = align(landmarks_at(256, 256, 500))
    noise = np.random.default_rng(0).normal(0, 30, photo.shape)
    noisy = np.clip(photo + noise, 0, 255).astype(np.uint8)
    clean, damaged = (estimate_quality(p, alignment) for p in (photo, noisy))
    assert damaged.noise > clean.noise + 5
    assert damaged.effective_px < clean.effective_px / 2
    assert clean.is_better_than(128)


@pytest.mark.parametrize("angle", [0.0, 0.4, np.pi / 2, 2.3])
def test_a_scratch_or_a_fold_is_no_detail(angle):
    sharp = detailed_photo(512, seed=3)
    soft = images.resize_pixels(images.resize_pixels(sharp, (64, 64)), (512, 512))
    alignment = align(landmarks_at(256, 256, 500))
    along = np.array([np.cos(angle), np.sin(angle)]) * 500
    ends = [tuple(int(v) for v in (256, 240) + sign * along) for sign in (-1, 1)]
    expected = estimate_quality(soft, alignment).effective_px
    for width_px, level in ((2, 240), (3, 20)):
        damaged = cv2.line(soft.copy(), *ends, (level,) * 3, width_px, cv2.LINE_AA)
        found = estimate_quality(damaged, alignment)
        assert found.effective_px <= 1.5 * expected
        assert not found.is_better_than(181)


@pytest.mark.parametrize("severity", [1, 3, 5])
@pytest.mark.parametrize("family", ["halftone", "pixelation"])
def test_printed_dots_and_squares_are_no_detail(family, severity):
    photo = detailed_photo(512)
    alignment = align(landmarks_at(256, 256, 500))
    damaged, _ = degrade(photo, family, np.random.default_rng(0), severity=severity)
    sharp, printed = (estimate_quality(p, alignment) for p in (photo, damaged))
    assert (sharp.is_better_than(181), sharp.has_screen) == (True, False)
    assert (printed.is_better_than(181), printed.has_screen) == (False, True)


@pytest.mark.parametrize("angle", [0.0, 0.4, np.pi / 2, 2.3])
def test_scratches_and_stripes_are_no_printed_dots(angle):
    sharp = detailed_photo(512)
    alignment = align(landmarks_at(256, 256, 500))
    along = np.array([np.cos(angle), np.sin(angle)]) * 700
    ends = [tuple(int(v) for v in (256, 240) + sign * along) for sign in (-1, 1)]
    scratched = cv2.line(sharp.copy(), *ends, (255,) * 3, 2, cv2.LINE_AA)
    y, x = np.mgrid[:512, :512]
    is_dark = (x * np.sin(angle) + y * np.cos(angle)) % 10 < 5
    striped = sharp.copy()
    striped[400:][is_dark[400:]] = 20
    for damaged in (scratched, striped):
        found = estimate_quality(damaged, alignment)
        assert (found.has_screen, found.is_better_than(181)) == (False, True)


def test_a_small_sharp_face_is_good_as_it_is():
    photo = skimage.data.astronaut()
    (face,) = build_detector(DetectorConfig()).detect(photo)
    sharp, scale = images.resize_pixels(photo, (240, 240)), 240 / 512
    alignment = align(face.landmarks * scale)
    soft = images.resize_pixels(images.resize_pixels(sharp, (100, 100)), (240, 240))
    noise = np.random.default_rng(0).normal(0, 15, sharp.shape)
    assert estimate_quality(sharp, alignment).is_better_than(256)
    for damaged in (soft, images.round_to_uint8(sharp + noise)):
        assert not estimate_quality(damaged, alignment).is_better_than(256)
    # Twice as large, the photo has room for more detail.
    assert not estimate_quality(sharp, alignment).is_better_than(256, scale=2)


@pytest.mark.parametrize("side_px", [5, 16, 40, 3000])
def test_quality_of_any_size(side_px):
    found = estimate_quality(smooth_photo(), align(landmarks_at(50, 50, side_px)))
    assert 16 <= found.effective_px <= 512
    assert np.isfinite([found.noise, found.blockiness]).all()
