"""A face that was followed through a video, and how its movement is smoothed.

Movement is smoothed by a One-Euro filter (Casiez et al., "1€ Filter", CHI 2012).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from dr2pipe.faces.align import Alignment, Points, apply
from dr2pipe.faces.quality import Quality

Times = npt.NDArray[np.float64]  # (F,) seconds

# A look's points: five landmarks, then two opposite corners of the aligned crop.
CORNERS = np.array([[0.0, 0.0], [1.0, 1.0]])
# One-Euro filter: the cut-off frequency of a face that rests, and what is added to it for each
# side of the crop that the face moves in a second; and that of the speed itself.
_REST_HZ, _HZ_PER_SPEED, _SPEED_HZ = 1.0, 6.0, 1.0
_MONOCHROME_LOOKS = 0.9  # share of a track's looks


@dataclass
class Look:
    """A face that was found in a frame.

    Attributes:
        frame: number of the frame, from 0.
        points: (7,2) in pixels: landmarks, and two corners of the aligned crop.
        box: x, y, width, height.
        score: 0..1, of the detector.
        quality: of the face in this frame.
        is_monochrome: whether the face is black and white, or in one tint.
    """

    frame: int
    points: Points
    box: tuple[float, float, float, float]
    score: float
    quality: Quality
    is_monochrome: bool

    @property
    def size_px(self) -> float:
        """Mean of the box's sides."""
        return (self.box[2] + self.box[3]) / 2


@dataclass
class FaceTrack:
    """One face from the first frame in which it is seen to the last.

    Attributes:
        number: counts the tracks from 0 in order of their first frames.
        first: number of its first frame.
        points: (F,7,2) for each of its frames, smoothed: landmarks, and two corners of the crop.
        boxes: (F,4) x, y, width, height.
        score: median of the detector's scores.
        quality: medians of what was seen of the face.
        is_monochrome: black and white, or in one tint.
        at_scene_start: whether the scene, too, starts with its first frame.
        at_scene_end: whether the scene, too, ends with its last frame.
        skipped: why it is left as it is; None where it is restored.
    """

    number: int
    first: int
    points: Points
    boxes: npt.NDArray[np.float64]
    score: float
    quality: Quality
    is_monochrome: bool
    at_scene_start: bool
    at_scene_end: bool
    skipped: str | None = None

    @property
    def last(self) -> int:
        """Number of its last frame."""
        return self.first + len(self.points) - 1

    def has(self, frame: int) -> bool:
        """Whether the face is seen in a frame."""
        return self.first <= frame <= self.last

    def alignment(self, frame: int) -> Alignment:
        """Where the face lies in one of its frames."""
        points = self.points[frame - self.first]
        # A similarity is one multiplication and one addition of complex numbers.
        start, end = (complex(x, y) for x, y in points[5:])
        turn = (end - start) / (1 + 1j)
        to_photo = np.array(
            [[turn.real, -turn.imag, start.real], [turn.imag, turn.real, start.imag]]
        )
        to_crop = np.asarray(cv2.invertAffineTransform(to_photo), np.float64)
        return Alignment(to_crop, apply(to_crop, points[:5]))

    def share(self, frame: int, fade_frames: int = 5) -> float:
        """0..1, how much of the restored face is shown: it fades in and out within a scene."""
        since = fade_frames if self.at_scene_start else frame - self.first
        until = fade_frames if self.at_scene_end else self.last - frame
        return min(1.0, (min(since, until) + 1) / (fade_frames + 1))


def track_of(
    number: int, looks: Sequence[Look], times_s: Times, *, at_scene_start: bool, at_scene_end: bool
) -> FaceTrack:
    """The track through looks at one face, with points for every frame between them.

    Args:
        number: of the track.
        looks: in the order of their frames.
        times_s: when each frame of the video is shown.
        at_scene_start: see :class:`FaceTrack`.
        at_scene_end: likewise.
    """
    first, last = looks[0].frame, looks[-1].frame
    at, wanted = times_s[[look.frame for look in looks]], times_s[first : last + 1]
    known = np.stack([np.concatenate([look.points.ravel(), look.box]) for look in looks])
    every = np.stack([np.interp(wanted, at, values) for values in known.T], axis=1)
    points = every[:, :14].reshape(-1, 7, 2)
    sides = np.abs(points[:, 6] - points[:, 5]).max(axis=1)
    qualities = [look.quality for look in looks]
    names = ("side_px", "effective_px", "noise", "blockiness")
    medians = {name: float(np.median([getattr(q, name) for q in qualities])) for name in names}
    return FaceTrack(
        number,
        first,
        smoothed(points, wanted, sides),
        every[:, 14:],
        float(np.median([look.score for look in looks])),
        Quality(**medians, has_screen=bool(np.mean([q.has_screen for q in qualities]) > 0.5)),
        bool(np.mean([look.is_monochrome for look in looks]) >= _MONOCHROME_LOOKS),
        at_scene_start,
        at_scene_end,
    )


def smoothed(points: Points, times_s: Times, sides_px: npt.NDArray[np.float64]) -> Points:
    """(F,P,2) without jitter and without lag: a One-Euro filter forwards and backwards, averaged.

    Args:
        points: of one face in every frame.
        times_s: (F,) when each frame is shown.
        sides_px: (F,) size of the face, which speed is measured in.
    """
    forwards = one_euro(points, times_s, sides_px)
    backwards = one_euro(points[::-1], -times_s[::-1], sides_px[::-1])[::-1]
    return (forwards + backwards) / 2


def one_euro(points: Points, times_s: Times, sides_px: npt.NDArray[np.float64]) -> Points:
    """The One-Euro filter on (F,P,2): the faster a face moves, the less it is smoothed.

    All points of a frame are smoothed alike, so that they keep their places to each other.
    """
    result, speed = points.copy(), np.zeros_like(points[0])
    for i in range(1, len(points)):
        passed = max(float(times_s[i] - times_s[i - 1]), 1e-6)
        newest = (points[i] - points[i - 1]) / sides_px[i] / passed  # sides per second
        speed = speed + _newest_share(_SPEED_HZ, passed) * (newest - speed)
        cutoff = _REST_HZ + _HZ_PER_SPEED * float(np.linalg.norm(speed, axis=1).mean())
        result[i] = result[i - 1] + _newest_share(cutoff, passed) * (points[i] - result[i - 1])
    return result


def _newest_share(cutoff_hz: float, passed_s: float) -> float:
    """The weight of the newest value in a low-pass filter of first order."""
    return 1 / (1 + 1 / (2 * np.pi * cutoff_hz * passed_s))
