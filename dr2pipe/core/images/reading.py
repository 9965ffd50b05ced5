"""Picture files, decoded: the one reader of the package.

A file becomes a :class:`Picture`: upright sRGB of 8 bits, which every network and measure sees,
and whatever its result has to keep.
"""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError

from dr2pipe.core import files
from dr2pipe.core.errors import PictureError, TooManyPixelsError, UnreadableFileError
from dr2pipe.core.images import colour
from dr2pipe.core.images.arrays import Pixels, resize_pixels, to_tensor
from dr2pipe.core.images.contrast import Stretch, find_stretch
from dr2pipe.core.images.jpeg import JpegTables, jpeg_tables
from dr2pipe.core.images.metadata import Metadata, read_metadata
from dr2pipe.core.images.own_space import OwnSpace, reduced, space_of_file
from dr2pipe.core.images.samples import Samples, fill_transparent, read_samples, stored_bits
from dr2pipe.core.images.tint import Tint, find_tint, to_grey

MAX_PIXELS = 64_000_000
MAX_RESULT_PIXELS = 178_000_000  # Pillow decodes no more
MAX_FILE_BYTES = 1 << 29
MIN_SIDE_PX = 8
MAX_ASPECT = 4.0
# The first bytes of PNG, JPEG, WebP and BMP files, and of TIFF.
_SIGNATURES = (b"\x89PNG", b"\xff\xd8", b"RIFF", b"BM")
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# How the brands of videos in the format of MP4 begin.
_VIDEO_BRANDS = (b"iso", b"mp4", b"avc1", b"qt  ", b"M4V", b"3g", b"dash", b"MSNV")
# Several threads decode at once, but only one of them a picture of more pixels than this.
_LARGE_PIXELS = 4_000_000
_LARGE_DECODE = threading.Lock()
# How whole files end, but for what some programs append.
_ENDINGS, _TRAILING_BYTES = {"PNG": b"IEND", "JPEG": b"\xff\xd9"}, 1 << 16


@dataclass
class Picture:
    """A decoded picture.

    Attributes:
        pixels: (H,W,3) uint8 sRGB, upright. Fully transparent pixels have the colour of the
            nearest others.
        alpha: (H,W) uint8 or uint16, or None where all is opaque.
        bits: 8 or 16, of the file's samples.
        own: the samples in the file's own colour space; None unless it was asked for.
        profile: the ICC profile that belongs to ``pixels``: sRGB's where they were converted
            from another space, that of the file where it is sRGB, else None.
        jpeg: how a JPEG file was compressed; None for other kinds.
        tint: the colours of a monochrome picture, if they were set aside.
        stretch: what was done to the levels of a dark or pale picture, if anything was.
        metadata: what the result should carry.
        sha256: hex digest of the file's bytes.
        warnings: what a reader of the manifest should know.
    """

    pixels: Pixels
    alpha: npt.NDArray[Any] | None = None
    bits: int = 8
    own: OwnSpace | None = None
    profile: bytes | None = None
    jpeg: JpegTables | None = None
    tint: Tint | None = None
    stretch: Stretch | None = None
    metadata: Metadata = field(default_factory=Metadata)
    sha256: str = ""
    warnings: list[str] = field(default_factory=list)

    def set_tint_aside(self) -> None:
        """Leave the luma alone in the pixels of a monochrome picture, and its colours in ``tint``."""
        self.tint = find_tint(self.pixels)
        if self.tint is not None:
            self.pixels = to_grey(self.pixels)

    def stretch_contrast(self) -> None:
        """Bring a dark, hazy or faded picture to the usual range of levels, see ``contrast``.

        Call it before :meth:`set_tint_aside`.
        """
        self.stretch = find_stretch(self.pixels)
        if self.stretch is None:
            return
        self.pixels = np.asarray(self.stretch.apply(self.pixels), np.uint8)
        own = self.own
        if own is None:
            return
        levels = self.stretch.apply(own.to_srgb(own.levels))
        if own.is_other_than_srgb:
            rgb = levels if levels.ndim == 3 else np.repeat(levels[..., None], 3, axis=2)
            levels = own.from_srgb(rgb)
        own.levels = levels

    def resized(self, size: int) -> torch.Tensor:
        """The picture as (1,3,size,size) float32 in [-1,1]; the aspect ratio is not kept.

        Bicubic with antialiasing on 8-bit values, as DR2 prepares its input files.
        """
        # Another large picture is not decoded meanwhile: both together would need much memory.
        with _turn_of_large(self.pixels.size // 3):
            return to_tensor(resize_pixels(self.pixels, (size, size)))


def read_file(path: str | Path, *, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """The bytes of a regular file.

    Raises:
        PictureError: a link to nowhere, a folder, a pipe or device, an empty file, or one of
            more than ``max_bytes``.
    """
    try:
        data = files.read_regular(path, max_bytes=max_bytes)
    except UnreadableFileError as error:
        raise PictureError(error.reason) from None
    if not data:
        raise PictureError("the file is empty")
    return data


def read_image(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode a file; the header is checked before any pixel is.

    Raises:
        PictureError: not a picture, truncated, more than ``max_pixels``, too small or too
            narrow to hold a face, or of an unsupported kind.
    """
    return decode_image(read_file(path), max_pixels=max_pixels)


def decode_result(data: bytes, *, keep_own: bool = False) -> Picture:
    """As :func:`decode_image`, for what a run made: of any shape, and of up to 178 million pixels."""
    return decode_image(data, max_pixels=MAX_RESULT_PIXELS, keep_own=keep_own, whole_photo=True)


def check_file(path: str | Path, *, is_face: bool = True) -> tuple[int, int]:
    """Width and height of a picture file, which is not decoded.

    Args:
        path: the file.
        is_face: it is to hold one face; else it may have any shape, and be as large as a result.

    Raises:
        PictureError: its header or its end shows that it is no usable picture.
    """
    data = read_file(path)
    try:
        with Image.open(io.BytesIO(data)) as image:
            if is_face:
                _check_shape(*image.size, MAX_PIXELS)
            else:
                _check_pixels(*image.size, MAX_RESULT_PIXELS)
            size, ending = image.size, _ENDINGS.get(image.format or "")
    except PictureError:
        raise
    except Exception:
        decode = decode_image if is_face else decode_result
        height, width = decode(data).pixels.shape[:2]  # says what is wrong
        return width, height
    if ending is not None and ending not in data[-_TRAILING_BYTES:]:
        raise PictureError("truncated or damaged: its end is missing")
    return size


def hash_bytes(data: bytes) -> str:
    """sha256 of a file's bytes, as hex digits."""
    return hashlib.sha256(data).hexdigest()


def count_pages(data: bytes) -> int:
    """Pages or frames of a picture file; 1 where it cannot be told."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return int(getattr(image, "n_frames", 1))
    except Exception:  # decoding says what is wrong with it
        return 1


def decode_image(
    data: bytes,
    *,
    max_pixels: int = MAX_PIXELS,
    page: int | None = None,
    keep_own: bool = False,
    whole_photo: bool = False,
    sha256: str | None = None,
) -> Picture:
    """As :func:`read_image`, from the bytes of a file.

    Args:
        page: the page or frame to take, from 0; None takes the first and warns of others.
        keep_own: keep the samples in the file's own colour space too, see ``Picture.own``.
        whole_photo: the picture may have any shape, since only its faces are looked at.
        sha256: hex digest of ``data``, where it is known.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            check = _check_pixels if whole_photo else _check_shape
            check(width, height, max_pixels)
            with _turn_of_large(width * height):
                picture = _decode(image, data, page, max_pixels, keep_own, check)
    except Image.DecompressionBombError:
        raise TooManyPixelsError("the header says more pixels than Pillow decodes safely") from None
    except UnidentifiedImageError:
        if _is_video(data):
            raise PictureError("a video: dr2pipe video takes it") from None
        if data.startswith(_TIFF_SIGNATURES):
            raise PictureError("damaged, or a kind of TIFF that is not supported") from None
        if data.startswith(_SIGNATURES):
            raise PictureError("truncated or damaged: its header is incomplete") from None
        raise PictureError("not an image file, whatever its name says") from None
    except PictureError:
        raise
    except MemoryError:
        raise PictureError("not enough memory to decode it") from None
    # Decoders raise many kinds (OSError, SyntaxError, struct.error, ...) on damaged data.
    except Exception as error:
        raise PictureError(f"truncated or damaged: {error}") from error
    picture.sha256 = sha256 or hash_bytes(data)
    return picture


def picture_of(image: Image.Image, *, keep_own: bool = False, whole_photo: bool = False) -> Picture:
    """A picture that Pillow has opened, or that a program has made: upright sRGB of 8 bits.

    What the picture says of itself counts as in a file: its orientation, its colour profile, its
    transparency. ``keep_own`` and ``whole_photo`` are those of :func:`decode_image`.

    Raises:
        PictureError: it cannot be decoded, or is of an unsupported kind.
    """
    if not isinstance(image, Image.Image):
        raise PictureError(f"expected a Pillow picture, not {type(image).__name__}")
    name = getattr(image, "filename", "")
    is_untouched = bool(getattr(image, "tile", None))  # opened, and not loaded yet
    if is_untouched and name and os.path.isfile(name):
        data = read_file(name)
        return decode_image(data, page=image.tell(), keep_own=keep_own, whole_photo=whole_photo)
    try:
        image = image.copy() if image.format is None else image
        return _decode(image, b"", 0, MAX_PIXELS, keep_own, _check_pixels)
    except PictureError:
        raise
    except Exception as error:
        raise PictureError(f"truncated or damaged: {error}") from error


def _is_video(data: bytes) -> bool:
    """Whether a file that Pillow does not know begins as MP4, Matroska or AVI do."""
    is_mp4 = data[4:8] == b"ftyp" and data[8:12].startswith(_VIDEO_BRANDS)
    return is_mp4 or data.startswith(b"\x1aE\xdf\xa3") or data[8:12] == b"AVI "


def _turn_of_large(pixels: int) -> AbstractContextManager[Any]:
    return _LARGE_DECODE if pixels > _LARGE_PIXELS else nullcontext()


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        allowed = f"more than the {max_pixels / 1e6:.0f} million pixels allowed (max_pixels)"
        raise TooManyPixelsError(f"the header says {width}x{height} pixels, {allowed}")


def _check_shape(width: int, height: int, max_pixels: int) -> None:
    _check_pixels(width, height, max_pixels)
    if min(width, height) < MIN_SIDE_PX:
        raise PictureError(f"{width}x{height} pixels are too few (at least {MIN_SIDE_PX} a side)")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise PictureError(f"{width}x{height} is too narrow for a face (at most 1:{MAX_ASPECT:g})")


def _decode(
    image: Image.Image,
    data: bytes,
    page: int | None,
    max_pixels: int,
    keep_own: bool,
    check: Callable[[int, int, int], None],
) -> Picture:
    warnings: list[str] = []
    pages = int(getattr(image, "n_frames", 1))
    if page:
        image.seek(page)
        check(*image.size, max_pixels)
    elif page is None and pages > 1:
        warnings.append(f"only the first of {pages} pages or frames was taken (--pages all)")
    if image.mode in ("CMYK", "LAB"):
        samples = Samples(_converted(image, warnings), is_upright=image.format == "TIFF")
        own_space = OwnSpace(profile=colour.srgb_profile())
    else:
        samples = read_samples(image, data)
        own_space = OwnSpace()
        if samples.levels.dtype == np.uint8 and (bits := stored_bits(image, data)) > 8:
            warnings.append(f"8 of its {bits} bits were taken: {image.format} is read so")
    metadata = read_metadata(image, data)  # after the samples: text may stand behind them
    if metadata.left_out:
        warnings.append(f"not carried into the result: {', '.join(metadata.left_out)}")
    if own_space.profile is None:
        own_space = space_of_file(image, data, metadata, samples, warnings)
    levels, alpha = samples.levels, samples.alpha
    top = np.iinfo(levels.dtype).max
    if alpha is not None and alpha.min() == top:
        alpha = None
    if metadata.orientation != 1 and not samples.is_upright:
        levels = _upright(levels, metadata.orientation)
        alpha = None if alpha is None else _upright(alpha, metadata.orientation)
    own_space.levels = levels
    visible = levels if alpha is None else fill_transparent(levels, alpha)
    if alpha is not None and alpha.max() == 0:
        warnings.append("the picture is fully transparent")
    pixels = reduced(own_space.to_srgb(visible))
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    is_converted = own_space.is_other_than_srgb
    return Picture(
        np.ascontiguousarray(pixels),
        alpha,
        bits=8 if levels.dtype == np.uint8 else 16,
        own=own_space if keep_own else None,
        profile=colour.srgb_profile() if is_converted else own_space.rgb_profile,
        jpeg=jpeg_tables(image),
        metadata=metadata,
        warnings=warnings,
    )


def _converted(image: Image.Image, warnings: list[str]) -> Pixels:
    """A picture of inks or of Lab as sRGB."""
    profile = image.info.get("icc_profile")
    try:
        if image.mode == "LAB":
            return np.asarray(colour.lab_to_srgb(image))
        if profile and colour.profile_space(profile) == "CMYK":
            return np.asarray(colour.convert(image, profile, None))
    except colour.UnusableProfileError as error:
        warnings.append(str(error))
    warnings.append(f"{image.mode} converted to sRGB without a colour profile")
    return np.asarray(image.convert("RGB"))


def _upright(levels: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """What ``PIL.ImageOps.exif_transpose`` does, for 8 and 16 bits."""
    transpose = orientation in (5, 6, 7, 8)
    turned = levels.swapaxes(0, 1) if transpose else levels
    if orientation in (3, 4, 7, 8):
        turned = turned[::-1]
    if orientation in (2, 3, 6, 7):
        turned = turned[:, ::-1]
    return np.ascontiguousarray(turned)
