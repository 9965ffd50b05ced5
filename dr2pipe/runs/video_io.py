"""Video files, by PyAV: frames in, encoded segments, and the segments joined with the sound.

A frame stays in its own samples (8 to 16 bits, any subsampling of colour); only what changes of a
face is converted and added. Nothing else in the package touches video files.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import dr2pipe
from dr2pipe.core import files
from dr2pipe.core.errors import ConfigError, PictureError
from dr2pipe.core.extras import needs_extra
from dr2pipe.core.images import Pixels
from dr2pipe.restoration.video import Change

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

ENDINGS = (".mp4", ".m4v", ".mov", ".mkv")
_SEGMENT_FORMAT = "nut"  # keeps any time base exactly
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
_FULL_RANGE = 2
_EXACT_BICUBIC = 4 | 0x40000 | 0x2000  # bicubic, accurate rounding, colours at full width
_PQ_AND_HLG = (16, 18)


@dataclass(frozen=True)
class Codec:
    """How a codec is used.

    Attributes:
        encoder: FFmpeg's name.
        quality: its constant-quality number where none is given; None: it is lossless.
        largest: the worst of these numbers.
        options: of the encoder.
    """

    encoder: str
    quality: int | None
    largest: int
    options: dict[str, str]


CODECS = {
    "h264": Codec("libx264", 18, 51, {"preset": "medium"}),
    "h265": Codec("libx265", 20, 51, {"preset": "medium", "x265-params": "log-level=none"}),
    "av1": Codec("libsvtav1", 25, 63, {"preset": "6"}),
    "ffv1": Codec("ffv1", None, 0, {"level": "3"}),
}


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


def find_codec(name: str, quality: int | None) -> Codec:
    """The codec of a name, which must be there.

    Raises:
        ConfigError: it is not, or the quality is out of its range.
    """
    av = load_av()
    there = []
    for known, codec in CODECS.items():
        try:
            av.Codec(codec.encoder, "w")
        except av.codec.codec.UnknownCodecError:
            continue
        there.append(known)
    if name not in there:
        raise ConfigError(f"codec '{name}' is not there; choose {', '.join(there)}")
    codec = CODECS[name]
    if quality is not None and codec.quality is None:
        raise ConfigError(f"codec {name} is lossless and takes no quality")
    if quality is not None and not 0 <= quality <= codec.largest:
        raise ConfigError(
            f"quality={quality}: {name} takes 0 (best) to {codec.largest}; "
            f"{codec.quality} is the default"
        )
    return codec


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
        is_full = frame.color_range == _FULL_RANGE or "yuvj" in frame.format.name
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
        result.color_range = _FULL_RANGE
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


# -- writing ---------------------------------------------------------------------------------


def encode_segment(
    path: Path,
    frames: Iterable[VideoFrame],
    info: VideoInfo,
    codec: Codec,
    quality: int | None,
    *,
    before_rename: Callable[[], None],
) -> None:
    """Encode frames into a file of their own, which appears whole or not at all.

    It begins with a key frame and needs no other segment to be decoded. ``before_rename`` is
    called when all frames are encoded, before the file gets its name.
    """
    av = load_av()
    partial = path.with_suffix(".partial")
    container: OutputContainer = av.open(str(partial), "w", format=_SEGMENT_FORMAT)
    with container:
        options = dict(codec.options)
        wanted = codec.quality if quality is None else quality
        if wanted is not None:
            options["crf"] = str(wanted)
        stream: Any = container.add_stream(codec.encoder, rate=info.rate, options=options)
        stream.width, stream.height = info.width, info.height
        stream.pix_fmt = supported(codec, info.kept_pix_fmt)
        stream.time_base = stream.codec_context.time_base = info.time_base
        is_described = False
        for frame in frames:
            if not is_described:
                context = stream.codec_context
                for name in ("colorspace", "color_range", "color_trc", "color_primaries"):
                    setattr(context, name, getattr(frame, name))
                is_described = True
            if frame.format.name != stream.pix_fmt:
                frame = _converted(frame, stream.pix_fmt)
            frame.pict_type = 0
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    before_rename()
    os.replace(partial, path)
    files.sync_folder(path.parent)


def _converted(frame: Any, pix_fmt: str) -> Any:
    other = frame.reformat(format=pix_fmt)
    other.pts, other.time_base = frame.pts, frame.time_base
    return other


def supported(codec: Codec, pix_fmt: str) -> str:
    """A layout of samples that the encoder takes: the same, or the nearest that it has."""
    av = load_av()
    formats = [one.name for one in av.Codec(codec.encoder, "w").video_formats or []]
    deep = pix_fmt.replace("12le", "10le")
    plain = "yuv420p10le" if "le" in pix_fmt else "yuv420p"
    for name in (pix_fmt, deep, plain):
        if not formats or name in formats:
            return name
    return "yuv420p"


@dataclass
class Joined:
    """What became of the streams of a video.

    Attributes:
        kept: kinds and codecs of the streams that were copied, packet by packet.
        left_out: sentences about those that were not.
    """

    kept: list[str]
    left_out: list[str]


class Join:
    """Writes the output: segments of pictures, and every other stream of the source as it is.

    Args:
        source: the original video.
        output: file that is written; its ending says of which kind.
        info: of the source.
        until_s: of the source; None: to its end.

    Raises:
        ConfigError: the output's kind holds no such stream.
    """

    def __init__(self, source: str | Path, output: Path, info: VideoInfo, until_s: float | None):
        self.source, self.output, self.info, self.until_s = source, output, info, until_s

    def check(self, codec: Codec | None) -> Joined:
        """See that the output can hold the streams, before any work is done.

        Raises:
            ConfigError: it cannot.
        """
        av = load_av()
        probe = self.output.with_name(f".{self.output.stem[:50]}.probe{self.output.suffix}")
        try:
            with opened(self.source) as (container, stream):
                out = av.open(str(probe), "w")
                try:
                    if codec is not None:
                        self._held(lambda: out.add_stream(codec.encoder, rate=25), codec.encoder)
                    _, joined = self._add_others(
                        out, container, stream, with_pictures=codec is None
                    )
                finally:
                    out.close()
        finally:
            probe.unlink(missing_ok=True)
        return joined

    def write(self, segments: list[Path], frame_pts: list[int]) -> Joined:
        """Join segments; without any, the source's own pictures are copied.

        Args:
            segments: in order.
            frame_pts: times of all frames, increasing, in units of the time base.
        """
        av = load_av()
        with opened(self.source) as (container, stream), av.open(str(self.output), "w") as out:
            pictures: Iterable[Any] = ()
            metadata = dict(container.metadata)
            if segments:
                said = f"faces restored by dr2pipe {dr2pipe.__version__}"
                metadata["comment"] = "; ".join(filter(None, [metadata.get("comment"), said]))
                added = self._add_pictures(out, stream, segments[0])
                pictures = self._restored_packets(segments, frame_pts, added)
            others, joined = self._add_others(out, container, stream, with_pictures=not segments)
            out.metadata.update(metadata)
            copied = self._copied_packets(container, others, frame_pts[0] * self.info.time_base)
            for _, _, packet in heapq.merge(pictures, copied, key=lambda timed: timed[:2]):
                out.mux_one(packet)
        return joined

    def _add_pictures(self, out: Any, source: Any, segment: Path) -> Any:
        av = load_av()
        with av.open(str(segment)) as container:
            (template,) = container.streams.video
            added = out.add_stream_from_template(template, opaque=True)
        added.time_base = self.info.time_base
        if self.info.quarter_turns:
            added.set_display_rotation(self.info.quarter_turns * 90)
        aspect = source.sample_aspect_ratio
        if aspect:
            added.codec_context.sample_aspect_ratio = aspect
        for name in ("colorspace", "color_range", "color_trc", "color_primaries"):
            setattr(added.codec_context, name, getattr(source.codec_context, name))
        if self.info.is_full_range:
            added.codec_context.color_range = _FULL_RANGE
        added.metadata.update(source.metadata)
        added.disposition = source.disposition
        return added

    def _add_others(
        self, out: Any, container: Any, pictures: Any, *, with_pictures: bool
    ) -> tuple[dict[int, Any], Joined]:
        """Streams of the output by the source's index, and what became of all."""
        streams, joined = {}, Joined([], [])
        for stream in container.streams:
            name = f"{stream.type} ({stream.codec_context.name if stream.codec_context else '?'})"
            is_wanted = stream.type in ("audio", "subtitle") or (
                stream.index == pictures.index and with_pictures
            )
            if stream.index == pictures.index and not with_pictures:
                continue
            if not is_wanted or stream.codec_context is None:
                joined.left_out.append(f"the stream {stream.index}, {name}, is left out")
                continue

            def add(stream: Any = stream) -> Any:
                return out.add_stream_from_template(stream, opaque=True)

            added = self._held(add, name)
            added.time_base = stream.time_base
            added.metadata.update(stream.metadata)
            added.disposition = stream.disposition
            if stream.index == pictures.index and self.info.quarter_turns:
                added.set_display_rotation(self.info.quarter_turns * 90)
            streams[stream.index] = added
            joined.kept.append(name)
        return streams, joined

    def _held(self, add: Any, name: str) -> Any:
        try:
            return add()
        except ValueError:
            raise ConfigError(
                f"{self.output.suffix} files cannot hold {name}: name the output .mkv"
            ) from None

    def _restored_packets(
        self, segments: list[Path], frame_pts: list[int], stream: Any
    ) -> Iterator[tuple[float, int, Any]]:
        av = load_av()
        delay, base = _reordering(segments), self.info.time_base
        step = max(1, round(1 / (self.info.rate * base)))
        ahead = [frame_pts[0] - step * (delay - i) for i in range(delay)]
        durations = dict(zip(frame_pts, np.diff(frame_pts).tolist(), strict=False))
        number = 0
        for segment in segments:
            with av.open(str(segment)) as container:
                for packet in container.demux(container.streams.video[0]):
                    if packet.size == 0:
                        continue
                    packet.dts = ahead[number] if number < delay else frame_pts[number - delay]
                    packet.duration = durations.get(packet.pts, step)
                    packet.stream, packet.time_base = stream, base
                    yield float(packet.dts * base), 0, packet
                    number += 1

    def _copied_packets(
        self, container: Any, streams: dict[int, Any], first_s: Fraction
    ) -> Iterator[tuple[float, int, Any]]:
        av = load_av()
        if not streams:
            return
        latest = 0.0
        packets = container.demux([container.streams[index] for index in streams])
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError:  # cut off: what was read is kept
                return
            if packet is None:
                return
            if packet.size == 0 or packet.dts is None:
                continue
            time_s = float(packet.dts * packet.time_base)
            if self.until_s is not None and time_s >= float(first_s) + self.until_s:
                continue
            latest = max(latest, time_s)
            index = packet.stream.index
            packet.stream = streams[index]
            yield latest, 1 + index, packet


def _reordering(segments: list[Path]) -> int:
    """By how many frames packets come earlier than they are shown, at most."""
    av = load_av()
    most = 0
    for segment in segments:
        with av.open(str(segment)) as container:
            shown = [p.pts for p in container.demux(container.streams.video[0]) if p.size]
        ranks = {pts: rank for rank, pts in enumerate(sorted(shown))}
        most = max([most, *(place - ranks[pts] for place, pts in enumerate(shown))])
    return most
