"""From a file's bytes to its samples, by what the file's own tags say of them.

8-bit files are Pillow's; 16-bit colour, which Pillow lacks, is OpenCV's. Samples stay in the
colour space of the file; :mod:`dr2pipe.core.images.colour` knows what they mean.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from dr2pipe.core.errors import PictureError

Levels = npt.NDArray[Any]  # uint8 or uint16

# TIFF tags (TIFF 6.0, appendix A).
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_STRIP_OFFSETS, _SAMPLES, _ROWS_PER_STRIP, _STRIP_BYTES, _PLANAR = 273, 277, 278, 279, 284
_PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES = 317, 322, 323, 324, 325
_EXTRA_SAMPLES, _SAMPLE_FORMAT = 338, 339
_LAYOUT = (
    _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _STRIP_OFFSETS, _SAMPLES,
    _ROWS_PER_STRIP, _STRIP_BYTES, _PLANAR, _PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS,
    _TILE_BYTES, _EXTRA_SAMPLES,
)  # fmt: skip
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
_ASSOCIATED_ALPHA, _UNASSOCIATED_ALPHA = 1, 2
_CHUNKY, _PLANES, _UNSIGNED = 1, 2, 1
_GREY_MODES = ("1", "L", "LA", "La")


@dataclass
class Samples:
    """Decoded samples of a file.

    Attributes:
        levels: (H,W) grey or (H,W,3) RGB, uint8 or uint16, in the file's own colour space.
        alpha: (H,W) of the same type, unassociated; None where the file has no transparency.
        is_upright: whether they are turned already as the file's orientation says.
    """

    levels: Levels
    alpha: Levels | None = None
    is_upright: bool = False


def read_samples(image: Image.Image, data: bytes) -> Samples:
    """The samples of an opened file of RGB, grey or palette colours.

    Args:
        image: at the wanted frame.
        data: the file's bytes; empty for a picture whose file is not at hand.

    Raises:
        PictureError: a kind of samples that is not supported.
    """
    if image.mode in ("F", "I"):
        raise PictureError("floating-point and 32-bit pictures are not supported")
    if data and isinstance(image, TiffImageFile) and 16 in _tag(image, _BITS, (8,)):
        return _tiff16(image, data)
    samples = _loaded(image, data)
    samples.is_upright = isinstance(image, TiffImageFile)  # Pillow turns these, and no others
    return samples


def _loaded(image: Image.Image, data: bytes) -> Samples:
    image.load()  # damaged samples are found here, before anything else reads them
    if data and image.format == "PNG" and data[24] == 16:  # bit depth; 25 is the colour type
        return _png16(image, data)
    if image.mode.startswith("I;16"):
        levels = _native(np.asarray(image))
        bits = _tag(image, _BITS, (16,))[0] if isinstance(image, TiffImageFile) else 16
        if bits == 16:
            return Samples(levels)
        top = (1 << bits) - 1  # Pillow gives the 12 bits of a TIFF file as they are
        return Samples(((levels.astype(np.uint32) * 65535 + top // 2) // top).astype(np.uint16))
    if image.mode in _GREY_MODES:
        if image.mode in ("LA", "La") or "transparency" in image.info:
            pair = np.asarray(image.convert("LA"))
            return Samples(pair[..., 0], pair[..., 1])
        return Samples(np.asarray(image.convert("L")))
    if "transparency" in image.info or image.mode in ("PA", "RGBA", "RGBa"):
        pixels = np.asarray(image.convert("RGBA"))
        if isinstance(image, TiffImageFile) and not _tag(image, _EXTRA_SAMPLES, ()):
            return Samples(pixels[..., :3])  # a fourth sample that nothing calls transparency
        return Samples(pixels[..., :3], pixels[..., 3])
    return Samples(np.asarray(image.convert("RGB")))


def stored_bits(image: Image.Image, data: bytes) -> int:
    """Bits of a sample in a JPEG 2000 or AVIF file, of which Pillow gives 8; 8 for other kinds."""
    if image.format == "JPEG2000":
        start, skipped = data.find(b"\xff\x4f\xff\x51"), 42  # its codestream; Ssiz (T.800, A.5.1)
    elif image.format in ("AVIF", "HEIF"):
        start, skipped = data.find(b"pixi"), 9  # the bits of the first channel (HEIF, 6.5.6)
    else:
        return 8
    bits = data[start + skipped : start + skipped + 1] if start >= 0 else b""
    return 8 if not bits else (bits[0] & 0x7F) + (image.format == "JPEG2000")


def _native(levels: Levels) -> Levels:
    return levels.astype(np.uint16) if levels.dtype != np.uint8 else levels


def _png16(image: Image.Image, data: bytes) -> Samples:
    is_grey = data[25] in (0, 4)
    samples = Samples(_native(np.asarray(image))) if data[25] == 0 else _split(_by_opencv(data))
    if is_grey and samples.levels.ndim == 3:  # OpenCV has no grey with transparency
        samples.levels = np.ascontiguousarray(samples.levels[..., 0])
    key = image.info.get("transparency")  # one colour that is transparent
    if key is not None and data[25] in (0, 2):
        same = samples.levels == np.asarray(key, np.uint16)
        hidden = same if samples.levels.ndim == 2 else same.all(axis=2)
        samples.alpha = np.where(hidden, np.uint16(0), np.uint16(65535))
    return samples


def _by_opencv(data: bytes) -> Levels:
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        pixels = None
    if pixels is None or pixels.dtype != np.uint16:
        raise PictureError("its kind of 16-bit samples is not supported")
    return pixels


def _split(pixels: Levels) -> Samples:
    """OpenCV's order is BGR."""
    if pixels.ndim == 2:
        return Samples(pixels)
    alpha = pixels[..., 3] if pixels.shape[2] == 4 else None
    return Samples(np.ascontiguousarray(pixels[..., 2::-1]), alpha)


# -- TIFF --------------------------------------------------------------------------------------


def _tag(image: Image.Image, tag: int, default: tuple[int, ...]) -> tuple[int, ...]:
    assert isinstance(image, TiffImageFile)
    value = image.tag_v2.get(tag, default)
    return tuple(value) if isinstance(value, tuple) else (value,)


def _tiff16(image: Image.Image, data: bytes) -> Samples:
    photometric = _tag(image, _PHOTOMETRIC, (_BLACK_IS_ZERO,))[0]
    count = _tag(image, _SAMPLES, (1,))[0]
    extra = _tag(image, _EXTRA_SAMPLES, ())
    if set(_tag(image, _BITS, (1,))) != {16} or set(_tag(image, _SAMPLE_FORMAT, (_UNSIGNED,))) != {
        _UNSIGNED
    }:
        raise PictureError("its kind of 16-bit samples is not supported")
    colours = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3}.get(photometric)
    if colours is None or count < colours:
        raise PictureError(f"16-bit TIFF of this kind (photometric {photometric}) is not supported")
    if count == 1:
        planes: list[Levels] = [_native(np.asarray(image))]
    elif _tag(image, _PLANAR, (_CHUNKY,))[0] == _PLANES:
        planes = [_plane(image, data, i) for i in range(count)]
    else:
        page = _page_as_file(image, data)  # without its orientation, which OpenCV would follow
        image.load()  # OpenCV does not tell of all damage
        pixels = _by_opencv(page)
        if pixels.ndim != 3 or pixels.shape[2] != count:
            raise PictureError(f"16-bit TIFF with {count} samples a pixel is not supported")
        order = [2, 1, 0, 3] if count == 4 else [2, 1, 0]
        planes = [pixels[..., i] for i in order]
    levels: Levels = np.stack(planes[:3], axis=-1) if colours == 3 else planes[0]
    if photometric == _WHITE_IS_ZERO:
        levels = 65535 - levels
    # An extra sample is transparency only where the file says so; scanners store infrared there.
    kind = extra[0] if extra and len(planes) > colours else 0
    is_upright = count == 1  # else Pillow has not turned it
    if kind not in (_ASSOCIATED_ALPHA, _UNASSOCIATED_ALPHA):
        return Samples(levels, is_upright=is_upright)
    alpha = planes[colours]
    if kind == _ASSOCIATED_ALPHA:
        levels = _divided(levels, alpha)
    return Samples(levels, alpha, is_upright=is_upright)


def _divided(levels: Levels, alpha: Levels) -> Levels:
    """Colours that were stored multiplied by their opacity."""
    share = np.maximum(alpha, 1).astype(np.float32) / 65535
    plain = levels / (share if levels.ndim == 2 else share[..., None])
    return np.clip(np.round(plain), 0, 65535).astype(np.uint16)


def _plane(image: Image.Image, data: bytes, index: int) -> Levels:
    """One sample of all pixels of a TIFF file that stores its samples in separate planes.

    Pillow reads it as the grey picture that it is, once a directory says so.
    """
    tiled = bool(_tag(image, _TILE_OFFSETS, ()))
    offsets_tag, bytes_tag = (
        (_TILE_OFFSETS, _TILE_BYTES) if tiled else (_STRIP_OFFSETS, _STRIP_BYTES)
    )
    offsets, sizes = _tag(image, offsets_tag, ()), _tag(image, bytes_tag, ())
    parts = len(offsets) // _tag(image, _SAMPLES, (1,))[0]
    own = slice(index * parts, (index + 1) * parts)
    changed = {
        _BITS: (16,),
        _PHOTOMETRIC: (_BLACK_IS_ZERO,),
        _SAMPLES: (1,),
        _PLANAR: (_CHUNKY,),
        _EXTRA_SAMPLES: (),
        offsets_tag: offsets[own],
        bytes_tag: sizes[own],
    }
    with Image.open(io.BytesIO(_page_as_file(image, data, changed))) as plane:
        return _native(np.asarray(plane))


def _page_as_file(
    image: Image.Image, data: bytes, changed: dict[int, tuple[int, ...]] | None = None
) -> bytes:
    """A TIFF file, never a BigTIFF one, whose first picture is the opened page.

    Args:
        image: at the page.
        data: the bytes of its file.
        changed: tags with other values than those of the page.
    """
    order = "<" if data[:2] == b"II" else ">"
    entries = {tag: _tag(image, tag, ()) for tag in _LAYOUT} | (changed or {})
    entries = {tag: values for tag, values in entries.items() if values}
    body = bytearray(data)
    body[:4] = b"II*\0" if order == "<" else b"MM\0*"
    body += bytes(len(body) % 2)
    start = len(body)
    body += struct.pack(order + "H", len(entries)) + bytes(12 * len(entries) + 4)
    for i, (tag, values) in enumerate(sorted(entries.items())):
        packed = struct.pack(f"{order}{len(values)}I", *values)
        if len(packed) > 4:
            packed, place = struct.pack(order + "I", len(body)), packed
            body += place
        struct.pack_into(order + "HHI", body, start + 2 + 12 * i, tag, 4, len(values))
        body[start + 2 + 12 * i + 8 : start + 2 + 12 * i + 12] = packed
    struct.pack_into(order + "I", body, 4, start)
    return bytes(body)


# -- transparency ------------------------------------------------------------------------------


def fill_transparent(levels: Levels, alpha: Levels) -> Levels:
    """Levels whose fully transparent pixels have the colour of the nearest others.

    What a program left under full transparency was never meant to be seen.
    """
    hidden = alpha == 0
    if not hidden.any() or hidden.all():
        return levels
    _, labels = cv2.distanceTransformWithLabels(
        hidden.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    colour_of = np.zeros((int(labels.max()) + 1, *levels.shape[2:]), levels.dtype)
    colour_of[labels[~hidden]] = levels[~hidden]
    filled = levels.copy()
    filled[hidden] = colour_of[labels[hidden]]
    return filled
