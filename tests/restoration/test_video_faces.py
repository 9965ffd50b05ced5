"""The faces of frames: the same noise along a track, steadiness without ghosts, any batches."""

import numpy as np
import pytest
import torch
from videos import BLUE, RED, DiscDetector, embed_colour, moving, picture

from dr2pipe.core.config import load_config
from dr2pipe.core.errors import ConfigError, NotFiniteError
from dr2pipe.faces import DetectorConfig, FaceTracker
from dr2pipe.faces.quality import Quality
from dr2pipe.restoration.settings import RestorationConfig, load_restorer
from dr2pipe.restoration.video import VideoEngine

NETWORK = ["dr2.tau=2", "dr2.omega=8", "dr2.factor=2", "dr2.num_evaluations=2"]


@pytest.fixture(scope="module")
def restorer(model_folder):
    config = load_config(RestorationConfig, None, [f"dr2.model={model_folder}", *NETWORK])
    return load_restorer(config, "cpu")[0]


def tracks_of(frames):
    tracker = FaceTracker(DiscDetector(), DetectorConfig(), embed=embed_colour)
    for number, frame in enumerate(frames):
        tracker.add(frame, number / 25)
    return tracker.finish()


def changes(restorer, frames, tracks, *, per_call=4, batch_size=3, **settings):
    """(H,W,3) that is added to each frame."""
    engine = VideoEngine(restorer, batch_size=batch_size, **settings)
    found = []
    for start in range(0, len(frames), per_call):
        part = [
            engine.prepare(frame, number, tracks, "a.mp4")
            for number, frame in enumerate(frames[start : start + per_call], start)
        ]
        for changes in engine.restore(part):
            added = np.zeros(frames[0].shape, np.float32)
            for change in changes:
                height, width = change.levels.shape[:2]
                rows = slice(change.top, change.top + height)
                added[rows, change.left : change.left + width] += change.levels
            found.append(added)
    return np.stack(found), engine


@pytest.fixture(scope="module")
def clip():
    frames = moving(10)
    return frames, tracks_of(frames)


def test_faces_change_and_nothing_else(restorer, clip):
    frames, tracks = clip
    added, _ = changes(restorer, frames, tracks)
    reached = np.abs(added).sum(axis=3) > 0
    assert 0.02 < reached.mean() < 0.4
    for number, found in enumerate(reached):
        y, x = np.nonzero(found)
        middles = [t.points[number, :5].mean(axis=0) for t in tracks]
        away = np.min([np.hypot(x - mx, y - my) for mx, my in middles], axis=0)
        assert away.max() < 36


def test_any_batches_give_the_same(restorer, clip):
    frames, tracks = clip
    one, _ = changes(restorer, frames, tracks, per_call=1, batch_size=1)
    many, _ = changes(restorer, frames, tracks, per_call=10, batch_size=16)
    assert np.abs(one - many).max() < 0.01


def still(noise):
    rng = np.random.default_rng(0)
    base = picture([(RED, 50, 40), (BLUE, 90, 50)]).astype(float)
    shaken = [np.clip(base + rng.normal(scale=noise, size=base.shape), 0, 255) for _ in range(8)]
    tracks = tracks_of([base.astype(np.uint8)] * 8)
    for track in tracks:
        track.is_monochrome = False  # a disc has one colour
    return [np.round(x).astype(np.uint8) for x in shaken], tracks


def test_a_still_face_does_not_change_from_frame_to_frame(restorer):
    frames, tracks = still(noise=0)
    added, engine = changes(restorer, frames, tracks)
    assert np.abs(added).max() > 5
    assert np.abs(added - added[:1]).max() < 0.01  # one noise for all frames
    seeds = {engine.seed_of("a.mp4", track) for track in tracks}
    assert len(seeds) == 2
    assert engine.seed_of("b.mp4", tracks[0]) not in seeds


def test_steadiness_lowers_flicker(restorer):
    frames, tracks = still(noise=6)
    usual = changes(restorer, frames, tracks, steadiness=0, match_colours=False)[0]
    steady = changes(restorer, frames, tracks, steadiness=0.7, match_colours=False)[0]
    shown = [np.stack(frames).astype(float) + added for added in (usual, steady)]
    inside = np.abs(usual).min(axis=(0, 3)) > 0
    before, after = (np.abs(np.diff(x, axis=0))[:, inside].mean() for x in shown)
    assert after < 0.75 * before


def test_no_ghosts_of_what_was_before(restorer):
    first = picture([(RED, 50, 40)])
    other = first.copy()
    other[30:50, 40:60] = 255 - other[30:50, 40:60]
    (track,) = tracks_of([first] * 8)
    frames = [first] * 4 + [other] * 4
    steady, _ = changes(restorer, frames, [track], steadiness=0.7)
    usual, _ = changes(restorer, frames, [track], steadiness=0)
    size = np.abs(usual[4]).max()
    assert np.abs(steady[4] - usual[4]).max() < 0.1 * size


def test_a_run_goes_on_with_what_was_before(restorer):
    frames, tracks = still(noise=6)
    whole, _ = changes(restorer, frames, tracks, per_call=4)
    _, first = changes(restorer, frames[:4], tracks, per_call=4)
    second = VideoEngine(restorer, batch_size=3)
    second.before = first.before
    part = [second.prepare(f, n, tracks, "a.mp4") for n, f in enumerate(frames[4:], 4)]
    (change, *_), *_ = second.restore(part)
    rows = slice(change.top, change.top + len(change.levels))
    columns = slice(change.left, change.left + change.levels.shape[1])
    np.testing.assert_array_equal(whole[4][rows, columns], change.levels)
    second.forget(tracks, 8)
    assert second.before == {}


def test_black_and_white_stays_so(restorer):
    frames, tracks = still(noise=0)
    for track in tracks:
        track.is_monochrome = True
    added, _ = changes(restorer, frames, tracks)
    assert np.abs(added).max() > 5
    np.testing.assert_allclose(added, np.repeat(added[..., :1], 3, axis=3))


def test_good_faces_are_left_alone(restorer, clip):
    _, tracks = clip
    tracks = tracks_of(clip[0])
    tracks[0].quality = Quality(200.0, 190.0, 0.5, 0.0)
    tracks[1].quality = Quality(200.0, 8.0, 9.0, 0.0)
    VideoEngine(restorer, batch_size=1).leave_good_alone(tracks)
    assert "good as it is" in tracks[0].skipped
    assert tracks[1].skipped is None
    added, _ = changes(restorer, clip[0], tracks)
    x, y = tracks[0].points[4, :5].mean(axis=0).astype(int)
    assert np.abs(added[4, y, x]).max() == 0


def test_an_enhancer_alone(clip):
    given = ["dr2.enabled=false", "enhancer.name=bicubic", "enhancer.options={size: 64}"]
    alone = load_restorer(load_config(RestorationConfig, None, given), "cpu")[0]
    added, engine = changes(alone, *clip)
    assert set(engine.before) == {0, 1}
    assert 0 < np.abs(added).max() < 60  # the same faces, a little softer


@pytest.mark.parametrize("settings", [{"blend": 1.5}, {"steadiness": 1.0}, {"steadiness": -0.1}])
def test_shares_out_of_range(restorer, settings):
    with pytest.raises(ConfigError, match="must"):
        VideoEngine(restorer, batch_size=1, **settings)


def test_what_is_not_finite_is_no_result(restorer, clip, monkeypatch):
    engine = VideoEngine(restorer, batch_size=2)
    monkeypatch.setattr(engine.restorer, "enhance", lambda coarse: coarse * torch.nan)
    with pytest.raises(NotFiniteError, match="not even in float32"):
        engine.restore([engine.prepare(clip[0][0], 0, clip[1], "a.mp4")])
