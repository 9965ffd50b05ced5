import io
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from dr2pipe.core import images
from dr2pipe.core.errors import ConfigError

RNG = np.random.default_rng(0)
# Two bands of rows, with smooth and noisy parts.
LEVELS = np.add.outer(np.arange(500) // 3, np.arange(900) // 5)[..., None] * [1, 2, 3] % 200
LEVELS[:, 450:] += RNG.integers(0, 56, LEVELS[:, 450:].shape)
COLOUR, ALPHA = LEVELS.astype(np.uint8), LEVELS[..., 1].astype(np.uint8)
DEEP, DEEP_ALPHA = (LEVELS * 251).astype(np.uint16), (LEVELS[..., 2] * 201).astype(np.uint16)


@pytest.mark.parametrize("compression", [0, 1, 4, 9])
@pytest.mark.parametrize(
    ("pixels", "alpha"),
    [
        (COLOUR, None),
        (COLOUR, ALPHA),
        (COLOUR[..., 0], None),
        (COLOUR[..., 0], ALPHA),
        (COLOUR[:, ::-1], None),  # not contiguous
        (COLOUR[:1, :1], None),
    ],
)
def test_other_programs_read_what_was_written(pixels, alpha, compression):
    data = images.encode_png(pixels, alpha=alpha, compression=compression)
    with Image.open(io.BytesIO(data)) as image:
        read = np.asarray(image)
    wanted = pixels if alpha is None else np.dstack([pixels, alpha])
    assert (read == wanted).all()


@pytest.mark.parametrize("compression", [0, 1, 6])
def test_16_bits_are_written_without_loss(compression):
    for pixels in (DEEP, DEEP[..., 1]):
        data = images.encode_png(pixels, compression=compression)
        read = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        assert (read == (pixels[..., ::-1] if pixels.ndim == 3 else pixels)).all()
        data = images.encode_png(pixels, alpha=DEEP_ALPHA, compression=compression)
        read = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        assert (read[..., 3] == DEEP_ALPHA).all()


def test_higher_levels_make_smaller_files_of_the_same_pixels():
    sizes = [len(images.encode_png(COLOUR, compression=level)) for level in (0, 1, 6)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[1] < 0.8 * sizes[0]


def test_every_chunk_has_its_checksum():
    data = images.encode_png(COLOUR, text={"a": "b"})
    place, names = 8, []
    while place < len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        body = data[place + 4 : place + 8 + length]
        assert zlib.crc32(body) == int.from_bytes(data[place + 8 + length :][:4], "big")
        names.append(body[:4])
        place += 12 + length
    assert names[0] == b"IHDR"
    assert names[-1] == b"IEND"
    assert names.index(b"iTXt") < names.index(b"IDAT")


def test_quality_of_jpeg_files():
    size = {
        quality: len(images.encode_picture("a.jpg", COLOUR, quality=quality))
        for quality in (30, None, 100)
    }
    assert size[30] < size[None] < size[100]


@pytest.mark.parametrize(("compression", "quality"), [(-1, None), (10, None), (1, 0), (1, 101)])
def test_settings_out_of_range(compression, quality):
    with pytest.raises(ConfigError, match="choose"):
        images.check_encoding(compression, quality)
