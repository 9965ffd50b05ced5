"""Video files are read here, by PyAV, and their frames changed.

A frame stays in its own samples (8 to 16 bits, any subsampling of colour); only what changes of a
face is converted and added.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dr2pipe.core import files
from dr2pipe.core.errors import PictureError
from dr2pipe.core.extras import needs_extra
from dr2pipe.core.images import Pixels
from dr2pipe.restoration.video import Change

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# Sample layouts that are kept; others become 8-bit 4:2:0.
_PLANAR = tuple(
    f"{kind}{bits}"
    for kind in ("yuv420p", "yuv422p", "yuv444p", "gray")
    for bits in ("", "10le", "12le")
)
_SD_HEIGHT = 576  # up to here, colours that a file does not describe are those of BT.601
# Red and blue weights of luma by FFmpeg's number of a colour space, and its name in swscale.
_MATRICES = {1: (0.2126, 0.0722, "itu709"), 9: (0.2627, 0.0593, "bt2020")}
_BT601 = (0.299, 0.114, "itu601")
FULL_RANGE = 2
_EXACT_BICUBIC = 4 | 0x40000 | 0x2000  # bicubic, accurate rounding, colours at full width
_PQ_AND_HLG = (16, 18)


def load_av() -> Any:
    """PyAV.

    Raises:
        MissingPackageError: it is not installed.
    """
    with needs_extra("video"):
        import av
    # SVT-AV1 writes to the screen whatever FFmpeg is told.
    os.environ.setdefault("SVT_LOG", "1")
    return av


# -- reading ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class VideoInfo:
    """What a file says of its pictures.

    Attributes:
        width: in pixels, as they are stored.
        height: likewise.
        time_base: seconds of one unit of a frame's time.
        rate: frames per second, on the average.
        duration_s: as the file says; None where it does not.
        quarter_turns: against the clock, by which a player turns them.
        pix_fmt: FFmpeg's name of the samples' layout.
        matrix: red and blue weights of luma, and swscale's name.
        is_full_range: whether samples use all levels.
        is_hdr: whether levels stand for light as in HDR10 or HLG.
    """

    width: int
    height: int
    time_base: Fraction
    rate: Fraction
    duration_s: float | None
    quarter_turns: int
    pix_fmt: str
    matrix: tuple[float, float, str]
    is_full_range: bool
    is_hdr: bool

    @property
    def kept_pix_fmt(self) -> str:
        """The layout in which frames are changed and encoded."""
        name = self.pix_fmt.replace("yuvj", "yuv")
        kept = name if name in _PLANAR else "yuv420p"
        # Encoders want an even number of pixels where two share a colour.
        is_odd = (self.width % 2 and "444" not in kept) or (self.height % 2 and "420" in kept)
        return kept.replace("420", "444").replace("422", "444") if is_odd else kept


@contextmanager
def opened(path: str | Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """An open video and its first stream of pictures.

    Raises:
        PictureError: no video.
        UnreadableFileError: no such file, a pipe or a device.
    """
    av = load_av()
    if files.check_regular(path) == 0:
        raise PictureError(f"{path}: the file is empty")
    try:
        container = av.open(str(path), metadata_errors="replace")
    except av.FFmpegError as error:
        raise PictureError(f"{path} is not a video that can be read ({error.strerror})") from None
    with container:
        streams = [s for s in container.streams.video if not _is_cover(s)]
        if not streams or streams[0].codec_context is None or not streams[0].codec_context.width:
            raise PictureError(f"{path} is not a video: it has no moving pictures")
        yield container, streams[0]


def _is_cover(stream: Any) -> bool:
    av = load_av()
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


@dataclass
class Damage:
    """What could not be read of a file.

    Attributes:
        packets: that could not be decoded.
        missing_s: how much earlier the pictures end than the file says.
    """

    packets: int = 0
    missing_s: float = 0.0

    def sentences(self) -> list[str]:
        """What to tell about it."""
        said = []
        if self.packets:
            said.append(f"{self.packets} packets of the video are damaged; their frames are lost")
        if self.missing_s:
            said.append(f"the video is cut off: its last {self.missing_s:.1f} s are not there")
        return said


def read_info(path: str | Path) -> VideoInfo:
    """What a file says of its pictures.

    Raises:
        PictureError: no video, or none whose first frame can be read.
        UnreadableFileError: no such file, a pipe or a device.
    """
    with opened(path) as (container, stream):
        frame = next(_decoded(container, stream, Damage()), None)
        if frame is None:
            raise PictureError(f"{path}: no frame of the video can be read")
        matrix = _MATRICES.get(frame.colorspace, _BT601)
        if frame.colorspace == 2 and frame.height > _SD_HEIGHT:  # not said
            matrix = _MATRICES[1]
        duration = None
        if stream.duration is not None and stream.time_base is not None:
            duration = float(stream.duration * stream.time_base)
        elif container.duration is not None:
            duration = container.duration / 1e6
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        is_full = frame.color_range == FULL_RANGE or "yuvj" in frame.format.name
        return VideoInfo(
            frame.width,
            frame.height,
            stream.time_base or Fraction(1, 90000),
            Fraction(rate),
            duration,
            round(frame.rotation / 90) % 4,
            frame.format.name,
            matrix,
            is_full,
            frame.color_trc in _PQ_AND_HLG,
        )


def read_frames(
    path: str | Path, info: VideoInfo, damage: Damage, *, until_s: float | None = None
) -> Iterator[VideoFrame]:
    """The frames in the order in which they are shown; each later than the one before.

    Args:
        path: of the video.
        info: what :func:`read_info` found.
        damage: is filled with what could not be read.
        until_s: frames before this time, counted from the first.
    """
    with opened(path) as (container, stream):
        damage.packets, damage.missing_s = 0, 0.0
        step = max(1, round(1 / (info.rate * info.time_base)))
        first, last = None, None
        for frame in _decoded(container, stream, damage):
            if frame.pts is None:
                frame.pts = 0 if last is None else last + step
            if last is not None and frame.pts <= last:
                continue  # shown already, as after a badly cut beginning
            first = frame.pts if first is None else first
            last = frame.pts
            if until_s is not None and float((frame.pts - first) * info.time_base) >= until_s:
                return
            yield frame
        if info.duration_s is not None and first is not None and last is not None:
            shown_s = float((last + step - first) * info.time_base)
            missing_s = info.duration_s - shown_s
            if missing_s > max(0.5, 2 * step * float(info.time_base)):
                damage.missing_s = missing_s


def _decoded(container: Any, stream: Any, damage: Damage) -> Iterator[Any]:
    av = load_av()
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                return
            frames = packet.decode()
        except av.FFmpegError as error:
            if isinstance(error, av.EOFError):
                return
            damage.packets += 1
            if damage.packets > 1000:
                return
            continue
        damage.packets += packet.is_corrupt
        yield from frames


def upright(frame: VideoFrame, info: VideoInfo) -> Pixels:
    """(H,W,3) uint8 RGB of a frame, as it is shown."""
    kinds = {True: "JPEG", False: "MPEG"}
    rgb = frame.reformat(
        format="rgb24",
        src_colorspace=info.matrix[2],
        src_color_range=kinds[info.is_full_range],
        dst_color_range="JPEG",
        interpolation=_EXACT_BICUBIC,
    ).to_ndarray()
    return np.ascontiguousarray(np.rot90(rgb, info.quarter_turns))


# -- frames ----------------------------------------------------------------------------------


def changed_frame(frame: VideoFrame, changes: Iterable[Change], info: VideoInfo) -> VideoFrame:
    """A copy of a frame with changes added; all samples that no change reaches are as before."""
    av = load_av()
    source = frame
    if (frame.format.name.replace("yuvj", "yuv"), frame.width, frame.height) != (
        info.kept_pix_fmt,
        info.width,
        info.height,
    ):
        source = frame.reformat(info.width, info.height, info.kept_pix_fmt)
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
