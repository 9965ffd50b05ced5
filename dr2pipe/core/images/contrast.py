"""The full range of levels for dark, hazy and faded pictures.

DR2 keeps the low frequencies of its input, and so the darkness of an under-exposed photo and the
veil over a faded one. These are mended before, and for the whole photo: one line over the levels,
the same for all three channels and all pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from dr2pipe.core.images.arrays import LUMA, Levels, Pixels

# A picture is dark whose whitest luma is below the first limit, and pale whose blackest is above
# the second; of 60 clean modern portraits none is. Its ends are then moved to where those of
# portraits usually lie. All in shares of the full range.
_LEAST_WHITE, _MOST_BLACK = 0.6, 0.2
_USUAL_WHITE, _USUAL_BLACK = 0.85, 0.06
_END_PERCENT = 0.5  # of the pixels that are blacker, or whiter, than the ends
_MOST_GAIN = 8.0  # what is darker or paler than this can mend is mostly noise
# A picture with less range than this has nothing to show: a black frame, a blank page.
_LEAST_DARK_RANGE, _LEAST_PALE_RANGE = 0.03, 0.1
_LOOKED_AT_PX = 128  # longest side of the copy that is judged; noise is averaged there
_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Stretch:
    """A line over sRGB levels: ``gain`` * level + ``offset``, in shares of the full range."""

    gain: float
    offset: float

    def apply(self, levels: Levels) -> Levels:
        """(H,W[,3]) uint8 or uint16 sRGB with the line applied, saturated."""
        return _on_line(levels, self.gain, self.offset)

    def undo(self, levels: Levels) -> Levels:
        """The levels before, but for those that were saturated."""
        return _on_line(levels, 1 / self.gain, -self.offset / self.gain)


def find_stretch(pixels: Pixels) -> Stretch | None:
    """What brings (H,W,3) uint8 sRGB to the usual range; None where it has that already.

    Black frames and blank pages are left alone too. The gain is at most 8, and then an end that was
    right stays where it is.
    """
    height, width = pixels.shape[:2]
    shrink = _LOOKED_AT_PX / max(height, width)
    if shrink < 1:
        size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
        pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
    luma = pixels.astype(np.float32) @ np.array(LUMA, np.float32) / 255
    black, white = np.percentile(
        cv2.GaussianBlur(luma, (0, 0), 1), [_END_PERCENT, 100 - _END_PERCENT]
    )
    new_white = _USUAL_WHITE if white < _LEAST_WHITE else white
    new_black = _USUAL_BLACK if black > _MOST_BLACK else black
    is_dark, is_pale = new_white != white, new_black != black
    least = _LEAST_DARK_RANGE if is_dark else _LEAST_PALE_RANGE
    if not (is_dark or is_pale) or white - black < least:
        return None
    gain = min((new_white - new_black) / (white - black), _MOST_GAIN)
    at, to = (black + white) / 2, (new_black + new_white) / 2
    if is_dark != is_pale:
        at, to = (black, black) if is_dark else (white, white)
    return Stretch(float(gain), float(to - gain * at))


def _on_line(levels: Levels, gain: float, offset: float) -> Levels:
    top = float(np.iinfo(levels.dtype).max)
    result = np.empty_like(levels)
    for start in range(0, len(levels), _ROWS_AT_ONCE):  # large pictures are large as floats
        rows = slice(start, start + _ROWS_AT_ONCE)
        line = levels[rows].astype(np.float32) * gain + offset * top
        result[rows] = np.clip(np.round(line), 0, top)
    return result
