"""What a file's samples mean is decided by the file's own tags."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from conftest import make_pixels
from PIL import Image

from dr2pipe.core import images
from dr2pipe.core.errors import PictureError
from dr2pipe.core.images.samples import fill_transparent

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
