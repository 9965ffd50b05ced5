"""The same file gives the same pixels everywhere, whatever kind of file it is."""

import numpy as np
import pytest
from colour_files import grey_profile, profile_of
from conftest import make_pixels
from PIL import ExifTags, Image, ImageCms
from test_file_samples import tiff

from dr2pipe.core import images
from dr2pipe.data.folders import FaceDataset
from dr2pipe.diffusion.pipeline import DR2Pipeline
from dr2pipe.evaluation.protocol import CleanConfig, CleanSet

SIDE = 32
RGB = make_pixels(3, SIDE, SIDE)
DEEP = RGB.astype(np.uint16) * 257


def plain_files(folder):
    """Pictures by Pillow: modes, formats, orientations, profiles, transparency."""
    image = Image.fromarray(RGB)
    for ending in ("png", "jpg", "webp", "bmp", "tif", "gif", "jp2", "jfif", "avif"):
        image.save(folder / f"plain.{ending}", "JPEG" if ending == "jfif" else None)
    for mode in ("L", "1", "P", "CMYK"):
        image.convert(mode).save(folder / f"mode_{mode}.tif")
    image.convert("YCbCr").save(folder / "ycc.jpg")
    image.convert("CMYK").save(folder / "inks.jpg")
    for orientation in range(2, 9):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        image.save(folder / f"turned_{orientation}.jpg", exif=exif)
    for name in ("display_p3", "adobe_rgb", "prophoto", "linear"):
        image.save(folder / f"{name}.png", icc_profile=profile_of(name))
        image.save(folder / f"{name}.jpg", icc_profile=profile_of(name))
    for gamma in (1.0, 1.8):
        image.convert("L").save(folder / f"grey_{gamma}.png", icc_profile=grey_profile(gamma))
    lab = ImageCms.createProfile("LAB")
    ImageCms.profileToProfile(image, ImageCms.createProfile("sRGB"), lab, outputMode="LAB").save(
        folder / "lab.tif"
    )
    alpha = Image.fromarray((np.arange(SIDE * SIDE) % 256).astype(np.uint8).reshape(SIDE, SIDE))
    image.putalpha(alpha)
    image.save(folder / "alpha.png")
    image.convert("LA").save(folder / "grey_alpha.png")
    image.save(folder / "alpha.webp", lossless=True)


def deep_files(folder):
    """16-bit pictures."""
    alpha = np.full((SIDE, SIDE), 40_000, np.uint16)
    images.write_png(folder / "deep.png", DEEP)
    (folder / "deep_alpha.png").write_bytes(images.encode_png(DEEP, alpha=alpha))
    images.write_png(folder / "deep_grey.png", DEEP[..., 0])
    linear = images.encode_png(DEEP, profile=profile_of("linear"))
    (folder / "deep_linear.png").write_bytes(linear)
    for name, data in {
        "chunky": tiff(DEEP),
        "planes": tiff(DEEP, planar=2),
        "infrared": tiff(np.dstack([DEEP, alpha]), extra=(0,)),
        "associated": tiff(np.dstack([DEEP, alpha]), extra=(1,)),
        "negative": tiff(DEEP[..., :1], photometric=0),
        "motorola": tiff(DEEP, order=">"),
    }.items():
        (folder / f"{name}.tif").write_bytes(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    plain_files(folder)
    deep_files(folder)
    return folder


def test_every_entry_reads_alike(folder, unet):
    found = images.find_images(folder).paths
    assert len(found) >= 40
    wanted = {path.name: images.read_image(path).pixels for path in found}
    faces = FaceDataset(folder, size=SIDE, flip=False)
    for i, name in enumerate(faces.names):
        pixels = images.to_uint8(faces[i, 0]["image"][None])[0]
        assert (pixels == wanted[name.rsplit("/", 1)[-1]]).all(), name
    clean = CleanSet(CleanConfig(path=str(folder)), SIDE)
    for i, name in enumerate(clean.names):
        assert (clean.face(i) == wanted[name]).all(), name
    pipeline = DR2Pipeline(unet, None)
    for path in found:
        tensor = pipeline._prepare(Image.open(path))
        expected = images.to_tensor(images.resize_pixels(wanted[path.name], (16, 16)))
        assert (tensor == expected).all(), path.name


def test_a_picture_that_a_program_has_loaded(folder):
    for name in ("turned_6.jpg", "adobe_rgb.png", "mode_L.tif", "alpha.png", "deep_grey.png"):
        image = Image.open(folder / name)
        image.load()
        found = images.picture_of(image).pixels.astype(int)
        assert np.abs(found - images.read_image(folder / name).pixels).max() <= 1, name
