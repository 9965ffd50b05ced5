"""The pictures of docs/gallery.md and docs/questions: ``make gallery``.

Usage: ``python scripts/gallery.py [DOCS]``, by default ``docs``. It needs ``dr2pipe[demo]``, which
brings two portraits in the public domain: Grace Hopper (US Navy) and Eileen Collins (NASA).
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from demo import PORTRAITS
from PIL import Image

from dr2pipe import PhotoRestorer
from dr2pipe.cli import report_errors
from dr2pipe.cli.commands import quiet_libraries
from dr2pipe.core import files, images
from dr2pipe.core.config import stable_seed
from dr2pipe.core.sheets import side_by_side
from dr2pipe.degradations import degrade

_HEIGHT_PX, _SHOWN_PX = 220, 330  # of the damaged photo, and of its pictures


def _small(pixels: images.Pixels) -> images.Pixels:
    """Scanned at a third of the size, and enlarged again."""
    height, width = pixels.shape[:2]
    small = images.resize_pixels(pixels, (height // 3, width // 3))
    return images.resize_pixels(small, (height, width))


def _family(name: str, severity: int | None = None) -> Callable[[images.Pixels], images.Pixels]:
    def damage(pixels: images.Pixels) -> images.Pixels:
        rng = np.random.default_rng(stable_seed("gallery", name))
        return degrade(pixels, name, rng, severity=severity)[0]

    return damage


def _sepia(pixels: images.Pixels) -> images.Pixels:
    """An old print: brown, pale and grainy."""
    luma = pixels @ np.array([0.299, 0.587, 0.114])
    pale = 55 + luma * 0.68
    tinted = pale[..., None] * np.array([1.05, 0.95, 0.78])
    grain = np.random.default_rng(0).normal(0, 9, luma.shape)
    return images.round_to_uint8(np.clip(tinted + grain[..., None], 0, 255))


DAMAGES: dict[str, Callable[[images.Pixels], images.Pixels]] = {
    "small_scan": _small,
    "old_print": _sepia,
    "jpeg_and_noise": _family("medium"),
    "out_of_focus": _family("defocus", 3),
    "moved_camera": _family("motion_blur", 3),
    "film_grain": _family("film_grain", 4),
    "newspaper": _family("halftone", 3),
    "scratches": _family("scratches", 3),
    "dark": _family("low_light", 3),
    "everything": _family("severe"),
}


def make_gallery(docs: Path) -> None:
    """Write the pictures below ``docs``."""
    restorer = PhotoRestorer.from_preset("default", faces__skip_good="false")
    stretching = PhotoRestorer(restorer.engine, stretch_contrast=True)
    names = list(PORTRAITS)
    for number, (name, damage) in enumerate(DAMAGES.items()):
        damaged = damage(_portrait(names[number % len(names)]))
        pictures = [damaged, restorer(damaged).image]
        if name == "dark":
            pictures.append(stretching(damaged).image)
        _save(docs / "gallery" / f"{name}.jpg", pictures)
    grey = _sepia(_portrait("grace_hopper"))
    coloured = PhotoRestorer.from_preset("default", colour="free", faces__skip_good="false")
    _save(
        docs / "questions" / "black_and_white.jpg",
        [grey, restorer(grey).image, coloured(grey).image],
    )
    gentle = {"dr2__factor": 1, "dr2__tau": 3, "dr2__omega": 8}
    mild = PhotoRestorer.from_preset("default", faces__skip_good="false", **gentle)
    strong = PhotoRestorer.from_preset("portrait128", faces__skip_good="false")
    damaged = _family("medium")(_portrait("grace_hopper"))
    pictures = [damaged, strong(damaged).image, mild(damaged).image]
    _save(docs / "questions" / "likeness.jpg", pictures)


def _portrait(name: str) -> images.Pixels:
    portrait = PORTRAITS[name]
    left, top, right, bottom = portrait.frame
    pixels = portrait.load()[top:bottom, left:right]
    width = round(_HEIGHT_PX * pixels.shape[1] / pixels.shape[0])
    return images.resize_pixels(pixels, (_HEIGHT_PX, width))


def _save(path: Path, pictures: list[images.Pixels]) -> None:
    shown = []
    for pixels in pictures:
        width = round(_SHOWN_PX * pixels.shape[1] / pixels.shape[0])
        shown.append(images.resize_pixels(pixels, (_SHOWN_PX, width)))
    buffer = io.BytesIO()
    Image.fromarray(side_by_side(shown)).save(buffer, "JPEG", quality=85)
    files.write_bytes(path, buffer.getvalue())


def _main() -> int:
    quiet_libraries()
    make_gallery(Path(sys.argv[1] if len(sys.argv) > 1 else "docs"))
    return 0


if __name__ == "__main__":
    sys.exit(report_errors(_main))
