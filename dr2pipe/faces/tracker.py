"""Follows faces through a video: who is where in every frame.

The detector looks at every k-th frame; between two looks a face moves in a straight line. Where a
face comes or goes between two looks, and around scene cuts, it looks at every frame. What it
finds is joined to tracks by place and identity.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from dr2pipe.core.errors import PictureError
from dr2pipe.core.images import Pixels, find_tint
from dr2pipe.faces.align import Points, align, apply
from dr2pipe.faces.detect import DetectorConfig
from dr2pipe.faces.face import FaceDetector
from dr2pipe.faces.identity import Embedding, identity_similarity
from dr2pipe.faces.quality import estimate_quality
from dr2pipe.faces.tints import find_tint_of_face
from dr2pipe.faces.tracks import CORNERS, FaceTrack, Look, track_of

Embed = Callable[[Pixels, Points], Embedding]

# Two finds are of one face where boxes share this much of their union, or where the faces are as
# alike as two photos of one person and at most so many box sizes apart.
_LEAST_SHARED, _LEAST_ALIKE, _MOST_APART = 0.2, 0.45, 2.0
_ALIKE_COUNTS = 2.0  # times as much as place where several faces come into question
_NEWEST_EMBEDDING = 0.2  # its share in what is known of a track's identity
_MOST_GAP_S = 0.5  # a face that was not found for so long has gone
_LEAST_FRAMES = 5  # of a track within a scene; shorter ones are false finds, and would only flash
# Between 0 and 1 the detector wavers: it looks a little below the wanted score, and a track
# counts when this share of its looks reaches it.
SCORE_SLACK, _LOOKS_OVER_SCORE = 0.75, 1 / 3
# A cut: least mean difference of luma thumbnails in levels, and below which correlation. Of pairs of
# different photos and portraits 99 % stay below it; pans by a fifth of the width, rolls by 7 degrees
# and zooms by a fifth do not.
# What is looked for is the middle of the thumbnail, which has this width and height.
_THUMB, _CUT_LEVELS, _CUT_ALIKE, _CUT_MIDDLE = (48, 27), 6.0, 0.88, (28, 15)
_CUT_TURNS, _CUT_ZOOMS = (0.0, 6.0, -6.0), (1.0, 1.15, 0.87)
_CUT_GRAIN = 0.5  # levels


@dataclass
class _Live:
    """A track that may go on."""

    looks: list[Look]
    at_scene_start: bool
    embedding: Embedding | None = None
    at_scene_end: bool = False


@dataclass
class _Found:
    """A find that is not yet in a track."""

    look: Look
    embedding: Embedding | None


class FaceTracker:
    """Takes the frames of a video one by one, and says at the end which faces it saw.

    It keeps the frames between two looks, and numbers of the faces; so its memory does not grow
    with the size of a video.

    Args:
        detector: finds faces; it should look for scores down to ``SCORE_SLACK`` of those wanted.
        config: which faces are wanted.
        every: looks at every so many frames.
        embed: identity (128,) of a face by (H,W,3) and (5,2) landmarks; None: by place alone.
    """

    def __init__(
        self,
        detector: FaceDetector,
        config: DetectorConfig,
        *,
        every: int = 5,
        embed: Embed | None = None,
    ):
        self.detector, self.config, self.every, self.embed = detector, config, every, embed
        self.times_s: list[float] = []
        self._waiting: list[tuple[int, Pixels]] = []
        self._live: list[_Live] = []
        self._ended: list[_Live] = []
        self._thumb: npt.NDArray[np.float32] | None = None
        self._scene_first, self._last_look = 0, -1
        self._size = (1, 1)

    def add(self, pixels: Pixels, time_s: float) -> None:
        """Take the next frame, (H,W,3) uint8 RGB, upright, shown at ``time_s``."""
        index = len(self.times_s)
        self.times_s.append(time_s)
        self._size = (pixels.shape[0], pixels.shape[1])
        small = cv2.resize(pixels, _THUMB, interpolation=cv2.INTER_AREA)
        thumb = np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), np.float32)
        is_cut = self._thumb is not None and is_scene_cut(self._thumb, thumb)
        self._thumb = thumb
        if is_cut:
            self._end_scene()
            self._scene_first = index
        self._waiting.append((index, pixels))
        if index == self._scene_first or index - self._last_look >= self.every:
            self._look()

    def finish(self) -> list[FaceTrack]:
        """The tracks, in order of their first frames and sizes."""
        self._end_scene()
        kept = [track for track in self._ended if self._is_wanted(track)]
        kept.sort(key=lambda t: (t.looks[0].frame, -t.looks[0].size_px, t.looks[0].box))
        times = np.array(self.times_s)
        tracks = [
            track_of(
                number,
                track.looks,
                times,
                at_scene_start=track.at_scene_start,
                at_scene_end=track.at_scene_end,
            )
            for number, track in enumerate(kept)
        ]
        for track, live in zip(tracks, kept, strict=True):
            is_whole_scene = live.at_scene_start and live.at_scene_end
            if len(track.points) < _LEAST_FRAMES and not is_whole_scene:
                track.skipped = f"it is seen in {len(track.points)} frames only"
        self._skip_unchosen(tracks)
        return tracks

    # -- looks -------------------------------------------------------------------------------

    def _end_scene(self) -> None:
        """End all tracks; the last frame is looked at."""
        if self._waiting:
            self._look()
        for track in self._live:
            track.at_scene_end = track.looks[-1].frame == self._last_look
        self._ended += self._live
        self._live = []

    def _look(self) -> None:
        """Look at the newest frame, and at those before it where faces came or went between."""
        index, pixels = self._waiting[-1]
        found = self._search(index, pixels)
        pairs = self._pairs(self._live, found)
        seen = {i for i, t in enumerate(self._live) if t.looks[-1].frame == self._last_look}
        if len(pairs) < len(found) or not seen <= pairs.keys():
            for earlier, earlier_pixels in self._waiting[:-1]:
                self._take(self._search(earlier, earlier_pixels), earlier)
        self._take(found, index)
        self._waiting, self._last_look = [], index

    def _search(self, index: int, pixels: Pixels) -> list[_Found]:
        faces = self.detector.detect(pixels)
        if not faces:
            return []
        of_frame = find_tint(pixels)
        found = []
        for face in faces:
            if face.side_px < self.config.min_px:
                continue
            try:
                alignment = align(face.landmarks)
            except PictureError:  # not landmarks of a face
                continue
            if alignment.side_px > 4 * max(self._size):
                continue
            points = np.concatenate([face.landmarks, apply(alignment.to_photo, CORNERS)])
            quality = estimate_quality(pixels, alignment)
            is_monochrome = find_tint_of_face(pixels, alignment, of_frame) is not None
            look = Look(index, points, face.box, face.score, quality, is_monochrome)
            embedding = self.embed(pixels, face.landmarks) if self.embed is not None else None
            found.append(_Found(look, embedding))
        return found

    def _take(self, found: list[_Found], index: int) -> None:
        """Add what was found in a frame to the tracks, or begin new ones."""
        pairs = self._pairs(self._live, found)
        for place, one in pairs.items():
            track, embedding = self._live[place], found[one].embedding
            track.looks.append(found[one].look)
            if embedding is not None and track.embedding is not None:
                track.embedding = track.embedding + _NEWEST_EMBEDDING * (
                    embedding - track.embedding
                )
        for one, new in enumerate(found):
            if one not in pairs.values():
                self._live.append(_Live([new.look], index == self._scene_first, new.embedding))
        now = self.times_s[index]
        going = [now - self.times_s[t.looks[-1].frame] <= _MOST_GAP_S for t in self._live]
        self._ended += [t for t, goes in zip(self._live, going, strict=True) if not goes]
        self._live = [t for t, goes in zip(self._live, going, strict=True) if goes]

    def _pairs(self, tracks: Sequence[_Live], found: Sequence[_Found]) -> dict[int, int]:
        """Which find goes on with which track, the surest pair first."""
        scored = [
            (score, place, one)
            for place, track in enumerate(tracks)
            for one, new in enumerate(found)
            if (score := self._score(track, new)) is not None
        ]
        pairs: dict[int, int] = {}
        for _, place, one in sorted(scored, key=lambda s: (-s[0], s[1], s[2])):
            if place not in pairs and one not in pairs.values():
                pairs[place] = one
        return pairs

    def _score(self, track: _Live, found: _Found) -> float | None:
        """How surely a find is the track's face; None: it is not."""
        box = self._expected_box(track, self.times_s[found.look.frame])
        shared = _shared(box, found.look.box)
        if track.embedding is None or found.embedding is None:
            return shared if shared >= _LEAST_SHARED else None
        alike = identity_similarity(track.embedding, found.embedding)
        apart = np.hypot(*(_middle(box) - _middle(found.look.box))) / found.look.size_px
        if shared < _LEAST_SHARED and (alike < _LEAST_ALIKE or apart > _MOST_APART):
            return None
        return shared + _ALIKE_COUNTS * alike

    def _expected_box(self, track: _Live, time_s: float) -> tuple[float, float, float, float]:
        """Where a track's face is if it goes on moving as between its last two looks."""
        last = track.looks[-1]
        if len(track.looks) < 2:
            return last.box
        before = track.looks[-2]
        passed = self.times_s[last.frame] - self.times_s[before.frame]
        ahead = (time_s - self.times_s[last.frame]) / max(passed, 1e-6)
        shift = (_middle(last.box) - _middle(before.box)) * min(ahead, 2.0)
        return (last.box[0] + shift[0], last.box[1] + shift[1], last.box[2], last.box[3])

    # -- which tracks count ------------------------------------------------------------------

    def _is_wanted(self, track: _Live) -> bool:
        scores = [look.score for look in track.looks]
        return float(np.quantile(scores, 1 - _LOOKS_OVER_SCORE)) >= self.config.min_score

    def _skip_unchosen(self, tracks: Sequence[FaceTrack]) -> None:
        """Leave tracks alone that ``only`` and ``max_count`` do not choose."""
        middle = np.array([self._size[1] / 2, self._size[0] / 2])
        only = self.config.only
        room = self.config.max_count if only == "all" else 1

        def rank(track: FaceTrack) -> tuple[float, int]:
            if only == "center":
                middles = track.boxes[:, :2] + track.boxes[:, 2:] / 2
                away = float(np.linalg.norm(middles - middle, axis=1).mean())
                return (away, track.number)
            return (-float(track.boxes[:, 2:].prod(axis=1).sum()), track.number)

        chosen: list[FaceTrack] = []
        for track in sorted((t for t in tracks if t.skipped is None), key=rank):
            beside = [t for t in chosen if t.first <= track.last and track.first <= t.last]
            if len(beside) < room:
                chosen.append(track)
            else:
                said = f"only={only}" if only != "all" else f"max_count={self.config.max_count}"
                track.skipped = f"faces.{said} chose others"


def is_scene_cut(before: npt.NDArray[np.float32], after: npt.NDArray[np.float32]) -> bool:
    """Whether luma thumbnails (h,w) with levels of 0..255 are of different scenes.

    The middle of one is nowhere in the other. So the flicker of old film is no cut, and a camera
    that pans, rolls or zooms makes none; black bars at the edges do not count.
    """
    if float(np.abs(before - after).mean()) < _CUT_LEVELS:
        return False
    # Flat parts, such as black bars, correlate with nothing then.
    before, after = (
        thumb + np.random.default_rng(seed).normal(0, _CUT_GRAIN, thumb.shape).astype(np.float32)
        for seed, thumb in enumerate((before, after))
    )
    return not (_is_middle_of(after, before) or _is_middle_of(before, after))


def _is_middle_of(thumb: npt.NDArray[np.float32], whole: npt.NDArray[np.float32]) -> bool:
    """Whether the middle of a thumbnail is somewhere in another, a little turned or zoomed or not."""
    (width, height), (rows, columns) = _CUT_MIDDLE, thumb.shape
    top, left = (rows - height) // 2, (columns - width) // 2
    centre = ((columns - 1) / 2, (rows - 1) / 2)
    for degrees, zoom in itertools.product(_CUT_TURNS, _CUT_ZOOMS):
        move = cv2.getRotationMatrix2D(centre, degrees, zoom)
        moved = cv2.warpAffine(thumb, move, (columns, rows), borderMode=cv2.BORDER_REFLECT)
        part = moved[top : top + height, left : left + width]
        if float(cv2.matchTemplate(whole, part, cv2.TM_CCOEFF_NORMED).max()) >= _CUT_ALIKE:
            return True
    return False


def _middle(box: Sequence[float]) -> npt.NDArray[np.float64]:
    return np.array([box[0] + box[2] / 2, box[1] + box[3] / 2])


def _shared(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection of two boxes as a share of their union."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    both = max(width, 0.0) * max(height, 0.0)
    return both / max(a[2] * a[3] + b[2] * b[3] - both, 1e-9)
