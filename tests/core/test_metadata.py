"""Metadata are carried byte for byte; only what the result makes wrong is corrected."""

import io

import numpy as np
import pytest
from conftest import make_pixels
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, PngImagePlugin

from dr2pipe.core import images
from dr2pipe.core.images.metadata import MAX_BYTES, Metadata

PIXELS = make_pixels(3, 24, 32)
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6" '
    b'exif:PixelXDimension="32" dc:creator="M\xc3\xbcller"><exif:PixelYDimension>24'
    b"</exif:PixelYDimension></rdf:Description></x:xmpmeta>"
)


def exif(**tags):
    block = Image.Exif()
    block[ExifTags.Base.Artist] = "somebody"
    block[ExifTags.Base.Orientation] = 6
    block.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"UNICODE\0\xe4\xf6"
    block.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExifImageWidth] = 32
    block.get_ifd(ExifTags.IFD.GPSInfo)[1] = "N"
    for tag, value in tags.items():
        block[ExifTags.Base[tag]] = value
    return block


def saved(kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, kind, **options)
    return buffer.getvalue()


def carried(data, width=64, height=48):
    """What a result of this input holds."""
    metadata = images.decode_image(data).metadata
    result = images.encode_png(np.zeros((height, width, 3), np.uint8), metadata=metadata)
    image = Image.open(io.BytesIO(result))
    image.load()
    return image


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_of_every_format(kind):
    found = carried(saved(kind, exif=exif().tobytes())).getexif()
    assert found[ExifTags.Base.Artist] == "somebody"
    assert found.get(ExifTags.Base.Orientation, 1) == 1
    details = found.get_ifd(ExifTags.IFD.Exif)
    assert details[ExifTags.Base.UserComment] == b"UNICODE\0\xe4\xf6"
    if kind != "TIFF":
        assert details[ExifTags.Base.ExifImageWidth] == 64
    assert found.get_ifd(ExifTags.IFD.GPSInfo)[1] == "N"


def test_the_letters_are_the_bytes_of_the_file():
    artist = "Jürgen Müller, 東京".encode()
    block = exif(Artist="x" * len(artist)).tobytes().replace(b"x" * len(artist), artist)
    assert artist in block
    metadata = images.decode_image(saved("JPEG", exif=block)).metadata
    assert artist in metadata.exif_for(64, 48)


def test_xmp_dpi_and_text():
    image = carried(saved("JPEG", xmp=XMP, dpi=(300, 300)))
    packet = image.info["XML:com.adobe.xmp"].encode()
    assert b'tiff:Orientation="1"' in packet
    assert b'exif:PixelXDimension="64"' in packet
    assert b"<exif:PixelYDimension>48</exif:PixelYDimension>" in packet
    assert "Müller".encode() in packet
    assert [round(dpi) for dpi in image.info["dpi"]] == [300, 300]
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", "a portrait, Steps: 20")
    text.add_itxt("Titel", "Großmutter", "de", "Titel")
    text.add_text("dr2pipe", "of an earlier result")
    found = carried(saved("PNG", pnginfo=text, dpi=(72, 72))).text
    assert found == {"parameters": "a portrait, Steps: 20", "Titel": "Großmutter"}


def test_iptc_goes_into_a_png_as_other_programs_read_it():
    iptc = b"\x1c\x02\x50\x00\x06M\xfcller"
    resource = b"8BIM\x04\x04\0\0" + len(iptc).to_bytes(4, "big") + iptc + b"\0" * (len(iptc) % 2)
    block = b"Photoshop 3.0\0" + resource
    data = saved("JPEG")
    data = data[:2] + b"\xff\xed" + (len(block) + 2).to_bytes(2, "big") + block + data[2:]
    text = carried(data).text["Raw profile type iptc"]
    assert bytes.fromhex("".join(text.split("\n")[3:])) == resource


def test_nothing_large_is_carried():
    comment = "x" * (MAX_BYTES + 1)
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", comment)
    text.add_text("small", "y")
    data = saved("PNG", pnginfo=text)
    assert carried(data).text == {"small": "y"}
    assert any("workflow" in warning for warning in images.decode_image(data).warnings)
    data = saved("TIFF", tiffinfo={37724: b"Adobe Photoshop Document Data Block\0" + bytes(999)})
    assert b"Photoshop" not in images.encode_png(
        PIXELS, metadata=images.decode_image(data).metadata
    )


def test_the_thumbnail_goes():
    thumbnail = saved("JPEG", quality=20)
    first = exif().tobytes()[6:]
    order = "little" if first[:2] == b"II" else "big"
    start = int.from_bytes(first[4:8], order)
    end = start + 2 + 12 * int.from_bytes(first[start : start + 2], order)
    directory = len(first) + len(first) % 2
    entries = [(0x201, directory + 2 + 24 + 4), (0x202, len(thumbnail))]
    block = bytearray(first) + bytes(len(first) % 2) + (2).to_bytes(2, order)
    for tag, value in entries:
        block += tag.to_bytes(2, order) + (4).to_bytes(2, order)
        block += (1).to_bytes(4, order) + value.to_bytes(4, order)
    block += bytes(4) + thumbnail
    block[end : end + 4] = directory.to_bytes(4, order)
    metadata = images.decode_image(saved("JPEG", exif=b"Exif\0\0" + bytes(block))).metadata
    kept = metadata.exif_for(64, 48)
    assert thumbnail[:40] not in kept
    assert len(kept) == len(block) - len(thumbnail)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400), st.sampled_from([b"II*\0", b"MM\0*", b""]))
def test_no_block_of_exif_does_harm(block, header):
    metadata = Metadata(exif=header + block)
    kept = metadata.exif_for(10, 10)
    assert kept is None or len(kept) <= len(header + block)
    data = saved("PNG", exif=b"Exif\0\0" + header + block)
    assert images.decode_image(data).pixels.shape == PIXELS.shape
