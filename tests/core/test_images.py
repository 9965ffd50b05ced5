import io
import os
import struct
import zlib

import cv2
import numpy as np
import parity
import pytest
import torch
from conftest import make_pixels
from PIL import ExifTags, Image, ImageCms

from dr2pipe.core import images
from dr2pipe.core.errors import PictureError
from dr2pipe.core.images import decode_image, read_image

PIXELS = make_pixels(3, 24, 32)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rgb():
    return Image.fromarray(PIXELS)


def png_header(width, height):
    """A PNG that ends where its pixels would begin."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 1000) + b"IDAT"


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "JPEG"])
def test_formats(kind):
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    picture = decode_image(encoded(rgb(), kind, **options.get(kind, {})))
    assert picture.pixels.shape == (24, 32, 3)
    assert np.abs(picture.pixels.astype(int) - PIXELS).max() <= (6 if kind == "JPEG" else 0)
    assert picture.warnings == []


def test_grey_palette_and_bilevel_become_rgb():
    grey = decode_image(encoded(rgb().convert("L"), "PNG")).pixels
    assert (grey == grey[..., :1]).all()
    palette = decode_image(encoded(rgb().quantize(256), "PNG")).pixels
    assert np.abs(palette.astype(int) - PIXELS).mean() < 8
    bilevel = decode_image(encoded(rgb().convert("1"), "PNG")).pixels
    assert set(np.unique(bilevel)) <= {0, 255}


@pytest.mark.parametrize("extension", [".png", ".tiff"])
def test_16_bit_colour_keeps_its_order_and_rounds(extension):
    deep = np.minimum(PIXELS[..., ::-1].astype(int) * 257 + 100, 65535).astype(np.uint16)
    data = cv2.imencode(extension, deep)[1].tobytes()
    assert np.abs(decode_image(data).pixels.astype(int) - PIXELS).max() <= 1


def test_16_bit_grey_is_scaled_not_clipped():
    ramp = np.linspace(0, 65535, 16 * 16).reshape(16, 16).astype(np.uint16)
    pixels = decode_image(cv2.imencode(".png", ramp)[1].tobytes()).pixels
    assert (pixels[..., 0] == np.round(ramp / 257)).all()


def test_big_endian_and_inverted_16_bit_tiff():
    ramp = np.linspace(0, 65535, 16 * 16).reshape(16, 16).astype(np.uint16)
    plain = encoded(Image.fromarray(ramp), "TIFF")
    inverted = encoded(Image.fromarray(ramp), "TIFF", tiffinfo={262: 0})
    expected = np.round(ramp / 257)
    assert (decode_image(plain).pixels[..., 0] == expected).all()
    assert (decode_image(inverted).pixels[..., 0] == 255 - expected).all()


def test_a_damaged_exif_block_does_not_cost_the_picture():
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "A"
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG", exif=b"Exif\0\0garbage that is no TIFF header")
    picture = decode_image(buffer.getvalue())
    assert (picture.pixels == PIXELS).all()
    assert picture.metadata.exif_for(32, 24) is None
    assert any("EXIF" in warning for warning in picture.warnings)


def test_alpha_is_kept_beside_the_pixels():
    alpha = np.zeros((24, 32), np.uint8)
    alpha[:12] = 200
    image = rgb()
    image.putalpha(Image.fromarray(alpha))
    picture = decode_image(encoded(image, "PNG"))
    assert (picture.pixels[:12] == PIXELS[:12]).all()
    assert (picture.pixels[12:] == PIXELS[11]).all()  # what is hidden takes the nearest colour
    assert (picture.alpha == alpha).all()
    image.putalpha(255)
    assert decode_image(encoded(image, "PNG")).alpha is None


def test_cmyk_is_converted_with_a_warning():
    picture = decode_image(encoded(rgb().convert("CMYK"), "JPEG", quality=100))
    assert np.abs(picture.pixels.astype(int) - PIXELS).mean() < 10
    assert any("CMYK" in warning for warning in picture.warnings)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_and_reset(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.Artist] = "somebody"
    picture = decode_image(encoded(rgb(), "PNG", exif=exif))
    steps = {
        1: PIXELS, 2: PIXELS[:, ::-1], 3: PIXELS[::-1, ::-1], 4: PIXELS[::-1],
        5: PIXELS.transpose(1, 0, 2), 6: np.rot90(PIXELS, -1),
        7: np.rot90(PIXELS, 2).transpose(1, 0, 2), 8: np.rot90(PIXELS),
    }  # fmt: skip
    assert (picture.pixels == steps[orientation]).all()
    kept = Image.Exif()
    kept.load(picture.metadata.exif_for(32, 24))
    assert kept[ExifTags.Base.Orientation] == 1
    assert kept[ExifTags.Base.Artist] == "somebody"


def test_results_keep_profile_exif_alpha_and_text(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = decode_image(encoded(rgb(), "PNG", icc_profile=profile))
    target = tmp_path / "ergebnis_ä😀.png"
    written = images.encode_png(
        PIXELS, alpha=np.full((24, 32), 7, np.uint8), profile=picture.profile,
        metadata=picture.metadata, text={"dr2pipe": '{"τ": 22}'},
    )  # fmt: skip
    target.write_bytes(written)
    with Image.open(target) as image:
        image.load()
        assert image.info["icc_profile"] == profile
        assert image.text["dr2pipe"] == '{"τ": 22}'
        assert image.mode == "RGBA"
    again = read_image(target)
    assert (again.pixels == PIXELS).all()
    assert (again.alpha == 7).all()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"hello, I am a text", "not an image"),
        (encoded(rgb(), "JPEG")[:300], "truncated or damaged"),
        (encoded(rgb(), "PNG")[:200], "truncated or damaged"),
        (cv2.imencode(".png", PIXELS.astype(np.uint16) * 257)[1].tobytes()[:500], "truncated"),
        (png_header(300, 300), "truncated or damaged"),
        (png_header(300, 300)[:30], "header is incomplete"),
        (png_header(30_000, 10), "too narrow for a face"),
        (png_header(20_000, 20_000), "header says more pixels than Pillow"),
        (png_header(9_000, 9_000), "header says 9000x9000.*64 million"),
        (encoded(Image.new("RGB", (1, 1)), "PNG"), "1x1 pixels are too few"),
        (encoded(Image.new("F", (32, 32)), "TIFF"), "floating-point"),
        (cv2.imencode(".tiff", PIXELS.astype(np.float32))[1].tobytes(), "not supported"),
    ],
)
def test_bad_data_says_why(data, says):
    with pytest.raises(PictureError, match=says):
        decode_image(data)


def test_bad_files_say_why(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")
    reasons = {
        "empty.png": "empty", "gone.png": "points to nothing", "pipe.png": "not a regular file",
        "none.png": "no such file", "loop.png": "cannot be opened",
    }  # fmt: skip
    for name, says in reasons.items():
        with pytest.raises(PictureError, match=says):
            read_image(tmp_path / name)
    (tmp_path / "large.png").write_bytes(b"x" * 100)
    with pytest.raises(PictureError, match="100 bytes, more than 99"):
        images.read_file(tmp_path / "large.png", max_bytes=99)


def test_a_folder_that_may_not_be_opened_is_listed(tmp_path, monkeypatch):
    (tmp_path / "secret").mkdir()
    (tmp_path / "a.png").touch()
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    found = images.find_images(tmp_path).paths
    assert [p.name for p in found] == ["a.png", "secret"]
    with pytest.raises(PictureError, match="folder cannot be read"):
        read_image(found[1])


def test_find_images_any_case_and_loops_end(tmp_path):
    for name in ("b.PNG", "a.jpeg", "c.TiF", "d.txt", "sub/e.webp", "sub/ü😀.Jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "result.png").touch()
    found = images.find_images(tmp_path, exclude=(tmp_path / "out",)).paths
    names = [p.relative_to(tmp_path).as_posix() for p in found]
    assert names == ["a.jpeg", "b.PNG", "c.TiF", "sub/e.webp", "sub/ü😀.Jpg"]


def test_glue_equals_the_reference():
    _, arrays = parity.load("dr2_glue")
    picture = decode_image(encoded(Image.fromarray(arrays["img_rgb_uint8"]), "PNG"))
    tensor = picture.resized(256)
    assert torch.equal(tensor[..., ::2, ::2], parity.tensor(arrays["tensor256_strided"]))
    grown = images.resize_tensor(parity.tensor(arrays["lqp64"]), 128)
    assert (grown - parity.tensor(arrays["lqp128"])).abs().max() <= 1e-6
    saved = images.to_uint8(parity.tensor(arrays["save_in"]))[0]
    assert (saved == arrays["save_out_rgb_uint8"]).all()


def test_uint8_and_tensor_are_inverse():
    assert (images.to_uint8(images.to_tensor(PIXELS))[0] == PIXELS).all()


def test_writing_is_whole_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "a.png"
    images.write_png(target, PIXELS)
    before = target.read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        images.write_png(target, PIXELS[::-1])
    assert target.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.png"]


def test_results_may_have_any_shape_and_be_large(tmp_path, monkeypatch):
    path = tmp_path / "wide.png"
    Image.new("RGB", (400, 20)).save(path)
    with pytest.raises(PictureError, match="too narrow"):
        images.check_file(path)
    assert images.check_file(path, is_face=False) == (400, 20)
    assert images.decode_result(path.read_bytes()).pixels.shape == (20, 400, 3)
    monkeypatch.setattr(images.reading, "MAX_RESULT_PIXELS", 400 * 20 - 1)
    with pytest.raises(PictureError, match="more than"):
        images.check_file(path, is_face=False)
    with pytest.raises(PictureError, match="more than"):
        images.decode_result(path.read_bytes())
