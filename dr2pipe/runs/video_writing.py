"""Video files are written here, by PyAV: encoded segments, and the segments joined with the sound."""

from __future__ import annotations

import heapq
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dr2pipe
from dr2pipe.core import files
from dr2pipe.core.errors import ConfigError
from dr2pipe.runs.video_io import (
    BT709,
    FULL_RANGE,
    LIMITED_RANGE,
    VideoInfo,
    address,
    disk_errors_named,
    load_av,
    opened,
)
from dr2pipe.runs.video_packets import packets_of, ranks_of, reordering_of, with_dts

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.frame import VideoFrame

ENDINGS = (".mp4", ".m4v", ".mov", ".mkv")
_TRIED_PACKETS = 50
# Metadata that speak of the source's file, not of what it shows.
_OF_THE_FILE = ("major_brand", "minor_version", "compatible_brands", "encoder")
_SEGMENT_FORMAT = "nut"  # keeps any time base exactly


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
    unfinished = path.with_suffix(".partial")
    with disk_errors_named(path):
        _encode(unfinished, frames, info, codec, quality)
    with open(unfinished, "rb") as file:
        os.fsync(file.fileno())
    before_rename()
    os.replace(unfinished, path)
    files.sync_folder(path.parent)


def _encode(
    path: Path, frames: Iterable[VideoFrame], info: VideoInfo, codec: Codec, quality: int | None
) -> None:
    container: OutputContainer = load_av().open(address(path), "w", format=_SEGMENT_FORMAT)
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

        The output is written for this, and deleted.

        Raises:
            ConfigError: it cannot.
            OSError: the disk is full or read-only.
        """
        av = load_av()
        try:
            if codec is not None:
                with av.open(address(self.output), "w") as out:
                    self._held(lambda: out.add_stream(codec.encoder, rate=25), codec.encoder)
            with opened(self.source) as (container, stream):
                out = av.open(address(self.output), "w")
                streams, joined = self._add_others(
                    out, container, stream, with_pictures=codec is None
                )
                # Some kinds of files refuse a stream only when they are finished.
                for *_, packet in itertools.islice(
                    self._copied_packets(container, streams, Fraction(0)), _TRIED_PACKETS
                ):
                    self._held(partial(out.mux_one, packet), ", ".join(joined.kept))
                self._held(out.close, ", ".join(joined.kept))
        finally:
            self.output.unlink(missing_ok=True)
        return joined

    def write(self, segments: list[Path], frame_pts: list[int]) -> Joined:
        """Join segments; without any, the source's own pictures are copied.

        Args:
            segments: in order.
            frame_pts: times of all frames, increasing, in units of the time base.
        """
        av = load_av()
        with (
            disk_errors_named(self.output),
            opened(self.source) as (container, stream),
            av.open(address(self.output), "w") as out,
        ):
            pictures: Iterable[Any] = ()
            metadata = {k: v for k, v in container.metadata.items() if k not in _OF_THE_FILE}
            if segments:
                said = f"faces restored by dr2pipe {dr2pipe.__version__}"
                metadata["comment"] = "; ".join(filter(None, [metadata.get("comment"), said]))
                added = self._add_pictures(out, stream, segments[0])
                pictures = self._restored_packets(segments, frame_pts, added)
            others, joined = self._add_others(out, container, stream, with_pictures=not segments)
            out.metadata.update(metadata)
            if self.until_s is None:
                out.set_chapters(container.chapters())
            copied = self._copied_packets(container, others, frame_pts[0] * self.info.time_base)
            for _, _, packet in heapq.merge(pictures, copied, key=lambda timed: timed[:2]):
                out.mux_one(packet)
        with open(self.output, "rb") as file:
            os.fsync(file.fileno())
        return joined

    def _add_pictures(self, out: Any, source: Any, segment: Path) -> Any:
        av = load_av()
        with av.open(address(segment)) as container:
            (template,) = container.streams.video
            added = out.add_stream_from_template(template, opaque=True)
        added.time_base = self.info.time_base
        # MKV says this rate; without it, that of the time base, which is in the thousands.
        added.codec_context.framerate = self.info.rate
        if template.codec_context.name == "hevc" and self.output.suffix.lower() != ".mkv":
            added.codec_context.codec_tag = "hvc1"  # players of Apple know no other
        if self.info.display_matrix is not None:
            added.set_display_matrix(self.info.display_matrix)
        aspect = source.sample_aspect_ratio
        if aspect:
            added.codec_context.sample_aspect_ratio = aspect
        for name in ("colorspace", "color_range", "color_trc", "color_primaries"):
            setattr(added.codec_context, name, getattr(source.codec_context, name))
        if self.info.is_full_range:
            added.codec_context.color_range = FULL_RANGE
        if self.info.is_rgb:
            added.codec_context.colorspace = BT709
            added.codec_context.color_range = LIMITED_RANGE
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
            if stream.index == pictures.index and self.info.display_matrix is not None:
                added.set_display_matrix(self.info.display_matrix)
            streams[stream.index] = added
            joined.kept.append(name)
        return streams, joined

    def _held(self, add: Any, name: str) -> Any:
        av = load_av()
        try:
            with disk_errors_named(self.output):
                return add()
        except (ValueError, av.FFmpegError):
            raise ConfigError(
                f"{self.output.suffix} files cannot hold {name}: name the output .mkv"
            ) from None

    def _restored_packets(
        self, segments: list[Path], frame_pts: list[int], stream: Any
    ) -> Iterator[tuple[float, int, Any]]:
        delay, base = max(map(reordering_of, segments)), self.info.time_base
        step = max(1, round(1 / (self.info.rate * base)))
        ahead = [frame_pts[0] - step * (delay - i) for i in range(delay)]
        number = 0
        for segment in segments:
            first = number
            packets = list(packets_of(segment))
            # A segment's file may hold shifted times; the order in which frames are shown stays.
            for packet, rank in zip(packets, ranks_of(packets), strict=True):
                at = first + rank
                packet.pts = frame_pts[at]
                packet.dts = ahead[number] if number < delay else frame_pts[number - delay]
                is_last = at + 1 == len(frame_pts)
                packet.duration = step if is_last else frame_pts[at + 1] - frame_pts[at]
                packet.stream, packet.time_base = stream, base
                yield float(packet.dts * base), 0, packet
                number += 1

    def _copied_packets(
        self, container: Any, streams: dict[int, Any], first_s: Fraction
    ) -> Iterator[tuple[float, int, Any]]:
        if not streams:
            return
        latest = 0.0
        for packet in with_dts(container, [container.streams[index] for index in streams]):
            time_s = float(packet.dts * packet.time_base)
            if self.until_s is not None and time_s >= float(first_s) + self.until_s:
                continue
            latest = max(latest, time_s)
            index = packet.stream.index
            packet.stream = streams[index]
            yield latest, 1 + index, packet
