"""What a file's samples mean is decided by the file's own tags."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from conftest import make_pixels
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from dr2pipe.core import images
from dr2pipe.core.errors import PictureError
from dr2pipe.core.images.samples import fill_transparent

XMP = b'<x xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="%d"/>'
DEEP = make_pixels(3, 24, 32).astype(np.uint16) * 257
DEEP[::2, ::2] |= 77  # bits that 8 bits do not hold


def tiff(planes, *, photometric=2, planar=1, extra=(), tiles=False, order="<"):
    """A 16-bit TIFF file of samples (H,W,N), uncompressed."""
    height, width, count = planes.shape
    sample = order + "u2"
    if planar == 2:
        parts = [planes[..., i].astype(sample).tobytes() for i in range(count)]
        half = height // 2 * width * 2
        strips = [piece for part in parts for piece in (part[:half], part[half:])]
        rows = height // 2
    else:
        strips, rows = [planes.astype(sample).tobytes()], height
    body = bytearray((b"II*\0" if order == "<" else b"MM\0*") + bytes(4))
    offsets = []
    for strip in strips:
        offsets.append(len(body))
        body += strip
    entries = {
        256: (width,), 257: (height,), 258: (16,) * count, 259: (1,), 262: (photometric,),
        273: tuple(offsets), 277: (count,), 278: (rows,), 279: tuple(map(len, strips)),
        284: (planar,),
    }  # fmt: skip
    if extra:
        entries[338] = extra
    values = {}
    for tag, numbers in entries.items():
        packed = struct.pack(f"{order}{len(numbers)}I", *numbers)
        if len(packed) > 4:
            values[tag] = struct.pack(order + "I", len(body))
            body += packed
        else:
            values[tag] = packed
    struct.pack_into(order + "I", body, 4, len(body))
    body += struct.pack(order + "H", len(entries))
    for tag, numbers in sorted(entries.items()):
        body += struct.pack(order + "HHI", tag, 4, len(numbers)) + values[tag]
    return bytes(body + bytes(4))


def paged_tiff(pages, *, big=False, order="<"):
    """An uncompressed TIFF file of pages {tag: values}, each with the bytes of its strips in 273."""
    pointer, head, entry = ("Q", "Q", "HHQ") if big else ("I", "H", "HHI")
    mark, room = (43 if big else 42), (8 if big else 4)
    body = bytearray((b"II" if order == "<" else b"MM") + struct.pack(order + "H", mark))
    body += struct.pack(order + "HH", 8, 0) * big
    link = len(body)
    body += bytes(room)
    for page in pages:
        tags, offsets = dict(page), []
        tags[279] = tuple(map(len, tags[273]))
        for strip in tags[273]:
            offsets.append(len(body))
            body += strip
        tags[273] = tuple(offsets)
        packed = {}
        for tag, numbers in tags.items():
            value = struct.pack(
                f"{order}{len(numbers)}{'I' if tag in (273, 279) else 'H'}", *numbers
            )
            packed[tag] = value
            if len(value) > room:
                packed[tag] = struct.pack(order + pointer, len(body))
                body += value
        struct.pack_into(order + pointer, body, link, len(body))
        body += struct.pack(order + head, len(tags))
        for tag, numbers in sorted(tags.items()):
            kind = 4 if tag in (273, 279) else 3
            body += struct.pack(order + entry, tag, kind, len(numbers))
            body += packed[tag].ljust(room, b"\0")
        link = len(body)
        body += bytes(room)
    return bytes(body)


def page_of(levels, *, bits=16, planar=1, order="<", **tags):
    """The tags of a page of levels (H,W,N)."""
    height, width, count = levels.shape
    sample = f"{order}u{bits // 8}"
    strips = [levels.astype(sample).tobytes()]
    if planar == 2:
        strips = [levels[..., i].astype(sample).tobytes() for i in range(count)]
    page = {
        256: (width,), 257: (height,), 258: (bits,) * count, 259: (1,),
        262: (2 if count > 2 else 1,), 273: strips, 277: (count,), 278: (height,), 284: (planar,),
    }  # fmt: skip
    return page | {int(tag[1:]): values for tag, values in tags.items()}


def own(data, **options):
    return images.decode_image(data, keep_own=True, **options)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("planar", [1, 2])
def test_16_bit_tiff_of_any_layout_is_itself(planar, order):
    picture = own(tiff(DEEP, planar=planar, order=order))
    assert picture.bits == 16
    assert (picture.own.levels == DEEP).all()
    assert np.abs(picture.pixels.astype(int) - DEEP / 257).max() <= 1
    assert picture.alpha is None


@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("extra", [(0,), ()])
def test_an_extra_sample_is_no_transparency(planar, extra):
    infrared = np.random.default_rng(0).integers(0, 65536, DEEP.shape[:2], dtype=np.uint16)
    picture = own(tiff(np.dstack([DEEP, infrared]), planar=planar, extra=extra))
    assert picture.alpha is None
    assert (picture.own.levels == DEEP).all()


@pytest.mark.parametrize("planar", [1, 2])
def test_transparency_of_16_bit_tiff(planar):
    alpha = np.full(DEEP.shape[:2], 40_000, np.uint16)
    alpha[:4] = 0
    plain = own(tiff(np.dstack([DEEP, alpha]), planar=planar, extra=(2,)))
    assert (plain.alpha == alpha).all()
    assert (plain.own.levels == DEEP).all()
    share = alpha[..., None] / 65535
    multiplied = np.round(DEEP * share).astype(np.uint16)
    associated = own(tiff(np.dstack([multiplied, alpha]), planar=planar, extra=(1,)))
    assert (associated.alpha == alpha).all()
    difference = associated.own.levels[4:].astype(int) - DEEP[4:]
    assert np.abs(difference).max() <= 2


def test_grey_planes_and_negatives():
    grey = DEEP[..., :1]
    assert (own(tiff(grey, photometric=1)).own.levels == grey[..., 0]).all()
    assert (own(tiff(grey, photometric=0)).own.levels == 65535 - grey[..., 0]).all()


@given(
    st.lists(
        st.tuples(st.sampled_from([8, 16]), st.sampled_from([1, 2]), st.integers(1, 8)),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from([(False, "<"), (False, ">"), (True, "<")]),  # of BigTIFF, Pillow reads these
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_every_page_of_any_tiff_is_itself_and_upright(pages, kind):
    """Pages of 8 and 16 bits, in planes or not, each turned in its own way, also of BigTIFF."""
    big, order = kind
    levels = [
        np.roll(DEEP, i, axis=0) if bits == 16 else np.roll(DEEP >> 8, i, axis=0).astype(np.uint8)
        for i, (bits, _, _) in enumerate(pages)
    ]
    data = paged_tiff(
        [
            page_of(level, bits=bits, planar=planar, order=order, t274=(turned,))
            for level, (bits, planar, turned) in zip(levels, pages, strict=True)
        ],
        big=big,
        order=order,
    )
    for i, (bits, _, turned) in enumerate(pages):
        picture = own(data, page=i)
        upright = levels[i].swapaxes(0, 1) if turned > 4 else levels[i]
        upright = upright[::-1] if turned in (3, 4, 7, 8) else upright
        upright = upright[:, ::-1] if turned in (2, 3, 6, 7) else upright
        assert picture.bits == bits
        assert (picture.own.levels == upright).all()
        assert not picture.warnings


@pytest.mark.parametrize("turned", range(1, 9))
@pytest.mark.parametrize("kind", ["TIFF", "JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("place", ["EXIF", "XMP"])
def test_every_kind_of_file_is_turned_once(kind, turned, place):
    exif = Image.Exif()
    exif[274] = turned
    blocks = {"exif": exif} if place == "EXIF" else {"xmp": XMP % turned}
    if kind == "TIFF" and place == "XMP":
        blocks = {"tiffinfo": {700: XMP % turned}}
    if kind == "PNG" and place == "XMP":
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", (XMP % turned).decode())
        blocks = {"pnginfo": info}
    buffer = io.BytesIO()
    image = Image.fromarray(make_pixels(1, 24, 32))
    image.save(buffer, kind, **blocks, **({"lossless": True} if kind == "WEBP" else {}))
    with Image.open(buffer) as file:
        expected = np.asarray(ImageOps.exif_transpose(file))
    assert (own(buffer.getvalue()).pixels == expected).all()
    buffer.seek(0)
    assert (images.picture_of(Image.open(buffer)).pixels == expected).all()


def test_12_bits_are_as_bright_as_16():
    grey = DEEP[..., 0] >> 4
    bits = "".join(f"{level:012b}" for level in grey.ravel())
    page = page_of(DEEP[..., :1]) | {258: (12,)}
    page[273] = [int(bits, 2).to_bytes(len(bits) // 8, "big")]
    levels = own(paged_tiff([page])).own.levels.astype(int)
    assert np.abs(levels - DEEP[..., 0]).max() <= 16


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("extra", [{}, {"t338": (0,)}, {"t338": (2,)}])
def test_a_fourth_sample_means_the_same_in_8_and_16_bits(bits, extra):
    four = np.dstack([DEEP, DEEP[::-1, :, 0]]) >> (16 - bits)
    picture = own(paged_tiff([page_of(four.astype(f"u{bits // 8}"), bits=bits, **extra)]))
    assert (picture.alpha is None) == (extra != {"t338": (2,)})
    assert (picture.own.levels == four[..., :3]).all()


@pytest.mark.parametrize(("kind", "bits"), [("jp2", 8), ("jp2", 16), ("avif", 8), ("avif", 10)])
def test_bits_that_are_lost_are_told(kind, bits):
    pixels = make_pixels(1, 64, 64)
    levels = pixels if bits == 8 else pixels.astype(np.uint16) * (257 if bits == 16 else 4)
    options = [cv2.IMWRITE_AVIF_DEPTH, bits] if kind == "avif" else []
    try:
        data = cv2.imencode(f".{kind}", levels[..., ::-1], options)[1].tobytes()
    except cv2.error:
        pytest.skip(f"no writer of {kind} here")
    assert any("bits were taken" in said for said in own(data).warnings) == (bits > 8)


def test_odd_kinds_are_refused():
    with pytest.raises(PictureError, match="not supported"):
        own(tiff(np.dstack([DEEP, DEEP])))
    with pytest.raises(PictureError):
        own(tiff(DEEP, photometric=8))


def test_a_transparent_colour_in_16_bits():
    key = DEEP[3, 5]
    data = images.encode_png(DEEP)
    body = b"tRNS" + key.astype(">u2").tobytes()
    chunk = struct.pack(">I", 6) + body + struct.pack(">I", zlib.crc32(body))
    place = data.index(b"IDAT") - 4
    picture = own(data[:place] + chunk + data[place:])
    assert ((picture.alpha == 0) == (key == DEEP).all(axis=2)).all()
    assert (picture.own.levels == DEEP).all()


def test_16_bits_go_out_as_they_came_in():
    alpha = np.arange(24 * 32, dtype=np.uint16).reshape(24, 32) * 80 + 1
    for pixels in (DEEP, DEEP[..., 1]):
        again = own(images.encode_png(pixels, alpha=alpha))
        assert (again.own.levels == pixels).all()
        assert (again.alpha == alpha).all()
        assert (own(images.encode_png(pixels)).own.levels == pixels).all()


def test_pages_are_told_and_taken():
    frames = [Image.fromarray(make_pixels(seed, 24, 24)) for seed in range(3)]
    for kind in ("TIFF", "WEBP", "GIF"):
        buffer = io.BytesIO()
        options = {"lossless": True} if kind == "WEBP" else {}
        frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], **options)
        data = buffer.getvalue()
        assert images.count_pages(data) == 3
        assert any("3 pages" in warning for warning in images.decode_image(data).warnings)
        third = images.decode_image(data, page=2)
        assert np.abs(third.pixels.astype(int) - np.asarray(frames[2])).mean() < 12
        assert third.warnings == []


def test_hidden_colours_never_reach_the_picture():
    pixels = np.full((20, 20, 3), 90, np.uint8)
    pixels[:, 10:] = (255, 0, 255)  # left under full transparency by some program
    alpha = np.full((20, 20), 255, np.uint8)
    alpha[:, 10:] = 0
    alpha[:, 9] = 3
    assert (fill_transparent(pixels, alpha) == 90).all()
    buffer = io.BytesIO()
    Image.fromarray(np.dstack([pixels, alpha])).save(buffer, "PNG")
    assert (images.decode_image(buffer.getvalue()).pixels == 90).all()
    hidden = np.zeros((20, 20), np.uint8)
    assert (fill_transparent(pixels, hidden) == pixels).all()


@pytest.mark.parametrize("scheme", [1, 5, 8])
def test_compressed_tiff(scheme):
    options = [cv2.IMWRITE_TIFF_COMPRESSION, scheme]
    data = cv2.imencode(".tiff", DEEP[..., ::-1], options)[1].tobytes()
    assert (own(data).own.levels == DEEP).all()
