"""Pictures in other colour spaces look the same after reading and after writing."""

import io
import itertools
import struct
import time
import zlib

import numpy as np
import pytest
from colour_files import RGB_SPACES, encode, grey_profile, look, profile_of
from PIL import Image, ImageCms
from profiles import GREY, photo

from dr2pipe.core import images
from dr2pipe.core.images import colour
from dr2pipe.core.images.writing import _packed


def in_space(srgb, space, bits):
    wide = srgb.astype(np.uint16) * 257
    found = wide if space is None else space.from_srgb(wide)
    return found if bits == 16 else np.round(found / 257).astype(np.uint8)


@pytest.mark.parametrize("name", RGB_SPACES)
@pytest.mark.parametrize(
    ("kind", "bits"), [("PNG", 8), ("PNG", 16), ("JPEG", 8), ("TIFF", 8), ("TIFF", 16)]
)
def test_rgb_profiles(name, kind, bits):
    profile, srgb = profile_of(name), photo()
    space = colour.space_of_profile(profile)
    data = encode(in_space(srgb, space, bits), kind, profile)
    picture = images.decode_image(data, keep_own=True)
    # Eight linear bits have few levels for the shadows; JPEG rounds in the wider space.
    steps = 3 if name == "linear" and bits == 8 else 1.5 if kind == "JPEG" else 1
    assert np.abs(picture.pixels.astype(float) - srgb).mean() < steps
    # As restore writes it: sRGB, and tagged so.
    result = images.encode_png(picture.pixels, profile=picture.profile)
    assert np.abs(look(result) - picture.pixels).mean() < 0.6
    if bits == 8:
        assert np.abs(look(data) - look(result)).mean() < 1.5
    # As inpaint writes it: in the file's own space, unchanged where nothing was changed.
    where = np.zeros(srgb.shape[:2], bool)
    where[10:20, 10:30] = True
    own = picture.own.changed(255 - picture.pixels, where)
    assert own.dtype == (np.uint16 if bits == 16 else np.uint8)
    assert (own[~where] == picture.own.levels[~where]).all()
    written = images.decode_image(images.encode_png(own, profile=picture.own.profile)).pixels
    difference = np.abs(written.astype(float) - (255 - picture.pixels.astype(float)))[where]
    assert difference.mean() < 4 * steps


@pytest.mark.parametrize("name", GREY)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_profiles(name, bits, kind):
    profile = grey_profile(GREY[name])
    srgb = photo()[..., 1].copy()
    space = colour.space_of_profile(profile)
    assert space.is_grey
    data = encode(in_space(srgb, space, bits), kind, profile)
    picture = images.decode_image(data, keep_own=True)
    assert np.abs(picture.pixels[..., 0].astype(float) - srgb).mean() < (3 if bits == 8 else 1)
    assert (picture.pixels == picture.pixels[..., :1]).all()
    result = images.encode_png(picture.pixels, profile=picture.profile)
    if bits == 8:
        assert np.abs(look(data) - look(result)).mean() < 1.5
    where = np.zeros(srgb.shape, bool)
    where[5:9, 5:9] = True
    own = picture.own.changed(picture.pixels, where)
    assert own.ndim == 2
    assert (own[~where] == picture.own.levels[~where]).all()
    top = 65535 if bits == 16 else 255
    assert np.abs(own.astype(float) - picture.own.levels).max() < top * 0.02


def test_curves_agree_with_littlecms():
    for name in RGB_SPACES:
        profile = profile_of(name)
        pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        ours = colour.space_of_profile(profile).to_srgb(pixels.astype(np.uint16) * 257) / 257
        theirs = np.asarray(colour.convert(Image.fromarray(pixels), profile, None)).astype(float)
        assert np.abs(ours - theirs).mean() < 0.5, name
        assert np.percentile(np.abs(ours - theirs), 99) < 3, name


def test_srgb_is_left_as_it_is():
    profile = images.decode_image(encode(photo(), "PNG", colour.srgb_profile())).profile
    assert profile == colour.srgb_profile()
    picture = images.decode_image(encode(photo(), "PNG", colour.srgb_profile()), keep_own=True)
    assert (picture.pixels == photo()).all()
    assert images.decode_image(encode(photo(), "PNG", None)).profile is None


def png_with(pixels, *chunks):
    data = images.encode_png(pixels)
    return data[:33] + b"".join(map(_packed, chunks)) + data[33:]


def test_png_tags_of_colour():
    linear = colour.space_of_primaries(colour.SRGB_PRIMARIES, 1.0)
    levels = in_space(photo(), linear, 16)
    gamma = (b"gAMA", struct.pack(">I", 100_000))
    picture = images.decode_image(png_with(levels, gamma), keep_own=True)
    assert np.abs(picture.pixels.astype(float) - photo()).mean() < 1
    assert picture.own.chunks == (gamma,)
    # cICP counts before a profile, and sRGB before gAMA.
    p3 = in_space(photo(), colour.space_of_cicp(12, 13), 8)
    iccp = (b"iCCP", b"x\0\0" + zlib.compress(profile_of("prophoto")))
    found = images.decode_image(png_with(p3, (b"cICP", bytes([12, 13, 0, 1])), iccp))
    assert np.abs(found.pixels.astype(float) - photo()).mean() < 1
    found = images.decode_image(png_with(photo(), (b"sRGB", b"\0"), gamma))
    assert (found.pixels == photo()).all()
    usual = images.decode_image(png_with(photo(), (b"gAMA", struct.pack(">I", 45455))))
    assert (usual.pixels == photo()).all()


@pytest.mark.parametrize(
    "chunk",
    [(b"cICP", bytes([9, 16, 0, 1])), (b"cICP", b"\x09"), (b"gAMA", b"\0\0\0\0")],
)
def test_tags_that_cannot_be_used_are_told(chunk):
    picture = images.decode_image(png_with(photo(), chunk))
    assert (picture.pixels == photo()).all()
    assert any("taken for sRGB" in warning for warning in picture.warnings)


CICP_P3, CICP_PQ = (b"cICP", bytes([12, 13, 0, 1])), (b"cICP", bytes([9, 16, 0, 1]))
ICCP = (b"iCCP", b"x\0\0" + zlib.compress(profile_of("prophoto")))
CHUNKS = {
    b"cICP": [None, CICP_P3, CICP_PQ, (b"cICP", b"\x09"), (b"cICP", bytes([12, 13, 0, 0]))],
    b"iCCP": [None, ICCP, (b"iCCP", b"x\0\0" + zlib.compress(b"no profile" * 50))],
    b"gAMA": [None, (b"gAMA", struct.pack(">I", 100_000)), (b"gAMA", b"\0\0\0\0")],
    b"cHRM": [None, (b"cHRM", bytes(32))],
}


@pytest.mark.parametrize("chunks", list(itertools.product(*CHUNKS.values())))
def test_a_tag_that_cannot_be_used_leaves_the_word_to_the_next(chunks):
    """The first of cICP, profile and gAMA that can be used counts (PNG 3, section 4.3)."""
    usable = [CICP_P3, ICCP, CHUNKS[b"gAMA"][1]]
    expected = next((chunk for chunk in chunks if chunk in usable), None)
    picture = images.decode_image(png_with(photo(), *filter(None, chunks)))
    alone = images.decode_image(png_with(photo(), *filter(None, [expected])))
    assert (picture.pixels == alone.pixels).all()
    before = chunks if expected is None else chunks[: chunks.index(expected)]
    assert bool(picture.warnings) >= any(before)


@pytest.mark.parametrize("damage", [slice(0, 100), slice(0, 300), slice(130, None), slice(0, 140)])
def test_damaged_profiles_are_told(damage):
    data = encode(photo(), "JPEG", profile_of("adobe_rgb")[damage])
    picture = images.decode_image(data)
    assert picture.pixels.shape == photo().shape
    assert any("profile" in warning for warning in picture.warnings)


def test_a_profile_for_other_pixels_is_told():
    picture = images.decode_image(encode(photo(), "PNG", grey_profile(1.0)))
    assert (picture.pixels == photo()).all()
    assert any("GRAY" in warning for warning in picture.warnings)


def test_cameras_name_adobe_rgb_in_exif():
    space = colour.adobe_rgb()
    exif = Image.Exif()
    exif._ifds = {}
    exif.get_ifd(0x8769)[0xA001] = 65535
    exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
    buffer = io.BytesIO()
    pixels = in_space(photo(), space, 8)
    Image.fromarray(pixels).save(buffer, "JPEG", quality=100, subsampling=0, exif=exif)
    picture = images.decode_image(buffer.getvalue())
    assert np.abs(picture.pixels.astype(float) - photo()).mean() < 2
    assert picture.profile == colour.srgb_profile()


def test_inks_and_lab_by_their_profile():
    lab = ImageCms.profileToProfile(
        Image.fromarray(photo()),
        ImageCms.createProfile("sRGB"),
        ImageCms.createProfile("LAB"),
        outputMode="LAB",
    )
    buffer = io.BytesIO()
    lab.save(buffer, "TIFF")
    picture = images.decode_image(buffer.getvalue())
    assert np.abs(picture.pixels.astype(float) - photo()).mean() < 2
    buffer = io.BytesIO()
    Image.fromarray(photo()).convert("CMYK").save(buffer, "TIFF")
    picture = images.decode_image(buffer.getvalue())
    assert any("without a colour profile" in warning for warning in picture.warnings)


def test_the_srgb_profile_is_the_same_at_all_times():
    first = colour.srgb_profile()
    time.sleep(1.1)  # LittleCMS writes the second at which it makes a profile
    assert colour.srgb_profile() == first
    assert ImageCms.getProfileName(ImageCms.ImageCmsProfile(io.BytesIO(first))).strip()
