"""What a file says about its picture, carried into the result byte for byte.

Only what a restoration makes wrong is corrected: the orientation (pixels are upright by then),
the sizes, and the thumbnail, which shows the picture as it was. Nothing larger than
``MAX_BYTES`` is carried.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

MAX_BYTES = 256 * 1024  # of one block, such as an XMP packet with pictures inside
COMMENT = "Comment"  # the text entry that a JPEG file's comment becomes
OWN_TEXT = "dr2pipe"  # the text entry that results carry; that of an input is not its result's

_ORIENTATION, _EXIF_IFD, _GPS_IFD, _INTEROP_IFD = 0x0112, 0x8769, 0x8825, 0xA005
_WIDTH_TAGS, _HEIGHT_TAGS = (0x0100, 0xA002), (0x0101, 0xA003)
_THUMBNAIL_OFFSET, _THUMBNAIL_LENGTH = 0x0201, 0x0202
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_BIG_TYPE_BYTES = {16: 8, 17: 8, 18: 8}  # of BigTIFF alone
# Tags that say how a TIFF file stores its samples, or hold blocks that are carried otherwise.
_TIFF_LAYOUT = {*range(254, 270), *range(273, 282), 284, 290, 291, 292, 293, 297, 301}
_TIFF_LAYOUT |= {*range(317, 348), 512, *range(513, 522), 529, 530, 531, 532, 700, 33723, 34675}
_TIFF_LAYOUT |= {_ORIENTATION, 34377, 37724, 50255, 282, 283, 296}
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:\s*=\s*[\"']|>)\s*([0-9])")
_EXIF_PREFIX = b"Exif\0\0"
_XMP_KEY, _PHOTOSHOP_IPTC = "XML:com.adobe.xmp", 0x0404


@dataclass(frozen=True)
class Metadata:
    """What is carried from a file into its result.

    Attributes:
        exif: a TIFF structure without the "Exif" prefix, or None.
        xmp: the XMP packet, or None.
        iptc: IPTC records, or None.
        dpi: pixels per inch (horizontal, vertical), or None.
        text: text entries of a PNG file, or the comment of a JPEG file.
        orientation: 1..8, what a reader had to do to see the picture upright.
        adobe_rgb: whether EXIF names Adobe RGB as the colour space.
        left_out: names of blocks that were too large or damaged.
    """

    exif: bytes | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    dpi: tuple[float, float] | None = None
    text: dict[str, str] = field(default_factory=dict)
    orientation: int = 1
    adobe_rgb: bool = False
    left_out: tuple[str, ...] = ()

    def exif_for(self, width: int, height: int) -> bytes | None:
        """``exif`` of a result of ``width`` x ``height`` pixels: upright and without thumbnail."""
        if self.exif is None:
            return None
        try:
            return _corrected(self.exif, width, height)
        except (struct.error, IndexError, ValueError):
            return None

    def xmp_for(self, width: int, height: int) -> bytes | None:
        """``xmp`` of a result of ``width`` x ``height`` pixels."""
        if self.xmp is None:
            return None
        sizes = {
            b"tiff:Orientation": b"1",
            **{name: str(width).encode() for name in (b"tiff:ImageWidth", b"exif:PixelXDimension")},
            **{name: str(height).encode() for name in (b"tiff:ImageLength", b"exif:PixelYDimension")},
        }  # fmt: skip
        xmp = self.xmp
        for name, value in sizes.items():
            xmp = re.sub(
                rb"(" + name + rb"\s*=\s*[\"'])\d+([\"'])", rb"\g<1>" + value + rb"\g<2>", xmp
            )
            xmp = re.sub(
                rb"(<" + name + rb">)\s*\d+\s*(</" + name + rb">)",
                rb"\g<1>" + value + rb"\g<2>",
                xmp,
            )
        return xmp


def read_metadata(image: Image.Image, data: bytes) -> Metadata:
    """The metadata of an opened file; ``data`` are its bytes. Damaged blocks are left out."""
    left_out: list[str] = []

    def fitting(name: str, block: Any) -> bytes | None:
        if isinstance(block, tuple) and len(block) == 1:
            block = block[0]
        if isinstance(block, str):
            block = block.encode("utf-8", "surrogateescape")
        if not isinstance(block, bytes) or not block:
            return None
        if len(block) > MAX_BYTES:
            left_out.append(f"{name} ({len(block)} bytes)")
            return None
        return block

    tags = getattr(image, "tag_v2", {})
    exif_block = image.info.get("exif")
    try:
        if data and image.format in ("TIFF", "MPO") and tags and exif_block is None:
            exif, orientation = _exif_of_tiff(data, image.tell())
        else:
            exif = exif_block if isinstance(exif_block, bytes) else None
            while exif is not None and exif.startswith(_EXIF_PREFIX):  # PNG writers add another
                exif = exif.removeprefix(_EXIF_PREFIX)
            orientation = _orientation(exif) if exif else None
        adobe_rgb = bool(exif) and _names_adobe_rgb(exif or b"")
    except (struct.error, IndexError, ValueError, KeyError):
        exif, orientation, adobe_rgb = None, None, False
        left_out.append("its EXIF block, which is damaged")
    text, xmp_text = _texts(image, left_out)
    photoshop = image.info.get("photoshop")
    iptc = photoshop.get(_PHOTOSHOP_IPTC) if isinstance(photoshop, dict) else tags.get(33723)
    xmp = image.info.get("xmp") or xmp_text or tags.get(700)
    return Metadata(
        exif=fitting("EXIF", exif),
        xmp=fitting("XMP", xmp),
        iptc=fitting("IPTC", iptc),
        dpi=_dpi(image),
        text=text,
        orientation=_usual(orientation if orientation is not None else _orientation_in(xmp)),
        adobe_rgb=adobe_rgb,
        left_out=tuple(left_out),
    )


def _texts(image: Image.Image, left_out: list[str]) -> tuple[dict[str, str], str | None]:
    """Text entries of a PNG file and its XMP packet, or the comment of a JPEG file."""
    comment = image.info.get("comment")
    if image.format == "JPEG" and isinstance(comment, bytes) and 0 < len(comment) <= MAX_BYTES:
        return {COMMENT: comment.decode("utf-8", "replace")}, None
    found = dict(getattr(image, "text", None) or {}) if image.format == "PNG" else {}
    xmp = found.pop(_XMP_KEY, None)
    found.pop(OWN_TEXT, None)
    kept = {}
    for key, value in found.items():
        if not isinstance(value, str) or not key:
            continue
        if len(value.encode("utf-8", "surrogatepass")) > MAX_BYTES:
            left_out.append(f"the text '{key}' ({len(value)} letters)")
        else:
            kept[key] = str(value)
    return kept, xmp


def _dpi(image: Image.Image) -> tuple[float, float] | None:
    try:
        horizontal, vertical = (float(value) for value in image.info.get("dpi", ()))
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    usual = 1 < horizontal < 1e5 and 1 < vertical < 1e5
    return (horizontal, vertical) if usual else None


# -- EXIF as bytes -----------------------------------------------------------------------------


def _order(block: bytes) -> str:
    orders = {b"II*\0": "<", b"MM\0*": ">", b"II+\0": "<", b"MM\0+": ">"}
    if block[:4] not in orders:
        raise ValueError("no TIFF header")
    return orders[block[:4]]


def _is_big(block: bytes) -> bool:
    """Whether it is BigTIFF, whose places and counts have 64 bits."""
    return b"+" in block[2:4]


def _entries(block: bytes, offset: int, order: str) -> tuple[dict[int, tuple[int, int, int]], int]:
    """{tag: (type, count, place of the value)} of a directory, and the place of its end."""
    head, entry, pointer = ("Q", "HHQ", "Q") if _is_big(block) else ("H", "HHI", "I")
    (count,) = struct.unpack_from(order + head, block, offset)
    start, inline = offset + struct.calcsize(order + head), struct.calcsize(order + pointer)
    step = struct.calcsize(order + entry) + inline
    found = {}
    for i in range(count):
        place = start + step * i
        tag, kind, number = struct.unpack_from(order + entry, block, place)
        place += step - inline
        size = (_TYPE_BYTES | _BIG_TYPE_BYTES).get(kind, 1) * number
        value = place if size <= inline else struct.unpack_from(order + pointer, block, place)[0]
        if value + size <= len(block):
            found[tag] = (kind, number, value)
    return found, start + step * count


def _number(block: bytes, entry: tuple[int, int, int], order: str) -> int:
    kind, _, place = entry
    letter = "H" if kind == 3 else "Q" if kind in _BIG_TYPE_BYTES else "I"
    return int(struct.unpack_from(order + letter, block, place)[0])


def _usual(orientation: int) -> int:
    return orientation if orientation in range(1, 9) else 1


def _orientation_in(xmp: Any) -> int:
    """What an XMP packet says where EXIF says nothing, which readers such as Pillow follow."""
    text = xmp.encode("utf-8", "surrogateescape") if isinstance(xmp, str) else xmp
    found = _XMP_ORIENTATION.search(text) if isinstance(text, bytes) else None
    return int(found[1]) if found else 1


def _orientation(block: bytes) -> int | None:
    order = _order(block)
    first, _ = _entries(block, struct.unpack_from(order + "I", block, 4)[0], order)
    return _number(block, first[_ORIENTATION], order) if _ORIENTATION in first else None


def _names_adobe_rgb(block: bytes) -> bool:
    order = _order(block)
    found, _ = _entries(block, struct.unpack_from(order + "I", block, 4)[0], order)
    for tag in (_EXIF_IFD, _INTEROP_IFD):
        if tag not in found:
            return False
        found, _ = _entries(block, _number(block, found[tag], order), order)
    return 1 in found and block[found[1][2] : found[1][2] + 3] == b"R03"


def _corrected(block: bytes, width: int, height: int) -> bytes:
    """A block whose orientation, sizes and thumbnail fit the result; all else as it is."""
    order, changed = _order(block), bytearray(block)
    start = struct.unpack_from(order + "I", block, 4)[0]
    first, end = _entries(block, start, order)
    directories = [first]
    if _EXIF_IFD in first:
        directories.append(_entries(block, _number(block, first[_EXIF_IFD], order), order)[0])
    new = {_ORIENTATION: 1}
    new |= dict.fromkeys(_WIDTH_TAGS, width) | dict.fromkeys(_HEIGHT_TAGS, height)
    for directory in directories:
        for tag in new.keys() & directory.keys():
            kind, _, place = directory[tag]
            if kind in (3, 4):
                struct.pack_into(order + ("H" if kind == 3 else "I"), changed, place, new[tag])
    (following,) = struct.unpack_from(order + "I", block, end)
    if following:
        struct.pack_into(order + "I", changed, end, 0)
        thumbnail, _ = _entries(block, following, order)
        if {_THUMBNAIL_OFFSET, _THUMBNAIL_LENGTH} <= thumbnail.keys():
            place = _number(block, thumbnail[_THUMBNAIL_OFFSET], order)
            size = _number(block, thumbnail[_THUMBNAIL_LENGTH], order)
            if place + size <= len(block):
                changed[place : place + size] = bytes(size)
                if place + size == len(block):  # where cameras put it
                    del changed[place:]
    return bytes(changed)


def _exif_of_tiff(data: bytes, page: int) -> tuple[bytes | None, int | None]:
    """What the directory of a TIFF file's page says besides its layout, as an EXIF block."""
    order = _order(data)
    pointer, place = (order + "Q", 8) if _is_big(data) else (order + "I", 4)
    for _ in range(page + 1):
        first, place = _entries(data, struct.unpack_from(pointer, data, place)[0], order)
    orientation = _number(data, first[_ORIENTATION], order) if _ORIENTATION in first else None
    directories: dict[int, dict[int, tuple[int, int, bytes]]] = {}
    for tag in (_EXIF_IFD, _GPS_IFD):
        if tag in first:
            found, _ = _entries(data, _number(data, first.pop(tag), order), order)
            found.pop(_INTEROP_IFD, None)  # it would point into the file that was
            directories[tag] = _values(data, found)
    kept = _values(data, {t: e for t, e in first.items() if t not in _TIFF_LAYOUT})
    if not kept and not directories:
        return None, orientation
    return _exif_block(order, kept, directories), orientation


def _values(
    data: bytes, entries: dict[int, tuple[int, int, int]]
) -> dict[int, tuple[int, int, bytes]]:
    values = {}
    for tag, (kind, number, place) in entries.items():
        size = _TYPE_BYTES.get(kind, 1) * number
        if size <= MAX_BYTES and kind not in _BIG_TYPE_BYTES:  # an EXIF block has no such ones
            values[tag] = (kind, number, data[place : place + size])
    return values


def _exif_block(
    order: str,
    first: dict[int, tuple[int, int, bytes]],
    directories: dict[int, dict[int, tuple[int, int, bytes]]],
) -> bytes:
    block = bytearray((b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8))
    pointers = {tag: (4, 1, bytes(4)) for tag in directories}
    places = _write_directory(block, order, first | pointers)
    for tag, directory in directories.items():
        struct.pack_into(order + "I", block, places[tag], len(block))
        _write_directory(block, order, directory)
    return bytes(block)


def _write_directory(
    block: bytearray, order: str, entries: dict[int, tuple[int, int, bytes]]
) -> dict[int, int]:
    """Append a directory; returns the place of each tag's value."""
    start = len(block)
    block += struct.pack(order + "H", len(entries)) + bytes(12 * len(entries) + 4)
    places = {}
    for i, (tag, (kind, number, value)) in enumerate(sorted(entries.items())):
        place = start + 2 + 12 * i
        struct.pack_into(order + "HHI", block, place, tag, kind, number)
        if len(value) <= 4:
            block[place + 8 : place + 8 + len(value)] = value
            places[tag] = place + 8
        else:
            block += bytes(len(block) % 2)  # values begin at even places
            struct.pack_into(order + "I", block, place + 8, len(block))
            places[tag] = len(block)
            block += value
    return places
