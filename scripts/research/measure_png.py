"""Size and time of PNG files by encoder, level and filter, on pictures of 512 px.

Usage: ``python scripts/research/measure_png.py FACES`` with a folder of sharp pictures. Besides them
it takes the same ones reduced to 128 px and enlarged, as smooth as networks' results, and those with
noise. Times are of the thread, the best of three, so that other programs disturb them little.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
from PIL import Image

from dr2pipe.core import images

_SIDE_PX, _SMALL_PX, _SIGMA, _REPEATS = 512, 128, 10, 3
_FILTERS = {
    "sub": cv2.IMWRITE_PNG_FILTER_SUB,
    "up": cv2.IMWRITE_PNG_FILTER_UP,
    "average": cv2.IMWRITE_PNG_FILTER_AVG,
    "paeth": cv2.IMWRITE_PNG_FILTER_PAETH,
    "all": cv2.IMWRITE_PNG_ALL_FILTERS,
}
_STRATEGIES = {
    "": cv2.IMWRITE_PNG_STRATEGY_DEFAULT,
    ", run lengths": cv2.IMWRITE_PNG_STRATEGY_RLE,
}
Encode = Callable[[images.Pixels], bytes]


def encoders() -> dict[str, Encode]:
    """Everything that is compared, by name."""
    found: dict[str, Encode] = {}
    for level in range(7):
        found[f"dr2pipe, level {level}"] = partial(images.encode_png, compression=level)
    for level in range(7):
        found[f"Pillow, level {level}"] = partial(_by_pillow, level=level)
    for name, number in _FILTERS.items():
        for said, strategy in _STRATEGIES.items():
            options = [
                cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, strategy,
                cv2.IMWRITE_PNG_FILTER, number,
            ]  # fmt: skip
            found[f"OpenCV, level 1, {name}{said}"] = partial(_by_opencv, options=options)
    return found


def _by_pillow(pixels: images.Pixels, *, level: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=level)
    return buffer.getvalue()


def _by_opencv(pixels: images.Pixels, *, options: list[int]) -> bytes:
    done, data = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
    assert done
    return data.tobytes()


def measure(encode: Encode, pictures: list[images.Pixels]) -> tuple[float, float]:
    """Mean milliseconds and kB of a picture."""
    seconds, count = float("inf"), 0
    for _ in range(_REPEATS):
        start = time.thread_time()
        count = sum(len(encode(pixels)) for pixels in pictures)
        seconds = min(seconds, time.thread_time() - start)
    return 1e3 * seconds / len(pictures), count / len(pictures) / 1e3


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("faces", help="folder of pictures")
    parser.add_argument("--count", type=int, default=12)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    paths = images.find_images(options.faces).paths[: options.count]
    resize, side = images.resize_pixels, (_SIDE_PX, _SIDE_PX)
    sharp = [resize(images.read_image(path).pixels, side) for path in paths]
    smooth = [resize(resize(pixels, (_SMALL_PX, _SMALL_PX)), side) for pixels in sharp]
    rng = np.random.default_rng(0)
    noisy = [images.round_to_uint8(p + rng.normal(0, _SIGMA, p.shape)) for p in smooth]
    kinds = {"sharp": sharp, "smooth": smooth, "noisy": noisy}
    print(f"| encoder | {' | '.join(f'{kind}, ms | kB' for kind in kinds)} |")
    print("|---" * (1 + 2 * len(kinds)) + "|")
    for name, encode in encoders().items():
        cells = [f"{ms:.1f} | {kb:.0f}" for ms, kb in (measure(encode, p) for p in kinds.values())]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
