"""The demo: degrade two public-domain portraits badly, and restore them by the default model.

Usage: ``python scripts/demo.py [FOLDER]``, by default ``demo/``. It needs ``dr2pipe[demo]``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from dr2pipe.cli import report_errors
from dr2pipe.cli.commands import quiet_libraries
from dr2pipe.core import images
from dr2pipe.core.config import load_config, resource, stable_seed
from dr2pipe.core.errors import Dr2pipeError
from dr2pipe.core.extras import needs_extra
from dr2pipe.core.sheets import side_by_side
from dr2pipe.degradations import codecs
from dr2pipe.metrics import measure
from dr2pipe.runs.restore import RestoreConfig, restore_folder

SEED = 0
_ORIGINAL_SIZE_PX, _DEGRADED_SIZE_PX, _SHOWN_SIZE_PX = 128, 64, 256

# Five points of an aligned face (eyes, nose tip, mouth corners; x, y) as shares of its side:
# where the FFHQ alignment puts them on average.
_TEMPLATE = np.array(
    [[0.377, 0.469], [0.623, 0.469], [0.501, 0.613], [0.393, 0.725], [0.611, 0.725]]
)
# The same points in the two pictures, in pixels, placed by hand.
_LANDMARKS = {
    "grace_hopper": [[221.5, 189], [304.5, 186.5], [268.5, 240], [232.5, 280], [300, 277.5]],
    "eileen_collins": [[202.5, 101], [248, 103.5], [223.5, 127.5], [205, 143.5], [243.5, 144.5]],
}


def run_demo(folder: str | Path) -> str:
    """Fill ``folder`` with input/, original/, output/ and compare/; return a table as text."""
    folder = Path(folder)
    config = load_config(
        RestoreConfig,
        resource("configs") / "restore" / "portrait64.yaml",
        [f"input={folder / 'input'}", f"output={folder / 'output'}", "save_coarse=true"],
    )
    originals = {
        name: crop(load(), _LANDMARKS[name], _ORIGINAL_SIZE_PX) for name, load in _PORTRAITS.items()
    }
    for name, pixels in originals.items():
        small = _resized(pixels, _DEGRADED_SIZE_PX)
        degraded = degrade(small, np.random.default_rng(stable_seed(SEED, name)))
        images.write_png(folder / "original" / f"{name}.png", pixels)
        images.write_png(folder / "input" / f"{name}.png", degraded)
    summary = restore_folder(config)
    if summary.exit_code:
        failures = (folder / "output" / "failures.jsonl").read_text()
        raise Dr2pipeError(f"the demo failed: {failures}")
    lines = [f"{'portrait':16} {'stage':10} {'PSNR dB':>8} {'SSIM':>6}"]
    for name, original in originals.items():
        stages = {
            "degraded": _read(folder / "input" / f"{name}.png"),
            "coarse": _read(folder / "output" / "coarse" / f"{name}.png"),
            "restored": _read(folder / "output" / "restored" / f"{name}.png"),
        }
        for stage, pixels in stages.items():
            compared = _resized(pixels, _ORIGINAL_SIZE_PX)
            values = measure(
                images.to_tensor(compared), images.to_tensor(original), ["psnr", "ssim"]
            )
            lines.append(f"{name:16} {stage:10} {values['psnr'][0]:8.2f} {values['ssim'][0]:6.3f}")
        shown = [_resized(pixels, _SHOWN_SIZE_PX) for pixels in (*stages.values(), original)]
        images.write_png(folder / "compare" / f"{name}.png", side_by_side(shown))
    lines.append(f"pictures (degraded | coarse | restored | original): {folder / 'compare'}")
    return "\n".join(lines)


def crop(pixels: np.ndarray, landmarks: Sequence[Sequence[float]], size: int) -> np.ndarray:
    """Cut out the face around five landmarks (x, y in pixels) as (size,size,3), FFHQ-aligned."""
    # Rotation, scale and shift (a, b, x, y) that bring the landmarks closest to the template.
    source, target = np.asarray(landmarks, float), _TEMPLATE * _SHOWN_SIZE_PX
    x, y = source.T
    zero, one = np.zeros(5), np.ones(5)
    equations = np.concatenate(
        [np.stack([x, -y, one, zero], axis=1), np.stack([y, x, zero, one], axis=1)]
    )
    a, b, shift_x, shift_y = np.linalg.lstsq(equations, target.T.ravel(), rcond=None)[0]
    matrix = np.array([[a, -b, shift_x], [b, a, shift_y]])
    side = (_SHOWN_SIZE_PX, _SHOWN_SIZE_PX)
    aligned = cv2.warpAffine(
        pixels, matrix, side, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101
    )
    return images.resize_pixels(aligned, (size, size))


def degrade(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Degrade a 64-pixel face by blur, strong noise and strong JPEG compression."""
    blurred = cv2.GaussianBlur(pixels, (0, 0), sigmaX=0.8).astype(float)
    noisy = images.round_to_uint8(blurred + rng.normal(0, 50, pixels.shape))
    return codecs.jpeg_roundtrip(noisy, quality=20)


def _grace_hopper() -> np.ndarray:
    with needs_extra("demo"):
        from matplotlib.cbook import get_sample_data

    return images.read_image(get_sample_data("grace_hopper.jpg", asfileobj=False)).pixels


def _eileen_collins() -> np.ndarray:
    with needs_extra("demo"):
        import skimage.data
    return skimage.data.astronaut()


_PORTRAITS: dict[str, Callable[[], np.ndarray]] = {
    "grace_hopper": _grace_hopper,
    "eileen_collins": _eileen_collins,
}


def _read(path: Path) -> np.ndarray:
    return images.read_image(path).pixels


def _resized(pixels: np.ndarray, side: int) -> np.ndarray:
    return images.resize_pixels(pixels, (side, side))


def main() -> int:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", default="demo", help="folder to fill (demo)")
    options = parser.parse_args()
    quiet_libraries()
    print(run_demo(options.folder))
    return 0


if __name__ == "__main__":
    sys.exit(report_errors(main))
