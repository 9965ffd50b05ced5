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
    """

    levels: Levels
    alpha: Levels | None = None


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
    image.load()  # damaged samples are found here, before anything else reads them
    if data and image.format == "PNG" and data[24] == 16:  # bit depth; 25 is the colour type
        return _png16(image, data)
    if image.mode.startswith("I;16"):
        return Samples(_native(np.asarray(image)))
    if image.mode in _GREY_MODES:
        if image.mode in ("LA", "La") or "transparency" in image.info:
            pair = np.asarray(image.convert("LA"))
            return Samples(pair[..., 0], pair[..., 1])
        return Samples(np.asarray(image.convert("L")))
    if "transparency" in image.info or image.mode in ("PA", "RGBA", "RGBa"):
        pixels = np.asarray(image.convert("RGBA"))
        return Samples(pixels[..., :3], pixels[..., 3])
    return Samples(np.asarray(image.convert("RGB")))


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
        levels: Levels = _native(np.asarray(image))
        planes = [levels]
    elif _tag(image, _PLANAR, (_CHUNKY,))[0] == _PLANES:
        planes = [_plane(image, data, i) for i in range(count)]
    else:
        image.load()  # OpenCV does not tell of all damage
        if image.tell() > 0:
            raise PictureError("16-bit colour of another page than the first is not supported")
        pixels = _by_opencv(data)
        if pixels.ndim != 3 or pixels.shape[2] != count:
            raise PictureError(f"16-bit TIFF with {count} samples a pixel is not supported")
        order = [2, 1, 0, 3] if count == 4 else [2, 1, 0]
        planes = [pixels[..., i] for i in order]
    levels = np.stack(planes[:3], axis=-1) if colours == 3 else planes[0]
    if photometric == _WHITE_IS_ZERO:
        levels = 65535 - levels
    # An extra sample is transparency only where the file says so; scanners store infrared there.
    kind = extra[0] if extra and len(planes) > colours else 0
    if kind not in (_ASSOCIATED_ALPHA, _UNASSOCIATED_ALPHA):
        return Samples(levels)
    alpha = planes[colours]
    if kind == _ASSOCIATED_ALPHA:
        levels = _divided(levels, alpha)
    return Samples(levels, alpha)


def _divided(levels: Levels, alpha: Levels) -> Levels:
    """Colours that were stored multiplied by their opacity."""
    share = np.maximum(alpha, 1).astype(np.float32) / 65535
    plain = levels / (share if levels.ndim == 2 else share[..., None])
    return np.clip(np.round(plain), 0, 65535).astype(np.uint16)


def _plane(image: Image.Image, data: bytes, index: int) -> Levels:
    """One sample of all pixels of a TIFF file that stores its samples in separate planes.

    Pillow reads it as the grey picture that it is, once a directory says so.
    """
    order = "<" if data[:2] == b"II" else ">"
    tiled = bool(_tag(image, _TILE_OFFSETS, ()))
    offsets_tag, bytes_tag = (
        (_TILE_OFFSETS, _TILE_BYTES) if tiled else (_STRIP_OFFSETS, _STRIP_BYTES)
    )
    offsets, sizes = _tag(image, offsets_tag, ()), _tag(image, bytes_tag, ())
    parts = len(offsets) // _tag(image, _SAMPLES, (1,))[0]
    own = slice(index * parts, (index + 1) * parts)
    entries: dict[int, tuple[int, ...]] = {
        _BITS: (16,),
        _PHOTOMETRIC: (_BLACK_IS_ZERO,),
        _SAMPLES: (1,),
        _PLANAR: (_CHUNKY,),
        offsets_tag: offsets[own],
        bytes_tag: sizes[own],
    }
    for tag in (
        _WIDTH, _HEIGHT, _COMPRESSION, _FILL_ORDER, _ROWS_PER_STRIP, _PREDICTOR, _TILE_WIDTH,
        _TILE_HEIGHT,
    ):  # fmt: skip
        if found := _tag(image, tag, ()):
            entries[tag] = found
    body = bytearray(data)
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
    with Image.open(io.BytesIO(bytes(body))) as plane:
        return _native(np.asarray(plane))


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
