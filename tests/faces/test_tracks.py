"""Faces followed through frames: who is who, from when to when, and without jitter."""

import cv2
import numpy as np
import pytest
from photos import smooth_photo
from videos import BLUE, RED, SIDE_PX, DiscDetector, embed_colour, picture

from dr2pipe.core.images import to_grey
from dr2pipe.faces import DetectorConfig, FaceTracker, align
from dr2pipe.faces.tracker import is_scene_cut
from dr2pipe.faces.tracks import one_euro, smoothed

RATE = 25


def track(frames, *, detector=None, every=5, embed=embed_colour, **wanted):
    tracker = FaceTracker(
        detector or DiscDetector(), DetectorConfig(**wanted), every=every, embed=embed
    )
    for number, frame in enumerate(frames):
        tracker.add(frame, number / RATE)
        assert len(tracker._waiting) <= every  # what is kept of the video
    return tracker.finish()


def middles(found):
    return found.points[:, :5].mean(axis=1)


def test_a_face_between_looks_moves_in_a_line():
    frames = [picture([(RED, 30 + i, 40)]) for i in range(21)]
    detector = DiscDetector()
    (found,) = track(frames, detector=detector)
    assert (found.first, found.last, found.skipped) == (0, 20, None)
    assert detector.looks == 5
    away = middles(found) - middles(found)[0] - np.stack([np.arange(21), np.zeros(21)], axis=1)
    assert np.abs(away).max() < 0.06 * SIDE_PX


def test_the_alignment_of_a_track_is_that_of_its_landmarks():
    (found,) = track([picture([(RED, 50, 40)])] * 6)
    expected = align(found.points[3][:5])
    np.testing.assert_allclose(found.alignment(3).to_crop, expected.to_crop, atol=1e-6)
    np.testing.assert_allclose(found.alignment(3).landmarks, expected.landmarks, atol=1e-6)


def bouncing(i):
    """Two faces come together and go back: by movement alone they would pass each other."""
    red = 40 + 1.6 * min(i, 24 - i)
    return [(RED, red, 40), (BLUE, 100 - 1.6 * min(i, 24 - i), 44)]


@pytest.mark.parametrize("kind", ["bounce", "pass"])
def test_no_swaps_where_faces_meet(kind):
    places = [
        bouncing(i) if kind == "bounce" else [(RED, 30 + 3 * i, 40), (BLUE, 102 - 3 * i, 46)]
        for i in range(25)
    ]
    found = track([picture(place) for place in places])
    assert [t.skipped for t in found] == [None, None]
    by_start = sorted(found, key=lambda t: middles(t)[0, 0])
    for one, which in zip(by_start, (0, 1), strict=True):
        assert (one.first, one.last) == (0, 24)
        expected = np.array([place[which][1:] for place in places])
        assert np.abs(middles(one) - middles(one)[0] - expected + expected[0])[:, 0].max() < 8


def test_without_identity_place_decides():
    frames = [picture([(RED, 30 + i, 30), (BLUE, 90, 60)]) for i in range(12)]
    found = track(frames, embed=None)
    assert [(t.first, t.last) for t in found] == [(0, 11), (0, 11)]


def test_a_cut_ends_tracks():
    before = [picture([(RED, 50, 40)])] * 8
    after = [picture([], seed=1) // 3 for _ in range(8)]
    for frame in after:
        frame[30:50, 40:60] = picture([(RED, 50, 40)])[30:50, 40:60]
    found = track([*before, *after])
    assert [(t.first, t.last) for t in found] == [(0, 7), (8, 15)]
    assert all(t.at_scene_start and t.at_scene_end and t.share(8 * t.number) == 1 for t in found)


def thumb(pixels):
    """(27,48) luma, as the tracker compares frames."""
    return cv2.resize(to_grey(pixels)[..., 0], (48, 27), interpolation=cv2.INTER_AREA).astype(
        np.float32
    )


@pytest.mark.parametrize("contrast", [1.0, 0.4])
def test_cuts_and_what_is_none(contrast):
    scene, other = (smooth_photo(300, 500, seed=seed, cells=9) for seed in (0, 1))
    scene, other = (
        np.round(90 * (1 - contrast) + contrast * x).astype(np.uint8) for x in (scene, other)
    )
    shown = scene[:, :400]
    assert is_scene_cut(thumb(shown), thumb(other[:, :400]))
    assert not is_scene_cut(thumb(shown), thumb(scene[:, 70:470]))  # a quick pan
    for degrees, zoom in ((5, 1.0), (-7, 1.0), (0, 1.2), (3, 1.1)):  # a camera held by hand
        move = cv2.getRotationMatrix2D((200, 150), degrees, zoom)
        moved = cv2.warpAffine(shown, move, (400, 300), borderMode=cv2.BORDER_REFLECT)
        assert not is_scene_cut(thumb(shown), thumb(moved))
    for gain in (0.6, 1.15):  # the flicker of old film
        assert not is_scene_cut(thumb(shown), gain * thumb(shown))
    frames = [picture([(RED, 40 + 4 * i, 40)]) for i in range(2)]
    assert not is_scene_cut(*map(thumb, frames))
    bars = [x[:, :400].copy() for x in (scene, other)]
    for one in bars:
        one[:, :80] = one[:, -80:] = 0
    assert is_scene_cut(*map(thumb, bars))
    black = np.zeros_like(shown)
    assert not is_scene_cut(thumb(black), thumb(black))
    assert is_scene_cut(thumb(black), thumb(shown))


def test_a_face_that_comes_and_goes_between_looks():
    frames = [picture([(RED, 60, 40)] if 3 <= i <= 16 else []) for i in range(24)]
    (found,) = track(frames)
    assert (found.first, found.last) == (3, 16)
    assert not found.at_scene_start
    assert not found.at_scene_end
    shares = [found.share(frame) for frame in range(3, 17)]
    assert shares[0] == shares[-1] == pytest.approx(1 / 6)
    assert shares[5:9] == [1.0] * 4


def test_a_short_gap_is_bridged():
    frames = [picture([] if 9 <= i <= 12 else [(RED, 60, 40)]) for i in range(24)]
    (found,) = track(frames)
    assert (found.first, found.last) == (0, 23)


def test_flashes_and_others_are_left_alone():
    frames = [
        picture([(RED, 40, 40), *([(BLUE, 90, 50)] if 5 <= i <= 7 else [])]) for i in range(16)
    ]
    red, blue = track(frames)
    assert red.skipped is None
    assert blue.skipped == "it is seen in 3 frames only"


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"only": "largest"}, "faces.only=largest chose others"),
        ({"only": "center"}, "faces.only=center chose others"),
        ({"max_count": 1}, "faces.max_count=1 chose others"),
    ],
)
def test_choices_hold_for_a_whole_track(wanted, said):
    frames = [picture([(RED, 62, 47), (BLUE, 100, 60)])] * 12
    found = track(frames, **wanted)
    assert [t.skipped for t in found] == [None, said]


def test_thresholds():
    frames = [picture([(RED, 60, 40)])] * 6
    assert track(frames, min_px=19) == []
    assert track(frames, min_score=0.95) == []


class DiscAnywhere(DiscDetector):
    """Finds one face in the middle of every frame."""

    def detect(self, image, path=""):
        return super().detect(picture([(RED, 60, 40)]))


@pytest.mark.parametrize("wall_is_grey", [True, False])
@pytest.mark.parametrize("face_is_grey", [True, False])
def test_a_face_is_judged_by_its_own_colours(wall_is_grey, face_is_grey):
    # Stripes of one luma and two colours, which no curve of chroma over luma explains.
    stripes = np.tile(np.repeat([[200, 90, 80], [80, 140, 120]], 3, axis=0), (22, 1))[:128]
    colourful = np.repeat(stripes[None].astype(np.uint8), 96, axis=0)
    frame = to_grey(colourful) if wall_is_grey else colourful.copy()
    part = (slice(20, 60), slice(40, 80))
    frame[part] = to_grey(colourful[part]) if face_is_grey else colourful[part]
    (found,) = track([frame] * 6, detector=DiscAnywhere(), embed=None)
    assert found.is_monochrome == face_is_grey


# -- smoothing ---------------------------------------------------------------------------------


def path_of(speed, noise=0.0, count=80):
    times = np.arange(count) / RATE
    points = np.zeros((count, 7, 2)) + np.arange(7)[None, :, None]
    points[..., 0] += speed * SIDE_PX * times[:, None]
    shaken = points + np.random.default_rng(0).normal(scale=noise, size=(count, 1, 2))
    return points, shaken, times, np.full(count, SIDE_PX)


def test_the_filter_takes_jitter():
    points, shaken, times, sides = path_of(0, noise=1.0)
    before = np.abs(np.diff(shaken, axis=0)).mean()
    assert np.abs(np.diff(smoothed(shaken, times, sides), axis=0)).mean() < 0.3 * before
    assert np.abs(smoothed(shaken, times, sides) - points).mean() < np.abs(shaken - points).mean()


def test_the_filter_follows_quick_movement():
    points, _, times, sides = path_of(3)
    late = np.abs(one_euro(points, times, sides) - points)[10:].max()
    assert late < 0.1 * SIDE_PX
    assert np.abs(smoothed(points, times, sides) - points)[10:-10].max() < late / 5


def test_points_keep_their_places_to_each_other():
    points, shaken, times, sides = path_of(1, noise=1.0)
    found = smoothed(shaken, times, sides)
    np.testing.assert_allclose(found - found[:, :1], points - points[:, :1], atol=1e-9)
