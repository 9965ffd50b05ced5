"""What a file's numbers mean as colours: profiles and tags, to sRGB and back.

Networks see sRGB. A picture in another space is converted to sRGB by relative colorimetric
intent with black-point compensation. LittleCMS (Pillow's ImageCms) does this for 8 bits.
Profiles that are a matrix and three curves, and the tags of PNG files, are also computed here,
because ImageCms knows no 16-bit colour: 8 bits of a linear file would leave steps in the shadows.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

Levels = npt.NDArray[Any]  # uint8 or uint16

# Linear sRGB to XYZ under D50, the white of ICC profiles (IEC 61966-2-1, Bradford-adapted).
_SRGB_TO_D50 = np.array(
    [[0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169],
     [0.0139322, 0.0971045, 0.7141733]]
)  # fmt: skip
_D50 = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
_D65_XY = (0.3127, 0.3290)
SRGB_PRIMARIES = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), _D65_XY)
# Primaries and white (x, y) by their number in ITU-T H.273, table 2.
_CICP_PRIMARIES = {
    1: SRGB_PRIMARIES,
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), _D65_XY),
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.314, 0.351)),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), _D65_XY),
}
_ADOBE_RGB_PRIMARIES = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06), _D65_XY)
# Exponents by number in H.273, table 3, and numbers of curves that are taken for sRGB's.
_CICP_GAMMA, _CICP_LIKE_SRGB = {4: 2.2, 5: 2.8, 8: 1.0}, (1, 6, 13, 14, 15)
_SAME_LEVELS = 0.75  # of 255: two spaces that differ less are the same
_CURVE_STEPS = 65536
_ROWS_AT_ONCE = 256


# Bytes of an ICC header that tell when it was made: six numbers (ICC.1:2022, section 7.2).
_CREATED, _CREATION_TIME = slice(24, 36), struct.pack(">6H", 2026, 1, 1, 0, 0, 0)


class UnusableProfileError(ValueError):
    """A profile or tag that is damaged, or of a kind that cannot be used."""


def srgb_profile() -> bytes:
    """The bytes of an ICC profile for sRGB, always the same ones."""
    made = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # LittleCMS writes the time of creation, by which files of one run would differ.
    return made[: _CREATED.start] + _CREATION_TIME + made[_CREATED.stop :]


def srgb_encode(linear: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
    """Linear light 0..1 as sRGB 0..1 (IEC 61966-2-1)."""
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def srgb_decode(encoded: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
    """SRGB 0..1 as linear light 0..1."""
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


@dataclass(frozen=True, eq=False)
class CurveSpace:
    """A colour space of curves and a matrix, or a grey one of a curve alone.

    Attributes:
        curves: (1 or 3, 65536) float64: linear light 0..1 of each level 0..65535.
        matrix: (3,3) linear RGB to XYZ under D50; None for grey.
    """

    curves: npt.NDArray[np.float64]
    matrix: npt.NDArray[np.float64] | None = None

    @property
    def is_grey(self) -> bool:
        """Whether one number stands for a colour."""
        return self.matrix is None

    @cached_property
    def _to_srgb_matrix(self) -> npt.NDArray[np.float64]:
        assert self.matrix is not None
        return np.linalg.inv(_SRGB_TO_D50) @ self.matrix

    def to_srgb(self, levels: Levels) -> Levels:
        """(H,W[,3]) uint8 or uint16 of this space in sRGB, the same shape and type."""
        top = np.iinfo(levels.dtype).max
        step = (_CURVE_STEPS - 1) // top
        result = np.empty_like(levels)
        for start in range(0, len(levels), _ROWS_AT_ONCE):  # large pictures are large as floats
            part = levels[start : start + _ROWS_AT_ONCE]
            linear = self._linear(part, step)
            encoded = srgb_encode(linear if self.is_grey else linear @ self._to_srgb_matrix.T)
            result[start : start + _ROWS_AT_ONCE] = np.round(encoded * top)
        return result

    def from_srgb(self, levels: Levels) -> Levels:
        """(H,W[,3]) uint8 or uint16 of sRGB in this space, the same shape and type."""
        top = np.iinfo(levels.dtype).max
        places = np.linspace(0, 1, _CURVE_STEPS)
        result = np.empty_like(levels)
        for start in range(0, len(levels), _ROWS_AT_ONCE):
            linear = srgb_decode(levels[start : start + _ROWS_AT_ONCE].astype(np.float64) / top)
            if not self.is_grey:
                linear = np.clip(linear @ np.linalg.inv(self._to_srgb_matrix).T, 0, 1)
            channels = linear[..., None] if self.is_grey else linear
            encoded = np.stack(
                [
                    np.interp(channels[..., i], *_increasing(curve, places))
                    for i, curve in enumerate(self.curves)
                ],
                axis=-1,
            )
            if self.is_grey:
                encoded = encoded[..., 0]
            result[start : start + _ROWS_AT_ONCE] = np.round(encoded * top)
        return result

    def is_srgb(self) -> bool:
        """Whether it differs from sRGB by less than a level of 255."""
        steps = np.linspace(0, 255, 9).round().astype(np.uint8)
        if self.is_grey:
            probe: Levels = np.arange(256, dtype=np.uint8)[:, None]
        else:
            probe = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 1, 3)
        same = probe.astype(np.uint16) * 257
        difference = self.to_srgb(same).astype(np.float64) - same
        return bool(np.abs(difference).mean() < _SAME_LEVELS * 257 / 2)

    def _linear(self, levels: Levels, step: int) -> npt.NDArray[np.float64]:
        places = levels.astype(np.int64) * step
        if self.is_grey:
            grey: npt.NDArray[np.float64] = self.curves[0][places]
            return grey
        return np.stack([self.curves[i][places[..., i]] for i in range(3)], axis=-1)


def _increasing(
    curve: npt.NDArray[np.float64], places: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """A curve as what ``np.interp`` inverts; one that falls is a negative's."""
    return (curve, places) if curve[-1] >= curve[0] else (curve[::-1], places[::-1])


# -- from tags of PNG and EXIF -----------------------------------------------------------------


def space_of_primaries(
    primaries: tuple[tuple[float, float], ...], gamma: float | None
) -> CurveSpace:
    """The space of red, green, blue and white (x, y); ``gamma`` None means sRGB's curve.

    Raises:
        UnusableProfileError: the primaries span no space.
    """
    xyz = [np.array([x / y, 1, (1 - x - y) / y]) for x, y in primaries if y > 0]
    if len(xyz) != 4:
        raise UnusableProfileError("its primaries are no colours")
    columns, white = np.stack(xyz[:3], axis=1), xyz[3]
    if abs(np.linalg.det(columns)) < 1e-6:
        raise UnusableProfileError("its primaries are no colours")
    to_xyz = columns * np.linalg.solve(columns, white)
    scale = (_BRADFORD @ _D50) / (_BRADFORD @ white)
    adapted = np.linalg.inv(_BRADFORD) @ np.diag(scale) @ _BRADFORD @ to_xyz
    places = np.linspace(0, 1, _CURVE_STEPS)
    curve = srgb_decode(places) if gamma is None else places**gamma
    return CurveSpace(np.repeat(curve[None], 3, axis=0), adapted)


def adobe_rgb() -> CurveSpace:
    """Adobe RGB (1998), which cameras name in EXIF without writing a profile."""
    return space_of_primaries(_ADOBE_RGB_PRIMARIES, 563 / 256)


def space_of_cicp(primaries: int, transfer: int) -> CurveSpace:
    """The space of a PNG's cICP chunk (H.273 numbers).

    Raises:
        UnusableProfileError: numbers that are unknown, or those of high dynamic range.
    """
    if primaries not in _CICP_PRIMARIES:
        raise UnusableProfileError(f"its cICP chunk names unknown primaries ({primaries})")
    if transfer in _CICP_LIKE_SRGB:
        return space_of_primaries(_CICP_PRIMARIES[primaries], None)
    if transfer not in _CICP_GAMMA:
        raise UnusableProfileError(f"its cICP chunk names a curve that is not known ({transfer})")
    return space_of_primaries(_CICP_PRIMARIES[primaries], _CICP_GAMMA[transfer])


# -- from ICC profiles -------------------------------------------------------------------------


def profile_space(profile: bytes) -> str:
    """The signature of a profile's data: ``RGB``, ``GRAY``, ``CMYK``, ``Lab``, ...

    Raises:
        UnusableProfileError: too short to be a profile.
    """
    if len(profile) < 132 or profile[36:40] != b"acsp":
        raise UnusableProfileError("its colour profile is damaged")
    return profile[16:20].decode("latin-1").strip()


def space_of_profile(profile: bytes) -> CurveSpace | None:
    """The curves and the matrix of an RGB or grey profile; None where it works by tables.

    Raises:
        UnusableProfileError: damaged.
    """
    kind = profile_space(profile)
    try:
        tags = _tags(profile)
        if kind == "GRAY" and b"kTRC" in tags:
            return CurveSpace(_curve(tags[b"kTRC"])[None])
        wanted = [b"rXYZ", b"gXYZ", b"bXYZ", b"rTRC", b"gTRC", b"bTRC"]
        if kind != "RGB" or b"A2B0" in tags or not set(wanted) <= set(tags):
            return None
        columns = [_xyz(tags[name]) for name in wanted[:3]]
        curves = np.stack([_curve(tags[name]) for name in wanted[3:]])
        return CurveSpace(curves, np.stack(columns, axis=1))
    except (struct.error, IndexError, ValueError) as error:
        raise UnusableProfileError(f"its colour profile is damaged ({error})") from None


def _tags(profile: bytes) -> dict[bytes, bytes]:
    (count,) = struct.unpack_from(">I", profile, 128)
    if count > 200:
        raise UnusableProfileError("its colour profile is damaged")
    tags = {}
    for i in range(count):
        name, offset, size = struct.unpack_from(">4sII", profile, 132 + 12 * i)
        tags[name] = profile[offset : offset + size]
    return tags


def _xyz(tag: bytes) -> npt.NDArray[np.float64]:
    return np.array(struct.unpack_from(">3i", tag, 8)) / 65536


def _curve(tag: bytes) -> npt.NDArray[np.float64]:
    """(65536,) of a ``curv`` or ``para`` tag (ICC.1, 10.6 and 10.18)."""
    x = np.linspace(0, 1, _CURVE_STEPS)
    if tag[:4] == b"curv":
        (count,) = struct.unpack_from(">I", tag, 8)
        if count == 0:
            return x
        points = np.frombuffer(tag, ">u2", min(count, (len(tag) - 12) // 2), 12)
        if count == 1:
            return np.asarray(x ** (float(points[0]) / 256), np.float64)
        return np.interp(x, np.linspace(0, 1, len(points)), points / 65535)
    if tag[:4] != b"para":
        raise UnusableProfileError("its colour profile has a curve of an unknown kind")
    (kind,) = struct.unpack_from(">H", tag, 8)
    count = {0: 1, 1: 3, 2: 4, 3: 5, 4: 7}[kind] if kind <= 4 else 0
    if not count:
        raise UnusableProfileError("its colour profile has a curve of an unknown kind")
    given = [value / 65536 for value in struct.unpack_from(f">{count}i", tag, 12)]
    g, a, b, c, d, e, f = given + [0.0] * (7 - count)
    if kind == 0:
        curve = x**g
    else:
        power = np.clip(a * x + b, 0, None) ** g
        if kind in (1, 2):
            curve = np.where(a * x >= -b, power + c, c)
        else:
            curve = np.where(x >= d, power + e, c * x + f)
    if not np.isfinite(curve).all():
        raise UnusableProfileError("its colour profile has a curve that makes no sense")
    return np.asarray(curve, np.float64)


def convert(image: Image.Image, source: bytes | None, target: bytes | None) -> Image.Image:
    """An 8-bit picture (L, RGB, CMYK or LAB) between two profiles; None means sRGB.

    The result is RGB, or what the target profile describes.

    Raises:
        UnusableProfileError: LittleCMS cannot use one of them for such a picture.
    """
    try:
        of_source, of_target = (
            ImageCms.ImageCmsProfile(io.BytesIO(p) if p else ImageCms.createProfile("sRGB"))
            for p in (source, target)
        )
        kind = profile_space(target) if target else "RGB"
        mode = {"GRAY": "L", "RGB": "RGB"}[kind]
        result = ImageCms.profileToProfile(
            image,
            of_source,
            of_target,
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode=mode,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, KeyError, OSError, ValueError) as error:
        raise UnusableProfileError(f"its colour profile cannot be used ({error})") from None
    assert result is not None
    return result


def lab_to_srgb(image: Image.Image) -> Image.Image:
    """An 8-bit picture of mode LAB as sRGB."""
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    return convert(image, lab, None)
