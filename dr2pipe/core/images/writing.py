"""Picture files with all that belongs to a picture: PNG, or JPEG and WebP where those are wished."""

from __future__ import annotations

import binascii
import io
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from dr2pipe.core import files
from dr2pipe.core.errors import ConfigError, PictureError
from dr2pipe.core.images.colour import srgb_profile
from dr2pipe.core.images.jpeg import JpegTables
from dr2pipe.core.images.metadata import COMMENT, OWN_TEXT, Metadata
from dr2pipe.core.images.provenance import SOURCE_TYPE, declare_restored

# Compression levels of PNG files, and the JPEG quality of pictures that were no JPEG files.
FASTEST_COMPRESSION, DEFAULT_COMPRESSION, BEST_COMPRESSION = 0, 1, 9
DEFAULT_QUALITY = 95
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # by the number of channels
_AVERAGE = 3  # the filter that predicts a byte from those on its left and above
_BAND_BYTES = 1 << 20
_METRES_PER_INCH = 0.0254
_LINE = 36  # bytes per line of an IPTC block in hexadecimal

# Kinds of files other than PNG, by the ending of their names.
KINDS = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG"),
    ".webp": "WEBP",
}

_MOST_PX = {"JPEG": 65535, "WEBP": 16383}
# How results other than PNG say that they are ours.
_MARK, _WEBP_MARK = OWN_TEXT.encode() + b"\0", b"dr2p"
_SEGMENT_BYTES = 60_000  # of 65,533 that a JPEG segment holds

Chunk = tuple[bytes, bytes]


def write_png(path: str | Path, pixels: npt.NDArray[Any]) -> None:
    """Write (H,W) grey or (H,W,3) RGB, uint8 or uint16, as a PNG file."""
    files.write_bytes(path, encode_png(pixels))


def encode_png(
    pixels: npt.NDArray[Any],
    *,
    alpha: npt.NDArray[Any] | None = None,
    profile: bytes | None = None,
    colour_chunks: Iterable[Chunk] = (),
    metadata: Metadata | None = None,
    text: dict[str, str] | None = None,
    compression: int = DEFAULT_COMPRESSION,
) -> bytes:
    """The bytes of a PNG file.

    Args:
        pixels: (H,W) grey or (H,W,3) RGB, uint8 or uint16.
        alpha: (H,W), reduced or widened to the type of ``pixels``.
        profile: ICC profile of the pixels.
        colour_chunks: PNG chunks that say their colour space where no profile does.
        metadata: what is carried from the input.
        text: further text entries (iTXt).
        compression: from 0, not at all, over 1, fast, to 9, small and slow.
    """
    chunks = list(colour_chunks)
    if profile is not None:
        chunks = [(b"iCCP", b"ICC profile\0\0" + zlib.compress(profile))]
    height, width = pixels.shape[:2]
    chunks += _metadata_chunks(metadata or Metadata(), width, height)
    chunks += [_text_chunk(key, value) for key, value in (text or {}).items()]
    samples = _with_alpha(pixels, alpha)
    bits, channels = 8 * samples.dtype.itemsize, samples.shape[2]
    header = struct.pack(">IIBBBBB", width, height, bits, _COLOUR_TYPES[channels], 0, 0, 0)
    data = ((b"IDAT", part) for part in _compressed(samples, compression))
    packed = map(_packed, ((b"IHDR", header), *chunks, *data, (b"IEND", b"")))
    return _SIGNATURE + b"".join(packed)


def encode_picture(
    name: str,
    pixels: npt.NDArray[Any],
    *,
    alpha: npt.NDArray[Any] | None = None,
    profile: bytes | None = None,
    colour_chunks: Iterable[Chunk] = (),
    metadata: Metadata | None = None,
    text: dict[str, str] | None = None,
    jpeg: JpegTables | None = None,
    compression: int = DEFAULT_COMPRESSION,
    quality: int | None = None,
) -> bytes:
    """A file of the kind that the ending of ``name`` says: JPEG, WebP (lossless), else PNG.

    The other arguments are those of :func:`write_png`. JPEG and WebP have 8 bits.

    Args:
        jpeg: the tables of the input, which a JPEG file takes over; None: quality 95.
        compression: of PNG files, 0..9.
        quality: 1..100 of JPEG files; None: by ``jpeg``.

    Raises:
        PictureError: a kind of file that cannot hold the picture.
    """
    kind = KINDS.get(Path(name).suffix.lower(), "PNG")
    if kind == "PNG":
        return encode_png(
            pixels,
            alpha=alpha,
            profile=profile,
            colour_chunks=colour_chunks,
            metadata=metadata,
            text=text,
            compression=compression,
        )
    image = Image.fromarray(np.ascontiguousarray(_as_type(pixels, np.dtype(np.uint8))))
    metadata, (height, width) = metadata or Metadata(), pixels.shape[:2]
    check_kind(name, width, height, has_alpha=alpha is not None)
    mark = (text or {}).get(OWN_TEXT, "").encode()
    options: dict[str, Any] = {"xmp": metadata.xmp_for(width, height), "icc_profile": profile}
    if exif := metadata.exif_for(width, height):
        options["exif"] = b"Exif\0\0" + exif if kind == "JPEG" else exif
    if kind == "JPEG":
        for name, block in [("xmp", options["xmp"]), ("exif", options.get("exif"))]:
            if block is not None and len(block) > _SEGMENT_BYTES:
                options[name] = declare_restored(None) if SOURCE_TYPE in block else None
    if kind == "JPEG":
        options |= {"dpi": metadata.dpi, "comment": metadata.text.get(COMMENT)}
        options |= _jpeg_options(jpeg, quality, is_grey=image.mode == "L")
        options["extra"] = _segment(0xE4, _MARK + mark[:_SEGMENT_BYTES])
        if metadata.iptc is not None:
            resource = _iptc_resource(metadata.iptc)
            options["extra"] += _segment(0xED, b"Photoshop 3.0\0" + resource)
    else:
        if alpha is not None:
            image.putalpha(Image.fromarray(_as_type(alpha, np.dtype(np.uint8))))
        # With a profile the file has the extended layout, which may have chunks of others.
        options |= {"lossless": True, "exact": True, "icc_profile": profile or srgb_profile()}
    buffer = io.BytesIO()
    image.save(buffer, kind, **{key: value for key, value in options.items() if value is not None})
    data = buffer.getvalue()
    return data if kind == "JPEG" else _with_chunk(data, _WEBP_MARK, mark)


def check_kind(name: str, width: int, height: int, *, has_alpha: bool) -> None:
    """See that a picture can be written as the kind of file that the ending of ``name`` says.

    Raises:
        PictureError: it cannot; the message names another kind.
    """
    kind = KINDS.get(Path(name).suffix.lower(), "PNG")
    if kind == "JPEG" and has_alpha:
        raise PictureError("JPEG files have no transparency; choose format png or webp")
    most = _MOST_PX.get(kind)
    if most is not None and max(width, height) > most:
        raise PictureError(
            f"{kind} files have at most {most} pixels a side, not {width}x{height}; choose png"
        )


def read_mark(path: str | Path) -> str | None:
    """The text of ours in a picture that one of the functions above wrote; None without one.

    It stands in the PNG text ``dr2pipe``, in an APP4 segment of JPEG files, and in a chunk
    ``dr2p`` at the end of WebP files.
    """
    found: str | bytes | None = None
    try:
        with Image.open(path) as picture:
            if picture.format == "JPEG":
                segments = (data for _, data in getattr(picture, "applist", ()))
                marks = (data[len(_MARK) :] for data in segments if data.startswith(_MARK))
                found = next(marks, None)
            elif picture.format != "WEBP":
                found = getattr(picture, "text", {}).get(OWN_TEXT)
            else:
                data = files.read_regular(path, max_bytes=1 << 29)
                chunks = {name: data[start : start + n] for name, start, n in _riff_chunks(data)}
                found = chunks.get(_WEBP_MARK)
    except Exception:  # decoders raise many kinds on what is no picture
        return None
    return found.decode("utf-8", "replace") if isinstance(found, bytes) else found


def is_marked(path: str | Path) -> bool:
    """Whether a file is a picture that one of the functions above wrote with a text of ours."""
    return read_mark(path) is not None


def _segment(marker: int, body: bytes) -> bytes:
    """A segment of a JPEG file."""
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def _with_chunk(data: bytes, name: bytes, body: bytes) -> bytes:
    """A RIFF file with another chunk at its end."""
    chunk = name + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)
    return data[:4] + struct.pack("<I", len(data) - 8 + len(chunk)) + data[8:] + chunk


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, place and size of the chunks of a RIFF file."""
    place = 12
    while place + 8 <= len(data):
        size = int.from_bytes(data[place + 4 : place + 8], "little")
        yield data[place : place + 4], place + 8, size
        place += 8 + size + size % 2


def is_kind(data: bytes, name: str) -> bool:
    """Whether a file's bytes are of the kind that the ending of ``name`` says."""
    first = {"PNG": b"\x89PNG", "JPEG": b"\xff\xd8", "WEBP": b"RIFF"}
    return data.startswith(first[KINDS.get(Path(name).suffix.lower(), "PNG")])


def check_encoding(compression: int, quality: int | None) -> None:
    """See that files can be written so.

    Raises:
        ConfigError: ``compression`` is not in 0..9, or ``quality`` not in 1..100.
    """
    if not FASTEST_COMPRESSION <= compression <= BEST_COMPRESSION:
        raise ConfigError(f"png_compression={compression}: choose 0 (none), 1 (fast) .. 9 (small)")
    if quality is not None and not 1 <= quality <= 100:
        raise ConfigError(f"quality={quality}: choose 1..100")


def _jpeg_options(jpeg: JpegTables | None, quality: int | None, *, is_grey: bool) -> dict[str, Any]:
    if jpeg is None or quality is not None:
        return {"quality": quality or DEFAULT_QUALITY, "subsampling": 0}
    tables = jpeg.quantization[:1] if is_grey else jpeg.quantization
    # A sampling that Pillow has no name for becomes the finest.
    return {"qtables": [list(table) for table in tables], "subsampling": max(0, jpeg.subsampling)}


def _with_alpha(pixels: npt.NDArray[Any], alpha: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
    """(H,W,C) of a type that PNG files have: grey or RGB, and the alpha channel last."""
    samples = pixels if pixels.ndim == 3 else pixels[..., None]
    return samples if alpha is None else np.dstack([samples, _as_type(alpha, pixels.dtype)])


def _compressed(samples: npt.NDArray[Any], compression: int) -> Iterator[bytes]:
    """The data of a PNG file (PNG specification, sections 9 and 10), band by band of rows.

    Every row has the filter "average". With it, level 1 looks for repeated bytes alone, as zlib
    calls it run-length encoding. This measured four times as fast as Pillow's level 4, and files of
    about its size: -3 % to +18 % (docs/performance.md). All of it lets other threads run.
    """
    height, pixel_bytes = len(samples), samples.shape[2] * samples.dtype.itemsize
    row_bytes = samples.shape[1] * pixel_bytes
    strategy = zlib.Z_RLE if compression == 1 else zlib.Z_DEFAULT_STRATEGY
    packer = zlib.compressobj(compression, zlib.DEFLATED, zlib.MAX_WBITS, 9, strategy)
    above = np.zeros((1, row_bytes), np.uint8)
    step = max(1, _BAND_BYTES // row_bytes)
    for first in range(0, height, step):
        band = samples[first : first + step]
        big_endian = np.ascontiguousarray(band, band.dtype.newbyteorder(">"))
        rows = big_endian.view(np.uint8).reshape(len(band), row_bytes)
        up = np.concatenate([above, rows[:-1]])
        left = np.zeros_like(rows)
        left[:, pixel_bytes:] = rows[:, :-pixel_bytes]
        filtered = np.full((len(band), 1 + row_bytes), _AVERAGE, np.uint8)
        # (left + up) // 2 without leaving 8 bits
        np.subtract(rows, (left & up) + ((left ^ up) >> 1), out=filtered[:, 1:])
        above = rows[-1:]
        if part := packer.compress(filtered.data):
            yield part
    yield packer.flush()


def _as_type(levels: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    if levels.dtype == dtype:
        return levels
    if dtype == np.uint16:
        return levels.astype(np.uint16) * 257
    return ((levels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _metadata_chunks(metadata: Metadata, width: int, height: int) -> Iterable[Chunk]:
    if exif := metadata.exif_for(width, height):
        yield b"eXIf", exif
    if metadata.dpi is not None:
        x, y = (round(dpi / _METRES_PER_INCH) for dpi in metadata.dpi)
        yield b"pHYs", struct.pack(">IIB", x, y, 1)
    if xmp := metadata.xmp_for(width, height):
        yield _text_chunk("XML:com.adobe.xmp", xmp.decode("utf-8", "replace"))
    if metadata.iptc is not None:
        yield b"zTXt", b"Raw profile type iptc\0\0" + zlib.compress(_iptc_text(metadata.iptc))
    for key, value in metadata.text.items():
        yield _text_chunk(key, value)


def _iptc_resource(iptc: bytes) -> bytes:
    """IPTC records as Photoshop's block that holds them."""
    return b"8BIM\x04\x04\0\0" + struct.pack(">I", len(iptc)) + iptc + bytes(len(iptc) % 2)


def _iptc_text(iptc: bytes) -> bytes:
    """IPTC records as the hexadecimal text by which PNG files hold them (ImageMagick's way)."""
    resource = _iptc_resource(iptc)
    digits = binascii.hexlify(resource)
    lines = [digits[i : i + 2 * _LINE] for i in range(0, len(digits), 2 * _LINE)]
    return b"\niptc\n%8d\n" % len(resource) + b"\n".join(lines) + b"\n"


def _text_chunk(key: str, value: str) -> Chunk:
    keyword = key.encode("latin-1", "replace")[:79] or b"text"
    return b"iTXt", keyword + b"\0\0\0\0\0" + value.encode("utf-8", "replace")


def _packed(chunk: Chunk) -> bytes:
    name, body = chunk
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
