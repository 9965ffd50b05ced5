"""Video files are read here, by PyAV."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dr2pipe.core import files, images
from dr2pipe.core.errors import PictureError
from dr2pipe.core.extras import needs_extra

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
_BT601 = (images.LUMA[0], images.LUMA[2], "itu601")
FULL_RANGE = 2
BT709, LIMITED_RANGE = 1, 1
_PQ_AND_HLG = (16, 18)
# FFmpeg's formats that name other files, which would be read too.
_LISTS = ("concat", "hls", "dash", "imf")
_MOST_DAMAGED_IN_A_ROW = 1000
_CUT_OFF_S = 0.5  # what a video may be shorter than its file says
# What a disk answers; all else of FFmpeg's errors is about the content of files.
_OF_THE_DISK = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO),
    *(errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EMFILE),
)


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


def address(path: str | Path) -> str:
    """What FFmpeg takes for a file, whatever its name is; ``12:30.mp4`` is none of its protocols."""
    return f"file:{path}"


@contextmanager
def disk_errors_named(path: str | Path) -> Iterator[None]:
    """Let the errors of a disk, which PyAV has its own kinds of, be those of Python.

    Raises:
        OSError: of a disk that is full, read-only or broken; ``filename`` is ``path``.
    """
    av = load_av()
    try:
        yield
    except av.FFmpegError as error:
        if error.errno not in _OF_THE_DISK:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from None


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
        display_matrix: nine numbers of the file that say so, and whether it mirrors them; None
            where it does neither.
        pix_fmt: FFmpeg's name of the samples' layout.
        has_alpha: whether pixels may be transparent.
        is_rgb: whether samples are red, green and blue, not luma and chroma.
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
    display_matrix: tuple[int, ...] | None
    pix_fmt: str
    has_alpha: bool
    is_rgb: bool
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
        PictureError: no video, a picture, or a list of other files.
        UnreadableFileError: no such file, a pipe or a device.
    """
    av = load_av()
    if files.check_regular(path) == 0:
        raise PictureError(f"{path}: the file is empty")
    try:
        container = av.open(address(path), metadata_errors="replace")
    except av.FFmpegError as error:
        raise PictureError(
            f"{path} is not a video that can be read ({error.strerror}); it may be of another "
            "kind, or cut off: copy it again"
        ) from None
    with container:
        kind = container.format.name
        if kind in _LISTS:
            raise PictureError(f"{path} is a list of files, not a video; give one of them")
        if kind.startswith("image2") or kind.endswith("_pipe"):
            raise PictureError(f"{path} is a picture, not a video; dr2pipe restore takes it")
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
        resized_s: when the pictures begin to have another size than the first; None: never.
    """

    packets: int = 0
    missing_s: float = 0.0
    resized_s: float | None = None

    def sentences(self) -> list[str]:
        """What to tell about it."""
        said = []
        if self.packets:
            said.append(f"{self.packets} packets of the video are damaged; their frames are lost")
        if self.missing_s:
            said.append(f"the video is cut off: its last {self.missing_s:.1f} s are not there")
        if self.resized_s is not None:
            said.append(
                f"the pictures change their size after {self.resized_s:.1f} s: all have that of the "
                "first in the result"
            )
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
        is_rgb = frame.format.is_rgb or frame.format.has_palette
        matrix = _MATRICES.get(frame.colorspace, _BT601)
        if is_rgb or (frame.colorspace == 2 and frame.height > _SD_HEIGHT):  # not said
            matrix = _MATRICES[1]
        duration = None
        if stream.duration is not None and stream.time_base is not None:
            duration = float(stream.duration * stream.time_base)
        else:
            duration = _length_s(container)
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        is_full = frame.color_range == FULL_RANGE or "yuvj" in frame.format.name
        display_matrix, quarter_turns = _display_of(frame)
        return VideoInfo(
            frame.width,
            frame.height,
            stream.time_base or Fraction(1, 90000),
            Fraction(rate),
            duration,
            quarter_turns,
            display_matrix,
            frame.format.name,
            len(frame.format.components) in (2, 4),
            is_rgb,
            matrix,
            is_full and not is_rgb,
            frame.color_trc in _PQ_AND_HLG,
        )


def _display_of(frame: Any) -> tuple[tuple[int, ...] | None, int]:
    """The display matrix of a file, and the quarter turns after which faces are upright."""
    known = frame.side_data.get(load_av().sidedata.sidedata.Type.DISPLAYMATRIX)
    if known is None:
        return None, 0
    matrix = tuple(int(value) for value in np.frombuffer(bytes(known), np.int32))
    a, b, _, c, d, *_ = matrix
    if a * d - b * c < 0:  # a mirrored face is a face
        a = -a
    return matrix, round(-float(np.degrees(np.arctan2(b, a))) / 90) % 4


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
        damage.packets, damage.missing_s, damage.resized_s = 0, 0.0, None
        step = max(1, round(1 / (info.rate * info.time_base)))
        first, last, end = None, None, 0
        for frame in _decoded(container, stream, damage):
            if frame.pts is None:
                frame.pts = 0 if last is None else last + step
            if last is not None and frame.pts <= last:
                continue  # shown already, as after a badly cut beginning
            first = frame.pts if first is None else first
            last, end = frame.pts, frame.pts + max(step, frame.duration or 0)
            if until_s is not None and float((frame.pts - first) * info.time_base) >= until_s:
                return
            if (frame.width, frame.height) != (info.width, info.height):
                since_s = float((frame.pts - first) * info.time_base)
                damage.resized_s = since_s if damage.resized_s is None else damage.resized_s
            yield frame
        if info.duration_s is None or first is None:
            return
        missing_s = info.duration_s - float((end - first) * info.time_base)
        if missing_s > max(_CUT_OFF_S, 2 * step * float(info.time_base)) and not _is_whole(path):
            damage.missing_s = missing_s


def _is_whole(path: str | Path) -> bool:
    """Whether the packets of a file reach the end that it names; its pictures may end earlier."""
    with opened(path) as (container, stream):
        ends = dict[int, float]()
        for packet in _packets_of(container):
            if packet.size and packet.pts is not None:
                at = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                ends[packet.stream.index] = max(ends.get(packet.stream.index, at), at)
        if stream.duration is not None and stream.time_base is not None:
            wanted_s = float(((stream.start_time or 0) + stream.duration) * stream.time_base)
            return ends.get(stream.index, 0.0) > wanted_s - _CUT_OFF_S
        length_s = _length_s(container)
        if length_s is None:
            return True
        wanted_s = (container.start_time or 0) / 1e6 + length_s
        return max(ends.values(), default=0.0) > wanted_s - _CUT_OFF_S


def _length_s(container: Any) -> float | None:
    """How long a file says that it is, in seconds from its first packet."""
    if container.duration is None:
        return None
    # Matroska says when it ends, counted from 0.
    before = (container.start_time or 0) if "matroska" in container.format.name else 0
    return float((container.duration - before) / 1e6)


def _packets_of(container: Any) -> Iterator[Any]:
    """All packets up to the place from which on nothing can be read."""
    packets = container.demux()
    while True:
        try:
            packet = next(packets, None)
        except load_av().FFmpegError:
            return
        if packet is None:
            return
        yield packet


def _decoded(container: Any, stream: Any, damage: Damage) -> Iterator[Any]:
    av = load_av()
    packets, in_a_row = container.demux(stream), 0
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
            in_a_row += 1
            if in_a_row > _MOST_DAMAGED_IN_A_ROW:
                return
            continue
        in_a_row = 0
        damage.packets += packet.is_corrupt
        yield from frames
