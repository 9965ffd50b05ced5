"""Reading and writing image files, and converting between pixels and tensors.

No other module of the package decodes pictures or deals with the order of colours. Files become
a :class:`Picture` (uint8 RGB, upright, with the metadata that a result keeps); results are
written as PNG. Networks see float32 (B,3,H,W) RGB in [-1,1].
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from dr2pipe.core import files
from dr2pipe.core.errors import PictureError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
MAX_PIXELS = 64_000_000
MIN_SIDE_PX = 8
# The first bytes of PNG, JPEG, WebP and BMP files, and of TIFF.
_SIGNATURES = (b"\x89PNG", b"\xff\xd8", b"RIFF", b"BM")
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*")
# Several threads decode at once, but only one of them a picture of more pixels than this.
_LARGE_PIXELS = 4_000_000
# How whole files end, but for what some programs append.
_ENDINGS, _TRAILING_BYTES = {"PNG": b"IEND", "JPEG": b"\xff\xd9"}, 1 << 16
_LARGE_DECODE = threading.Lock()
# Of the TIFF tags below EXIF, those that describe the picture, not its layout in the file.
_DESCRIPTIVE_TAGS = {
    ExifTags.Base.ImageDescription,
    ExifTags.Base.Make,
    ExifTags.Base.Model,
    ExifTags.Base.Software,
    ExifTags.Base.DateTime,
    ExifTags.Base.Artist,
}
MAX_ASPECT = 4.0
_WITH_ALPHA = ("LA", "PA", "RGBA", "La", "RGBa")  # modes of Pillow


@dataclass
class Picture:
    """A decoded picture.

    Attributes:
        pixels: (H,W,3) uint8 RGB, EXIF orientation applied.
        alpha: (H,W) uint8, or None.
        icc_profile: an RGB profile of the file, or None.
        exif: EXIF block with the orientation reset, or None.
        sha256: hex digest of the file's bytes.
        warnings: what the manifest should tell about this file.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    icc_profile: bytes | None = None
    exif: bytes | None = None
    sha256: str = ""
    warnings: list[str] = field(default_factory=list)

    def resized(self, size: int) -> torch.Tensor:
        """The picture as (1,3,size,size) float32 in [-1,1]; the aspect ratio is not kept.

        Bicubic with antialiasing on 8-bit values, as DR2 prepares its input files.
        """
        # Another large picture is not decoded meanwhile: both together would need much memory.
        with _LARGE_DECODE if self.pixels.size > 3 * _LARGE_PIXELS else nullcontext():
            return to_tensor(resize_pixels(self.pixels, (size, size)))


# -- reading ---------------------------------------------------------------------------------


def find_images(
    folder: str | Path, *, exclude: tuple[Path, ...] = (), with_results: bool = False
) -> Iterator[Path]:
    """Paths with an image extension (any letter case) below ``folder``, sorted.

    Linked folders are entered once, so a loop of links ends. Broken links, special files and
    folders that may not be opened are listed too, so that reading them reports the fault.
    Left out are ``exclude`` (folders and files) and, unless ``with_results``, earlier results.
    """
    folder = Path(folder)
    excluded = {os.path.realpath(path) for path in exclude}
    seen: set[str] = set()
    found: list[Path] = []
    unreadable: list[Path] = []

    def note(error: OSError) -> None:  # reading the folder as a picture tells why
        unreadable.append(Path(error.filename))

    for parent, folders, names in os.walk(folder, followlinks=True, onerror=note):
        real = os.path.realpath(parent)
        if real in seen or real in excluded:
            folders.clear()
            continue
        seen.add(real)
        is_run = {"run.yaml", "manifest.jsonl"} <= set(names) and Path(parent) != folder
        if is_run and not with_results:
            folders.clear()
            continue
        folders.sort()
        here = (Path(parent) / name for name in names if _is_image_name(name))
        found += [path for path in here if os.path.realpath(path) not in excluded]
    yield from sorted(found + unreadable, key=lambda path: path.relative_to(folder).parts)


def _is_image_name(name: str) -> bool:
    # macOS keeps a companion "._name" of each file on foreign disks; it is no picture.
    return name.lower().endswith(EXTENSIONS) and not name.startswith("._")


def read_file(path: str | Path, *, max_bytes: int = 1 << 29) -> bytes:
    """The bytes of a regular file.

    Raises:
        PictureError: no such file, one that cannot be read, is empty, or has more than
            ``max_bytes``; a broken link, a pipe, or a folder.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        reason = "the link points to nothing" if os.path.islink(path) else "no such file"
        raise PictureError(reason) from None
    except OSError as error:  # a loop of links, a missing permission on a folder
        raise PictureError(f"cannot be opened: {error.strerror}") from None
    if stat.S_ISDIR(status.st_mode):
        raise PictureError("the folder cannot be opened")
    if not stat.S_ISREG(status.st_mode):
        raise PictureError("not a regular file")
    if status.st_size == 0:
        raise PictureError("the file is empty")
    if status.st_size > max_bytes:
        raise PictureError(f"the file has {status.st_size} bytes, more than {max_bytes}")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise PictureError(f"cannot be read: {error.strerror}") from None


def read_image(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode a file; the header is checked before any pixel is.

    Raises:
        PictureError: not a picture, truncated, more than ``max_pixels``, too small or too
            narrow to hold a face, or of an unsupported kind.
    """
    return decode_image(read_file(path), max_pixels=max_pixels)


def check_file(path: str | Path) -> tuple[int, int]:
    """Width and height of a picture file, without decoding it.

    Raises:
        PictureError: the file's header or end shows that it is not a usable picture.
    """
    try:
        with Image.open(path) as image:
            _check_shape(*image.size, MAX_PIXELS)
            size, ending = image.size, _ENDINGS.get(image.format or "")
    except PictureError:
        raise
    except Exception:
        return decode_image(read_file(path)).pixels.shape[1::-1]  # says what is wrong
    if ending is not None and ending not in read_file(path)[-_TRAILING_BYTES:]:
        raise PictureError("truncated or damaged: its end is missing")
    return size


def hash_bytes(data: bytes) -> str:
    """sha256 of a file's bytes, as hex digits."""
    return hashlib.sha256(data).hexdigest()


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """As :func:`read_image`, from the bytes of a file."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            _check_shape(width, height, max_pixels)
            large = width * height > _LARGE_PIXELS
            with _LARGE_DECODE if large else nullcontext():
                picture = _decode(image, data)
    except Image.DecompressionBombError:
        raise PictureError("the header says more pixels than Pillow decodes safely") from None
    except UnidentifiedImageError:
        if data.startswith(_TIFF_SIGNATURES):
            raise PictureError("damaged, or a kind of TIFF that is not supported") from None
        if data.startswith(_SIGNATURES):
            raise PictureError("truncated or damaged: its header is incomplete") from None
        raise PictureError("not an image file, whatever its name says") from None
    except PictureError:
        raise
    except MemoryError:
        raise PictureError("not enough memory to decode it") from None
    # Decoders raise many kinds (OSError, SyntaxError, struct.error, ...) on damaged data.
    except Exception as error:
        raise PictureError(f"truncated or damaged: {error}") from error
    picture.sha256 = hash_bytes(data)
    return picture


def _check_shape(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        allowed = f"more than the {max_pixels / 1e6:.0f} million pixels allowed (max_pixels)"
        raise PictureError(f"the header says {width}x{height} pixels, {allowed}")
    if min(width, height) < MIN_SIDE_PX:
        raise PictureError(f"{width}x{height} pixels are too few (at least {MIN_SIDE_PX} a side)")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise PictureError(f"{width}x{height} is too narrow for a face (at most 1:{MAX_ASPECT:g})")


def _decode(image: Image.Image, data: bytes) -> Picture:
    warnings: list[str] = []
    image.load()  # damaged pixels are found here, before anything else reads them
    icc_profile = image.info.get("icc_profile")
    orientation, exif = _read_exif(image, warnings)
    if _is_16_bit_colour(image, data):
        # Pillow has no 16-bit RGB mode and would need a lossy detour; OpenCV reads it as it is.
        pixels, alpha = _split_alpha(_decode_16_bit(data))
        warnings.append("16 bits a channel reduced to 8")
    else:
        if image.mode in ("F", "I"):
            raise PictureError("floating-point and 32-bit pictures are not supported")
        if image.mode in ("CMYK", "YCCK", "LAB"):
            warnings.append(f"{image.mode} converted to RGB without its colour profile")
        if image.mode.startswith("I;16"):
            pixels, alpha = _split_alpha(_from_16_bit(np.asarray(image)))
            if isinstance(image, TiffImageFile) and image.tag_v2.get(262) == 0:  # zero means white
                pixels = 255 - pixels
        else:
            transparent = "transparency" in image.info or image.mode in _WITH_ALPHA
            pixels, alpha = _split_alpha(
                np.asarray(image.convert("RGBA" if transparent else "RGB"))
            )
    if orientation in range(2, 9):
        pixels = _upright(pixels, orientation)
        alpha = None if alpha is None else _upright(alpha, orientation)
    if alpha is not None and alpha.min() == 255:
        alpha = None
    # A grey or CMYK profile on an RGB result would be wrong; bytes 16..20 name the colour space.
    keep_profile = icc_profile is not None and icc_profile[16:20] == b"RGB "
    height, width = pixels.shape[:2]
    if height != width:
        warnings.append(f"{width}x{height} squeezed to a square")
    return Picture(
        np.ascontiguousarray(pixels),
        alpha,
        icc_profile if keep_profile else None,
        exif,
        warnings=warnings,
    )


def _is_16_bit_colour(image: Image.Image, data: bytes) -> bool:
    if image.format == "PNG":
        return data[24] == 16 and data[25] in (2, 4, 6)  # bit depth; colour type with channels
    if isinstance(image, TiffImageFile):
        bits = image.tag_v2.get(258, (8,))  # BitsPerSample
        is_rgb = image.tag_v2.get(262) == 2  # PhotometricInterpretation
        return is_rgb and set(bits) == {16}
    return False


def _decode_16_bit(data: bytes) -> np.ndarray:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise PictureError("truncated or damaged 16-bit picture")
    pixels = _from_16_bit(pixels)
    if pixels.ndim == 3:
        pixels[..., :3] = pixels[..., 2::-1].copy()  # OpenCV's order is BGR
    return pixels


def _from_16_bit(pixels: np.ndarray) -> np.ndarray:
    """65535 -> 255, rounded; row by row, since large pictures have to fit many times over."""
    if pixels.dtype.itemsize == 1:
        return pixels
    reduced = np.empty(pixels.shape, np.uint8)
    for row, target in zip(pixels, reduced, strict=True):
        target[:] = (row.astype(np.uint32) + 128) // 257
    return reduced


def _read_exif(image: Image.Image, warnings: list[str]) -> tuple[int, bytes | None]:
    """Orientation (1..8), and the EXIF block to keep: upright, without layout tags."""
    try:
        exif = image.getexif()
        orientation = exif.get(ExifTags.Base.Orientation, 1)
        for tag in list(exif):
            # Tags from ImageWidth to JPEGTables say how a TIFF file lays out its pixels.
            if 254 <= tag <= 347 and tag not in _DESCRIPTIVE_TAGS:
                del exif[tag]
        if not len(exif):
            return orientation, None
        exif[ExifTags.Base.Orientation] = 1
        return orientation, exif.tobytes()
    # Damaged blocks raise many kinds; the pixels are what matters.
    except Exception as error:
        warnings.append(f"its EXIF block is damaged and was dropped: {error}")
        return 1, None


def _split_alpha(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    if pixels.ndim == 2:
        return np.repeat(pixels[..., None], 3, axis=2), None
    alpha = pixels[..., 3] if pixels.shape[2] == 4 else None
    return pixels[..., :3], alpha


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image.info["exif"] = exif.tobytes()
    return np.asarray(ImageOps.exif_transpose(image))


# -- arrays and tensors ----------------------------------------------------------------------


def resize_pixels(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H,W[,3]) uint8 resized to ``size`` = (height, width), bicubic with antialiasing.

    One direction at a time, the one that leaves fewer pixels first. Versions of Pillow disagree on
    the order, and 8-bit values are rounded between the two.
    """
    height, width = size
    rows, columns = pixels.shape[:2]
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    steps = [(columns, height), (width, height)]
    if rows * width <= height * columns:
        steps[0] = (width, rows)
    for step in steps:
        if picture.size != step:
            picture = picture.resize(step, Image.Resampling.BICUBIC)
    return np.asarray(picture)


def resize_tensor(image: torch.Tensor, size: int) -> torch.Tensor:
    """(B,C,H,W) resized to (B,C,size,size), bicubic (a = -0.5) with antialiasing, unclamped.

    The step between DR2's stages: what torchvision's ``Resize`` does to tensors.
    """
    if image.shape[-2:] == (size, size):
        return image
    return F.interpolate(
        image, size=(size, size), mode="bicubic", antialias=True, align_corners=False
    )


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """(H,W,3) uint8 RGB, or a stack (B,H,W,3), as (B,3,H,W) float32 in [-1,1]."""
    stack = torch.from_numpy(np.array(pixels if pixels.ndim == 4 else pixels[None]))
    return stack.permute(0, 3, 1, 2).float().div(255).sub(0.5).div(0.5).contiguous()


def to_uint8(image: torch.Tensor) -> np.ndarray:
    """(B,3,H,W) in [-1,1] as (B,H,W,3) uint8 RGB: rounded half to even, saturated."""
    levels = image.detach().to("cpu", torch.float64, copy=True)  # large: changed in place
    levels.add_(1).mul_(127.5).round_().clamp_(0, 255)
    return levels.to(torch.uint8).permute(0, 2, 3, 1).numpy()


def round_to_uint8(pixels: np.ndarray) -> np.ndarray:
    """Floating-point levels 0..255, any shape, rounded and saturated."""
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


# -- writing ---------------------------------------------------------------------------------


def write_png(
    path: str | Path,
    pixels: np.ndarray,
    *,
    alpha: np.ndarray | None = None,
    icc_profile: bytes | None = None,
    exif: bytes | None = None,
    text: dict[str, str] | None = None,
    partial_folder: str | Path | None = None,
) -> None:
    """Write (H,W,3) uint8 RGB as PNG, whole or not at all; ``text`` goes into iTXt entries."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if alpha is not None:
        image.putalpha(Image.fromarray(np.ascontiguousarray(alpha)))
    entries = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        entries.add_itxt(key, value)
    keep = {k: v for k, v in (("icc_profile", icc_profile), ("exif", exif)) if v}
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=entries, compress_level=4, **keep)
    files.write_bytes(path, buffer.getvalue(), partial_folder=partial_folder)
