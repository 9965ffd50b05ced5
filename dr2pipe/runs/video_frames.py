"""Frames of a video as pictures, and pictures' changes in frames.

A frame stays in its own samples (8 to 12 bits, any subsampling of colour); only what changes of a
face is converted and added.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dr2pipe.core.images import Pixels
from dr2pipe.restoration.video import Change
from dr2pipe.runs.video_io import BT709, FULL_RANGE, LIMITED_RANGE, VideoInfo, load_av

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

_EXACT_BICUBIC = 4 | 0x40000 | 0x2000  # bicubic, accurate rounding, colours at full width
_RANGES = {True: "JPEG", False: "MPEG"}


def upright(frame: VideoFrame, info: VideoInfo) -> Pixels:
    """(H,W,3) uint8 RGB of a frame, as it is shown, in the size of the first."""
    kinds: dict[str, Any] = {}
    if not info.is_rgb:
        kinds = {"src_colorspace": info.matrix[2], "dst_color_range": "JPEG"}
        kinds["src_color_range"] = _RANGES[info.is_full_range]
    rgb = frame.reformat(
        info.width, info.height, "rgb24", interpolation=_EXACT_BICUBIC, **kinds
    ).to_ndarray()
    return np.ascontiguousarray(np.rot90(rgb, info.quarter_turns))


def changed_frame(frame: VideoFrame, changes: Iterable[Change], info: VideoInfo) -> VideoFrame:
    """A copy of a frame with changes added; all samples that no change reaches are as before."""
    av = load_av()
    source = frame
    if (frame.format.name.replace("yuvj", "yuv"), frame.width, frame.height) != (
        info.kept_pix_fmt,
        info.width,
        info.height,
    ):
        kinds: dict[str, Any] = {}
        if info.is_rgb:
            kinds = {"dst_colorspace": info.matrix[2], "dst_color_range": "MPEG"}
        source = frame.reformat(info.width, info.height, info.kept_pix_fmt, **kinds)
    result: VideoFrame = av.VideoFrame(info.width, info.height, info.kept_pix_fmt)
    bits = source.format.components[0].bits
    planes = [_samples(plane, bits).copy() for plane in source.planes]
    for change in changes:
        _add(planes, _turned(change, info), info, bits)
    for plane, samples in zip(result.planes, planes, strict=True):
        _samples(plane, bits)[:] = samples
    result.pts, result.time_base = frame.pts, info.time_base
    for name in ("colorspace", "color_range", "color_trc", "color_primaries"):
        setattr(result, name, getattr(frame, name))
    if "yuvj" in frame.format.name:
        result.color_range = FULL_RANGE
    if info.is_rgb:
        result.colorspace, result.color_range = BT709, LIMITED_RANGE
    return result


def _samples(plane: Any, bits: int) -> npt.NDArray[Any]:
    """(h,w) view of a plane."""
    kind = np.dtype(np.uint8 if bits == 8 else np.uint16)
    rows = np.frombuffer(plane, kind).reshape(-1, plane.line_size // kind.itemsize)
    return rows[: plane.height, : plane.width]


def _turned(change: Change, info: VideoInfo) -> Change:
    """A change of the upright frame as one of the frame as it is stored."""
    turns, levels = info.quarter_turns, change.levels
    height, width = levels.shape[:2]
    top, left = change.top, change.left
    is_sideways = turns % 2 == 1
    shown_height, shown_width = (
        (info.width, info.height) if is_sideways else (info.height, info.width)
    )
    bottom, right = shown_height - top - height, shown_width - left - width
    corner = {0: (top, left), 1: (left, bottom), 2: (bottom, right), 3: (right, top)}[turns]
    return Change(*corner, np.rot90(levels, -turns))


def _add(planes: list[npt.NDArray[Any]], change: Change, info: VideoInfo, bits: int) -> None:
    """Add a change (RGB levels of 255) to planes of luma and chroma."""
    red, blue, _ = info.matrix
    one = 2.0 ** (bits - 8)
    luma_scale, chroma_scale = (
        (one, one) if info.is_full_range else (one * 219 / 255, one * 224 / 255)
    )
    if info.is_full_range:
        luma_scale = chroma_scale = (2**bits - 1) / 255
    luma = change.levels @ np.array([red, 1 - red - blue, blue], np.float32)
    _add_plane(planes[0], luma * luma_scale, change.top, change.left, bits)
    if len(planes) < 3:
        return
    down = round(planes[0].shape[0] / planes[1].shape[0])
    across = round(planes[0].shape[1] / planes[1].shape[1])
    for plane, colour, weight in ((planes[1], 2, blue), (planes[2], 0, red)):
        chroma = (change.levels[..., colour] - luma) / (2 * (1 - weight)) * chroma_scale
        before = (change.top % down, change.left % across)
        after = [
            -(start + size) % step
            for start, size, step in zip(before, chroma.shape, (down, across), strict=True)
        ]
        padded = np.pad(chroma, ((before[0], after[0]), (before[1], after[1])))
        rows, columns = padded.shape[0] // down, padded.shape[1] // across
        mean = padded.reshape(rows, down, columns, across).mean(axis=(1, 3))
        _add_plane(plane, mean, change.top // down, change.left // across, bits)


def _add_plane(
    plane: npt.NDArray[Any], difference: npt.NDArray[Any], top: int, left: int, bits: int
) -> None:
    part = plane[top : top + difference.shape[0], left : left + difference.shape[1]]
    difference = difference[: part.shape[0], : part.shape[1]]
    part[:] = np.clip(np.round(part + difference), 0, 2**bits - 1).astype(part.dtype)
