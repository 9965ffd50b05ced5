"""The demo: damage an old photo and two portraits badly, and restore them by the default models.

Usage: ``python scripts/demo.py [FOLDER] [--noise SIGMA]``, by default ``demo/``. It needs
``dr2pipe[demo]``, which brings the pictures: two portraits and a table, all in the public domain.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from dr2pipe.cli import report_errors
from dr2pipe.cli.commands import quiet_libraries
from dr2pipe.core import images
from dr2pipe.core.config import load_config, resource, stable_seed
from dr2pipe.core.errors import Dr2pipeError
from dr2pipe.core.extras import needs_extra
from dr2pipe.core.records import RunRecords
from dr2pipe.core.sheets import side_by_side
from dr2pipe.degradations import codecs
from dr2pipe.faces.align import Alignment, align, cut
from dr2pipe.faces.paste import photo_weights
from dr2pipe.metrics import measure
from dr2pipe.runs.restore import RestoreConfig, restore_folder

SEED = 0
_ORIGINAL_SIZE_PX, _DEGRADED_SIZE_PX, _SHOWN_SIZE_PX = 128, 64, 256


@dataclass(frozen=True)
class Portrait:
    """A picture of one person.

    Attributes:
        load: returns (H,W,3) uint8 sRGB.
        landmarks: eyes, nose and corners of the mouth; x, y in pixels, placed by hand.
        frame: left, top, right, bottom of the part that a print of it shows.
    """

    load: Callable[[], images.Pixels]
    landmarks: Sequence[tuple[float, float]]
    frame: tuple[int, int, int, int]


@dataclass(frozen=True)
class Print:
    """A print of a portrait that lies on the table.

    Attributes:
        portrait: its name.
        x: of its middle, in pixels of the photo.
        y: likewise.
        face_px: side of the aligned face in the photo.
        degrees: by which it is turned clockwise.
    """

    portrait: str
    x: float
    y: float
    face_px: float
    degrees: float


def _grace_hopper() -> images.Pixels:
    with needs_extra("demo"):
        from matplotlib.cbook import get_sample_data

    return images.read_image(get_sample_data("grace_hopper.jpg", asfileobj=False)).pixels


def _eileen_collins() -> images.Pixels:
    with needs_extra("demo"):
        import skimage.data
    return np.asarray(skimage.data.astronaut(), np.uint8)


def _table() -> images.Pixels:
    with needs_extra("demo"):
        import skimage.data
    return np.asarray(skimage.data.coffee(), np.uint8)


PORTRAITS = {
    "grace_hopper": Portrait(
        _grace_hopper,
        [(221.5, 189), (304.5, 186.5), (268.5, 240), (232.5, 280), (300, 277.5)],
        (40, 20, 490, 540),
    ),
    "eileen_collins": Portrait(
        _eileen_collins,
        [(202.5, 101), (248, 103.5), (223.5, 127.5), (205, 143.5), (243.5, 144.5)],
        (80, 0, 370, 300),
    ),
}
PRINTS = [
    Print("grace_hopper", 150, 175, 160, -12),
    Print("eileen_collins", 445, 160, 130, 8),
    Print("eileen_collins", 715, 170, 100, 17),
    Print("grace_hopper", 700, 415, 120, 5),
    Print("eileen_collins", 165, 440, 140, 12),
    Print("grace_hopper", 425, 445, 100, -22),
]
PHOTO_NOISE = 28.0  # standard deviation in levels of 255
_PHOTO_SIZE_PX = (560, 840)  # height, width
_PAPER, _PAPER_BORDER_PX = (236, 230, 216), 9


def run_demo(folder: str | Path, noise: float) -> str:
    """Fill ``folder`` with photo/ and portraits/; return what was measured as text."""
    photo, portraits = Path(folder) / "photo", Path(folder) / "portraits"
    return f"{restore_photo(photo, noise)}\n\n{restore_portraits(portraits)}"


# -- a photo with several faces ----------------------------------------------------------------


def restore_photo(folder: Path, noise: float = PHOTO_NOISE) -> str:
    """Fill ``folder`` with input/, original/ and output/; return a table as text."""
    photo, alignments = compose_photo(PRINTS)
    original = fade(photo)
    images.write_png(folder / "original" / "table.png", original)
    damaged = damage_photo(original, noise, np.random.default_rng(SEED))
    images.write_png(folder / "input" / "table.png", damaged)
    _restore(folder, "default", ["save_compare=true"])
    restored = _read(folder / "output" / "restored" / "table.png")
    (record,) = RunRecords(folder / "output").finished().values()
    lines = [
        f"a photo with {len(PRINTS)} faces; PSNR dB inside the face's mask, against the photo",
        "without blur, noise and JPEG",
        f"{'face':16} {'side px':>7} {'found':>5} {'before':>7} {'after':>7}",
    ]
    for shown, alignment in zip(PRINTS, alignments, strict=True):
        found = "yes" if is_found(alignment, record["faces"]) else "no"
        before, after = (face_psnr(pixels, original, alignment) for pixels in (damaged, restored))
        name = f"{shown.portrait:16} {shown.face_px:7.0f}"
        lines.append(f"{name} {found:>5} {before:7.2f} {after:7.2f}")
    skipped = sum("skipped" in face for face in record["faces"])
    lines.append(f"{len(record['faces'])} faces found, {skipped} of them left as they are")
    lines.append(f"pictures (before | after): {folder / 'output' / 'compare' / 'table.png'}")
    return "\n".join(lines)


def compose_photo(prints: Sequence[Print]) -> tuple[images.Pixels, list[Alignment]]:
    """Prints that lie on a table, (H,W,3) uint8 sRGB, and where the face of each is."""
    photo = images.resize_pixels(_table(), _PHOTO_SIZE_PX)
    alignments = []
    for shown in prints:
        portrait = PORTRAITS[shown.portrait]
        pixels, points = portrait.load(), np.array(portrait.landmarks)
        scale = shown.face_px / align(points).side_px
        left, top, right, bottom = portrait.frame
        size = (round((bottom - top) * scale), round((right - left) * scale))
        paper = cv2.copyMakeBorder(
            images.resize_pixels(pixels[top:bottom, left:right], size),
            *[_PAPER_BORDER_PX] * 4,
            cv2.BORDER_CONSTANT,
            value=_PAPER,
        )
        height, width = paper.shape[:2]
        matrix = cv2.getRotationMatrix2D((width / 2, height / 2), -shown.degrees, 1)
        matrix[:, 2] += [shown.x - width / 2, shown.y - height / 2]
        photo = _laid(photo, paper, matrix)
        on_paper = (points - [left, top]) * scale + _PAPER_BORDER_PX
        alignments.append(align(on_paper @ matrix[:, :2].T + matrix[:, 2]))
    return photo, alignments


def _laid(photo: images.Pixels, paper: images.Pixels, matrix: np.ndarray) -> images.Pixels:
    """The photo with ``paper`` on it, moved by a (2,3) matrix, and its soft shadow."""
    size = photo.shape[1::-1]
    cover = cv2.warpAffine(np.ones(paper.shape[:2], np.float32), matrix, size)
    shadow = cv2.GaussianBlur(np.roll(cover, 4, axis=(0, 1)), (0, 0), 5)
    moved = cv2.warpAffine(paper, matrix, size, flags=cv2.INTER_CUBIC, borderValue=_PAPER)
    mixed = photo * (1 - 0.5 * shadow[..., None]) * (1 - cover[..., None])
    return images.round_to_uint8(mixed + moved * cover[..., None])


def fade(pixels: images.Pixels) -> images.Pixels:
    """Make (H,W,3) uint8 pale and yellow, as an old print."""
    grey = pixels.mean(axis=2, keepdims=True)
    pale = 0.7 * pixels + 0.3 * grey
    return images.round_to_uint8(pale * [0.78, 0.74, 0.64] + [42, 38, 30])


def damage_photo(pixels: images.Pixels, noise: float, rng: np.random.Generator) -> images.Pixels:
    """Damage (H,W,3) uint8 by blur, grain and strong JPEG compression."""
    blurred = cv2.GaussianBlur(pixels, (0, 0), sigmaX=1.5).astype(float)
    noisy = images.round_to_uint8(blurred + rng.normal(0, noise, pixels.shape))
    return codecs.jpeg_roundtrip(noisy, quality=30)


def is_found(alignment: Alignment, faces: Sequence[dict]) -> bool:
    """Whether one of the manifest's faces has all landmarks near those of ``alignment``."""
    for face in faces:
        places = np.array(face["landmarks"]) @ alignment.to_crop[:, :2].T + alignment.to_crop[:, 2]
        if np.abs(places - alignment.landmarks).max() < 0.1:  # of the aligned face's side
            return True
    return False


def face_psnr(pixels: images.Pixels, original: images.Pixels, alignment: Alignment) -> float:
    """PSNR in dB of a face of a photo, its pixels weighted as they are when it is pasted."""
    height, width = original.shape[:2]
    weights = photo_weights(alignment, (height, width))
    error = np.square(pixels - original.astype(float)).mean(axis=2)
    return 10 * math.log10(255**2 / np.average(error, weights=weights))


# -- aligned portraits -------------------------------------------------------------------------


def restore_portraits(folder: Path) -> str:
    """Fill ``folder`` with input/, original/, output/ and compare/; return a table as text."""
    originals = {
        name: cut(portrait.load(), align(np.array(portrait.landmarks)), _ORIGINAL_SIZE_PX)
        for name, portrait in PORTRAITS.items()
    }
    for name, pixels in originals.items():
        small = _resized(pixels, _DEGRADED_SIZE_PX)
        degraded = degrade(small, np.random.default_rng(stable_seed(SEED, name)))
        images.write_png(folder / "original" / f"{name}.png", pixels)
        images.write_png(folder / "input" / f"{name}.png", degraded)
    _restore(folder, "portrait128", ["faces.mode=aligned", "save_coarse=true"])
    lines = ["two aligned portraits", f"{'portrait':16} {'stage':10} {'PSNR dB':>8} {'SSIM':>6}"]
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


def degrade(pixels: images.Pixels, rng: np.random.Generator) -> images.Pixels:
    """Degrade a 64-pixel face by blur, strong noise and strong JPEG compression."""
    blurred = cv2.GaussianBlur(pixels, (0, 0), sigmaX=0.8).astype(float)
    noisy = images.round_to_uint8(blurred + rng.normal(0, 50, pixels.shape))
    return codecs.jpeg_roundtrip(noisy, quality=20)


# -- both --------------------------------------------------------------------------------------


def _restore(folder: Path, preset: str, settings: list[str]) -> None:
    """Restore ``folder``/input into ``folder``/output."""
    preset_file = resource("configs") / "restore" / f"{preset}.yaml"
    paths = [f"input={folder / 'input'}", f"output={folder / 'output'}"]
    summary = restore_folder(load_config(RestoreConfig, preset_file, [*paths, *settings]))
    if summary.exit_code:
        failures = (folder / "output" / "failures.jsonl").read_text()
        raise Dr2pipeError(f"the demo failed: {failures}")


def _read(path: Path) -> images.Pixels:
    return images.read_image(path).pixels


def _resized(pixels: images.Pixels, side: int) -> images.Pixels:
    return images.resize_pixels(pixels, (side, side))


def main() -> int:
    """Parse the command line and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", default="demo", help="folder to fill (demo)")
    parser.add_argument(
        "--noise", type=float, default=PHOTO_NOISE, help=f"of the photo ({PHOTO_NOISE:g})"
    )
    options = parser.parse_args()
    quiet_libraries()
    print(run_demo(options.folder, options.noise))
    return 0


if __name__ == "__main__":
    sys.exit(report_errors(main))
