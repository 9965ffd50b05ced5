"""The colour space that a file's samples are in, and how to write changed samples in it."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image

from dr2pipe.core.images import colour
from dr2pipe.core.images.arrays import LUMA, Levels, Pixels
from dr2pipe.core.images.metadata import Metadata
from dr2pipe.core.images.samples import Samples

_LUMA = np.array(LUMA)
# What writers of sRGB put into a gAMA chunk, more or less.
_GAMMA_OF_SRGB = (0.43, 0.48)
_CHUNK_UNIT = 100_000
_DAMAGED = "its colour tags are damaged"
_ADOBE_RGB_CHUNKS = (
    (b"gAMA", struct.pack(">I", 45470)),
    (b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000)),
)


@dataclass
class OwnSpace:
    """Samples in the colour space of their file.

    Attributes:
        levels: (H,W) grey or (H,W,3) RGB, uint8 or uint16, upright.
        curves: how the levels become sRGB, by curves and a matrix; None for sRGB itself, and
            for profiles that work by tables.
        profile: the file's ICC profile, or None.
        chunks: PNG chunks that say the colour space where no profile does.
    """

    levels: Levels = field(default_factory=lambda: np.empty((0, 0), np.uint8))
    curves: colour.CurveSpace | None = None
    profile: bytes | None = None
    chunks: tuple[tuple[bytes, bytes], ...] = ()
    by_tables: bool = False

    @property
    def is_other_than_srgb(self) -> bool:
        """Whether the levels are no sRGB."""
        return self.curves is not None or self.by_tables

    @property
    def rgb_profile(self) -> bytes | None:
        """The profile, where it fits RGB samples."""
        if self.profile is None or colour.profile_space(self.profile) != "RGB":
            return None
        return self.profile

    def to_srgb(self, levels: Levels) -> Levels:
        """(H,W[,3]) of this space as sRGB; the same shape, or (H,W,3)."""
        if self.curves is not None and levels.dtype == np.uint16:
            return self.curves.to_srgb(_as_channels(levels, self.curves))
        if self.profile is not None and self.is_other_than_srgb:
            image = Image.fromarray(np.ascontiguousarray(reduced(levels)))
            if colour.profile_space(self.profile) == "RGB":
                image = image.convert("RGB")
            return np.asarray(colour.convert(image, self.profile, None))
        if self.curves is not None:
            return self.curves.to_srgb(_as_channels(levels, self.curves))
        return levels

    def from_srgb(self, pixels: Levels) -> Levels:
        """(H,W,3) uint8 or uint16 sRGB in this space, shaped and typed as ``levels``."""
        wide: Levels = pixels
        if self.levels.dtype == np.uint16 and pixels.dtype == np.uint8:
            wide = pixels.astype(np.uint16) * 257
        elif self.levels.dtype == np.uint8:
            wide = reduced(pixels)
        is_grey = self.levels.ndim == 2
        if is_grey:
            top = np.iinfo(wide.dtype).max
            wide = np.clip(np.round(wide @ _LUMA), 0, top).astype(wide.dtype)
        if self.curves is not None:
            channels = _as_channels(wide, self.curves)
            found = self.curves.from_srgb(channels)
            return found[..., 0] if is_grey and found.ndim == 3 else found
        if self.by_tables and self.profile is not None:
            image = Image.fromarray(np.ascontiguousarray(reduced(wide))).convert("RGB")
            narrow = np.asarray(colour.convert(image, None, self.profile))
            if is_grey and narrow.ndim == 3:
                narrow = narrow[..., 1]
            return narrow.astype(np.uint16) * 257 if wide.dtype == np.uint16 else narrow
        return wide

    def changed(self, pixels: Levels, where: npt.NDArray[np.bool_]) -> Levels:
        """``levels`` with the sRGB ``pixels`` (H,W,3) in the places of ``where`` (H,W).

        All other samples are unchanged.
        """
        result = self.levels.copy()
        (rows,) = np.nonzero(where.any(axis=1))
        if len(rows):
            part = slice(rows[0], rows[-1] + 1)
            result[part][where[part]] = self.from_srgb(pixels[part])[where[part]]
        return result


def reduced(levels: Levels) -> Pixels:
    """65535 -> 255, rounded; row by row, since large pictures have to fit many times over."""
    if levels.dtype.itemsize == 1:
        return levels
    result = np.empty(levels.shape, np.uint8)
    for row, target in zip(levels, result, strict=True):
        target[:] = (row.astype(np.uint32) + 128) // 257
    return result


def _as_channels(levels: Levels, curves: colour.CurveSpace) -> Levels:
    if levels.ndim == 2 and not curves.is_grey:
        return np.repeat(levels[..., None], 3, axis=2)
    return levels


def space_of_file(
    image: Image.Image, data: bytes, metadata: Metadata, samples: Samples, warnings: list[str]
) -> OwnSpace:
    """The colour space that the file's own tags name; sRGB where they name none.

    In PNG files cICP counts before a profile, that before sRGB, and that before gAMA and cHRM
    (PNG 3, section 4.3).
    """
    is_grey = samples.levels.ndim == 2
    profile = image.info.get("icc_profile")
    chunks = dict(_png_chunks(data)) if image.format == "PNG" else {}
    gamma = {name: body for name, body in chunks.items() if name in (b"gAMA", b"cHRM")}
    readers: list[Callable[[], OwnSpace]] = []
    if b"cICP" in chunks:
        readers.append(lambda: _of_cicp(chunks[b"cICP"], is_grey))
    if profile:
        readers.append(lambda: _of_profile(profile, is_grey))
    if b"sRGB" in chunks:
        readers.append(lambda: OwnSpace(chunks=((b"sRGB", chunks[b"sRGB"]),)))
    if gamma:
        readers.append(lambda: _of_gamma(gamma, is_grey))
    if b"gAMA" in gamma and b"cHRM" in gamma:
        readers.append(lambda: _of_gamma({b"gAMA": gamma[b"gAMA"]}, is_grey))
    if metadata.adobe_rgb:
        readers.append(lambda: OwnSpace(curves=colour.adobe_rgb(), chunks=_ADOBE_RGB_CHUNKS))
    for i, read in enumerate(readers, start=1):
        try:
            return read()
        except (colour.UnusableProfileError, IndexError, struct.error) as error:
            said = error if isinstance(error, colour.UnusableProfileError) else _DAMAGED
            instead = "what else it says of them counts"
            if i == len(readers):
                instead = "its colours are taken for sRGB"
            warnings.append(f"{said}; {instead}")
    # Levels that nobody understood keep what says how they look.
    kept = chunks.get(b"cICP", b"")
    return OwnSpace(chunks=((b"cICP", kept),) if len(kept) == 4 else ())


def _of_cicp(chunk: bytes, is_grey: bool) -> OwnSpace:
    primaries, transfer, _, is_full_range = struct.unpack("4B", chunk)
    if not is_full_range:
        raise colour.UnusableProfileError("its cICP chunk says that black and white are no ends")
    own = OwnSpace(chunks=((b"cICP", chunk),))
    return _unless_srgb(own, colour.space_of_cicp(primaries, transfer), is_grey)


def _of_profile(profile: bytes, is_grey: bool) -> OwnSpace:
    kind = colour.profile_space(profile)
    if kind not in ("RGB", "GRAY") or (kind == "GRAY" and not is_grey):
        raise colour.UnusableProfileError(
            f"its colour profile is for {kind}, which its pixels are not"
        )
    space = colour.space_of_profile(profile)
    if space is None:
        probe = Image.new("RGB" if kind == "RGB" else "L", (1, 1))
        colour.convert(probe, profile, None)  # raises where it cannot be used
        return OwnSpace(profile=profile, by_tables=True)
    return _unless_srgb(OwnSpace(profile=profile), space, is_grey)


def _unless_srgb(own: OwnSpace, space: colour.CurveSpace, is_grey: bool) -> OwnSpace:
    if is_grey and not space.is_grey and np.allclose(space.curves, space.curves[:1], atol=1e-4):
        space = colour.CurveSpace(space.curves[:1])  # equal levels stay equal
    own.curves = None if space.is_srgb() else space
    return own


def _of_gamma(chunks: dict[bytes, bytes], is_grey: bool) -> OwnSpace:
    gamma = None
    if b"gAMA" in chunks:
        stored = struct.unpack(">I", chunks[b"gAMA"])[0] / _CHUNK_UNIT
        if not 0.05 < stored < 5:
            raise colour.UnusableProfileError("its gAMA chunk makes no sense")
        gamma = None if _GAMMA_OF_SRGB[0] < stored < _GAMMA_OF_SRGB[1] else 1 / stored
    primaries = colour.SRGB_PRIMARIES
    if b"cHRM" in chunks:
        x = [value / _CHUNK_UNIT for value in struct.unpack(">8I", chunks[b"cHRM"])]
        white, red, green, blue = zip(x[::2], x[1::2], strict=True)
        primaries = (red, green, blue, white)
    space = colour.space_of_primaries(primaries, gamma)
    return _unless_srgb(OwnSpace(chunks=tuple(chunks.items())), space, is_grey)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Chunks before the pixels of a PNG file."""
    place = 8
    while place + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, place)
        if name == b"IDAT":
            return
        yield name, data[place + 8 : place + 8 + size]
        place += size + 12
