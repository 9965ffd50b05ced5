"""Black-and-white pictures, and those in one tint: their colours are set aside and put back.

A network that was trained on colour photographs puts specks of colour into grey ones. So the
colours of a monochrome picture are described by two small things, a curve of chroma over luma
(sepia, cyanotype) and a faint tint that changes slowly over the picture (a stain, a fading
edge); the network sees the luma alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from dr2pipe.core.images.arrays import LUMA, Pixels

Chroma = npt.NDArray[np.float32]  # (...,2): blue and red difference, in levels of 255

_LUMA = np.array(LUMA, np.float32)
_LOOKED_AT_PX = 96  # longest side of the copy that is judged, where noise and specks are averaged
_CURVE_BINS = 24
_ROWS_AT_ONCE = 256
_FIELD_SIDES = 0.25  # standard deviation of the slow tint, in sides of the picture
# Limits on the copy, in levels: what remains beside curve and field, and the field itself.
_MAX_RESIDUAL, _MAX_FIELD = 3.9, 5.0
# Pale pictures, as of old prints and of haze: what remains counts against their contrast.
_MAX_SHARE_OF_CONTRAST, _NOTHING = 0.066, 0.8
# The same for a face, where noise is averaged further: a page may be of other colours than its
# portraits. The middle of a face is nearly all skin, so these are strict: of 240 faces in colour
# none is taken for monochrome, in low light and haze neither. It takes more to be in colour where
# the whole picture is monochrome.
_MAX_OF_FACE, _MAX_SHARE_OF_FACE, _NOTHING_IN_FACE = 1.6, 0.03, 0.5
_MAX_OF_FACE_ON_MONOCHROME, _MAX_SHARE_OF_FACE_ON_MONOCHROME = 2.8, 0.055
_AVERAGED_SIDES = 1 / 32  # standard deviation of that average, in sides of the copy


@dataclass(frozen=True)
class Place:
    """A part of a picture: its first row and column, and the height and width of the picture."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True, eq=False)
class Tint:
    """The colours of a monochrome picture.

    Attributes:
        curve: (256,2) chroma of each luma.
        field: (h,w,2) what is added to it, by place; a few pixels a side.
    """

    curve: Chroma
    field: Chroma

    def apply(self, pixels: npt.NDArray[Any], place: Place | None = None) -> npt.NDArray[Any]:
        """(H,W,3) uint8 or uint16 RGB in the picture's own colours; its luma stays.

        ``place`` tells which part of the picture the pixels are; None: they are all of it.
        """
        top = float(np.iinfo(pixels.dtype).max)
        height, width = pixels.shape[:2]
        place = place or Place(0, 0, height, width)
        down = _interpolation(place.top, height, place.height, len(self.field))
        across = _interpolation(place.left, width, place.width, self.field.shape[1])
        result = np.empty_like(pixels)
        for start in range(0, height, _ROWS_AT_ONCE):  # large pictures are large as floats
            rows = slice(start, start + _ROWS_AT_ONCE)
            field = np.einsum("yi,ijc,xj->yxc", down[rows], self.field, across, optimize=True)
            luma = np.asarray(pixels[rows].astype(np.float32) @ _LUMA * (255 / top), np.float32)
            rgb = _to_rgb(luma, _on_curve(self.curve, luma) + field) * (top / 255)
            result[rows] = np.clip(np.round(rgb), 0, top)
        return result


def to_grey(pixels: Pixels) -> Pixels:
    """(H,W,3) uint8 RGB with its luma (BT.601) in every channel."""
    luma = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)
    return np.asarray(cv2.merge([luma, luma, luma]), np.uint8)


def find_tint(pixels: Pixels) -> Tint | None:
    """The tint of a picture (H,W,3) uint8 RGB; None where it is a colour picture."""
    found = _look_at(pixels)
    limit = max(_NOTHING, min(_MAX_RESIDUAL, _MAX_SHARE_OF_CONTRAST * found.contrast))
    return found.tint if _rms(found.residual) <= limit and found.strength <= _MAX_FIELD else None


def find_face_tint(pixels: Pixels, *, on_monochrome: bool) -> Tint | None:
    """The tint of a face (H,W,3) uint8 RGB, as :func:`find_tint`.

    Args:
        pixels: the middle of the face, without what it may be mounted on.
        on_monochrome: whether the whole picture is monochrome.
    """
    found = _look_at(pixels)
    sigma = _AVERAGED_SIDES * max(found.residual.shape)
    residual = cv2.GaussianBlur(found.residual, (0, 0), sigma)
    most, share, least = _MAX_OF_FACE, _MAX_SHARE_OF_FACE, _NOTHING_IN_FACE
    if on_monochrome:
        most, share = _MAX_OF_FACE_ON_MONOCHROME, _MAX_SHARE_OF_FACE_ON_MONOCHROME
        least = _NOTHING
    limit = max(least, min(most, share * found.contrast))
    return found.tint if _rms(residual) <= limit and found.strength <= _MAX_FIELD else None


@dataclass
class _Look:
    """A tint, and what it leaves: residual (h,w,2), strength of its field, contrast of the luma."""

    tint: Tint
    residual: Chroma
    strength: float
    contrast: float


def _look_at(pixels: Pixels) -> _Look:
    height, width = pixels.shape[:2]
    shrink = _LOOKED_AT_PX / max(height, width)
    size = (max(2, round(width * shrink)), max(2, round(height * shrink)))
    if shrink < 1:
        pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
    luma, chroma = _split(pixels)
    curve = _fit_curve(luma, chroma)
    residual = chroma - _on_curve(curve, luma)
    sigma = _FIELD_SIDES * max(luma.shape)
    field = cv2.GaussianBlur(residual, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
    small = cv2.resize(field, (8, 8), interpolation=cv2.INTER_AREA)
    tint = Tint(curve, np.asarray(small, np.float32))
    return _Look(tint, np.asarray(residual - field), _rms(field), float(luma.std()))


def _rms(chroma: npt.NDArray[Any]) -> float:
    return float(np.sqrt(np.square(chroma).sum(axis=2).mean()))


def _split(pixels: Pixels) -> tuple[npt.NDArray[np.float32], Chroma]:
    """Luma (H,W) and chroma (H,W,2) of RGB levels (BT.601)."""
    rgb = pixels.astype(np.float32)
    luma = np.asarray(rgb @ _LUMA, np.float32)
    chroma = np.stack([(rgb[..., 2] - luma) * 0.564, (rgb[..., 0] - luma) * 0.713], axis=-1)
    return luma, chroma.astype(np.float32)


def _to_rgb(luma: npt.NDArray[np.float32], chroma: Chroma) -> npt.NDArray[np.float32]:
    blue = luma + chroma[..., 0] / 0.564
    red = luma + chroma[..., 1] / 0.713
    green = (luma - _LUMA[0] * red - _LUMA[2] * blue) / _LUMA[1]
    return np.stack([red, green, blue], axis=-1)


def _fit_curve(luma: npt.NDArray[np.float32], chroma: Chroma) -> Chroma:
    """(256,2): the median chroma of each range of luma, straight lines between them."""
    edges = np.linspace(0, 256, _CURVE_BINS + 1)
    which = np.clip(np.digitize(luma.ravel(), edges) - 1, 0, _CURVE_BINS - 1)
    flat, lumas = chroma.reshape(-1, 2), luma.ravel()
    enough = max(4, luma.size // 500)
    points = [
        (lumas[which == i].mean(), *np.median(flat[which == i], axis=0))
        for i in range(_CURVE_BINS)
        if np.count_nonzero(which == i) >= enough
    ] or [(128.0, *np.median(flat, axis=0))]
    at, blue, red = np.array(points, np.float32).T
    levels = np.arange(256)
    return np.stack([np.interp(levels, at, blue), np.interp(levels, at, red)], axis=-1).astype(
        np.float32
    )


def _on_curve(curve: Chroma, luma: npt.NDArray[np.float32]) -> Chroma:
    place = np.clip(luma, 0, 255)
    levels = np.arange(256)
    return np.stack([np.interp(place, levels, curve[:, i]) for i in range(2)], axis=-1).astype(
        np.float32
    )


def _interpolation(start: int, count: int, length: int, cells: int) -> npt.NDArray[np.float32]:
    """(count,cells): linear interpolation of cells over a length, from pixel ``start`` on."""
    at = np.clip((np.arange(start, start + count) + 0.5) * cells / length - 0.5, 0, cells - 1)
    return np.asarray(np.maximum(1 - np.abs(at[:, None] - np.arange(cells)), 0), np.float32)
