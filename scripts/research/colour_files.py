"""Picture files in other colour spaces than sRGB, made by formula, and how they look.

Nothing here uses the package's own colours, so that it can be compared with them.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

Curve = float | Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]
Levels = npt.NDArray[Any]  # (H,W) or (H,W,3), uint8 or uint16

_D50_XYZ = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
_D65 = (0.3127, 0.3290)
_SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), _D65)
_TIFF_ICC, _UNDEFINED = 34675, 7


def srgb_decode(encoded: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """SRGB 0..1 as linear light (IEC 61966-2-1)."""
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def srgb_encode(linear: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Linear light as sRGB 0..1."""
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def dot_gain_20(level: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Linear light of ink whose dots of half the paper cover a fifth more of it."""
    ink = 1 - level
    return 1 - (ink + 4 * 0.2 * ink * (1 - ink))


# Red, green, blue and white (x, y), and the curve to linear light.
RGB_SPACES: dict[str, tuple[tuple[tuple[float, float], ...], Curve]] = {
    "display_p3": (((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), _D65), srgb_decode),
    "adobe_rgb": (((0.64, 0.33), (0.21, 0.71), (0.15, 0.06), _D65), 2.2),
    "prophoto": (((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001), (0.3457, 0.3585)), 1.8),
    "linear": (_SRGB, 1.0),
}
GREY_SPACES: dict[str, Curve] = {"gamma18": 1.8, "dot_gain_20": dot_gain_20}


def to_xyz(primaries: tuple[tuple[float, float], ...]) -> npt.NDArray[np.float64]:
    """(3,3) linear RGB to XYZ under D50, by Bradford's adaptation."""
    xyz = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    columns, white = xyz[:, :3], xyz[:, 3]
    scale = (_BRADFORD @ _D50_XYZ) / (_BRADFORD @ white)
    adapt = np.linalg.inv(_BRADFORD) @ np.diag(scale) @ _BRADFORD
    return adapt @ (columns * np.linalg.solve(columns, white))


def appearance(levels: Levels, name: str) -> npt.NDArray[np.float64]:
    """(H,W,3) sRGB 0..255 of what levels of a space show, without rounding."""
    places = levels / np.iinfo(levels.dtype).max
    if name in GREY_SPACES:
        linear = np.repeat(_linear(places, GREY_SPACES[name])[..., None], 3, axis=2)
    else:
        primaries, curve = RGB_SPACES[name]
        matrix = np.linalg.inv(to_xyz(_SRGB)) @ to_xyz(primaries)
        linear = _linear(places, curve) @ matrix.T
    return 255 * srgb_encode(linear)


def levels_of(shown: npt.NDArray[Any], name: str, bits: int) -> Levels:
    """The levels of a space that show sRGB (H,W,3) 0..255, or the green of it where it is grey."""
    top, places = 2**bits - 1, np.linspace(0, 1, 65536)
    linear = srgb_decode(np.asarray(shown, np.float64) / 255)
    if name in GREY_SPACES:
        linear, curve = linear[..., 1], GREY_SPACES[name]
    else:
        primaries, curve = RGB_SPACES[name]
        linear = linear @ np.linalg.inv(np.linalg.inv(to_xyz(_SRGB)) @ to_xyz(primaries)).T
    found = np.interp(np.clip(linear, 0, 1), _linear(places, curve), places)
    return np.round(found * top).astype(np.uint8 if bits == 8 else np.uint16)


def _linear(places: npt.NDArray[np.float64], curve: Curve) -> npt.NDArray[np.float64]:
    return curve(places) if callable(curve) else places**curve


# -- profiles and files ------------------------------------------------------------------------


def profile_of(name: str) -> bytes:
    """The ICC profile of one of the spaces above."""
    if name in GREY_SPACES:
        return grey_profile(GREY_SPACES[name])
    primaries, curve = RGB_SPACES[name]
    columns = {
        key: b"XYZ " + bytes(4) + struct.pack(">3i", *np.round(column * 65536).astype(int))
        for key, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), to_xyz(primaries).T, strict=True)
    }
    curves = dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _curve_tag(curve))
    return _icc(b"RGB ", columns | curves)


def grey_profile(curve: Curve) -> bytes:
    """A profile of grey levels."""
    return _icc(b"GRAY", {b"kTRC": _curve_tag(curve)})


def _curve_tag(curve: Curve) -> bytes:
    """A ``curv`` tag: a gamma, or a table of 1024 points."""
    if not callable(curve):
        return b"curv" + bytes(4) + struct.pack(">IH", 1, round(curve * 256)) + bytes(2)
    points = np.round(curve(np.linspace(0, 1, 1024)) * 65535).astype(">u2")
    return b"curv" + bytes(4) + struct.pack(">I", len(points)) + points.tobytes()


def _icc(kind: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A profile of version 2 (ICC.1:2001-04)."""
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    text = b"desc" + bytes(4) + struct.pack(">I", 2) + b"x\0" + bytes(78)
    tags = {b"desc": text, b"wtpt": white, b"cprt": b"text" + bytes(4) + b"none\0"} | tags
    table, body, place = b"", b"", 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        value += bytes(-len(value) % 4)
        table += name + struct.pack(">2I", place + len(body), len(value))
        body += value
    header = struct.pack(
        ">I4sI4s4s4s12s4s", place + len(body), bytes(4), 0x02400000, b"mntr", kind, b"XYZ ",
        struct.pack(">6H", 2020, 1, 1, 0, 0, 0), b"acsp",
    )  # fmt: skip
    header += bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def encode(levels: Levels, kind: str, profile: bytes | None) -> bytes:
    """A file of the kind ``PNG``, ``JPEG`` (8 bits) or ``TIFF`` with these levels and profile."""
    if levels.dtype == np.uint8:
        buffer = io.BytesIO()
        options: dict[str, Any] = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
        Image.fromarray(levels).save(buffer, kind, icc_profile=profile, **options)
        return buffer.getvalue()
    order = levels if levels.ndim == 2 else levels[..., ::-1]
    ending = {"PNG": ".png", "TIFF": ".tiff"}[kind]
    data = cv2.imencode(ending, np.ascontiguousarray(order))[1].tobytes()
    if profile is None:
        return data
    if kind == "TIFF":
        return _with_tiff_tag(data, _TIFF_ICC, _UNDEFINED, profile)
    return data[:33] + _chunk(b"iCCP", b"x\0\0" + zlib.compress(profile)) + data[33:]


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _with_tiff_tag(data: bytes, number: int, kind: int, value: bytes) -> bytes:
    """A little-endian TIFF file whose directory has one more entry."""
    assert data[:2] == b"II"
    start = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, start)[0]
    entries = [data[start + 2 + 12 * i : start + 14 + 12 * i] for i in range(count)]
    body = bytearray(data + bytes(len(data) % 2))
    entries.append(struct.pack("<HHII", number, kind, len(value), len(body)))
    body += value + bytes(len(value) % 2)
    struct.pack_into("<I", body, 4, len(body))
    body += struct.pack("<H", len(entries)) + b"".join(sorted(entries)) + bytes(4)
    return bytes(body)


def look(data: bytes) -> npt.NDArray[np.float64]:
    """What a colour-managed viewer shows, as sRGB of 8 bits: LittleCMS, relative colorimetric."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        profile = image.info.get("icc_profile")
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        grey = image.mode in ("L", "LA")
        image = image.convert("L" if grey else "RGB")
        if profile:
            srgb = ImageCms.createProfile("sRGB")
            own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            image = ImageCms.profileToProfile(image, own, srgb, 1, "RGB", flags=0x2000)
        return np.asarray(image.convert("RGB")).astype(float)
