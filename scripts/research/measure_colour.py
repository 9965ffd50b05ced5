"""How a colour-managed viewer shows a picture before and after a run, in other colour spaces.

    python scripts/research/measure_colour.py

Writes muted and saturated pictures in six spaces, with 8 and 16 bits, as PNG, JPEG and TIFF; sends
them through ``dr2pipe restore`` with an enhancer that changes nothing, and through what
``dr2pipe inpaint`` does to a picture that is one hole, with a filling that changes nothing. Prints
the mean difference in levels of 255 between how the file looks, computed by formula, and how each
result looks, shown by LittleCMS. Exits with 1 where a difference is above 1.5.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from colour_files import (
    GREY_SPACES,
    RGB_SPACES,
    appearance,
    encode,
    levels_of,
    look,
    profile_of,
)
from PIL import Image

from dr2pipe.cli import report_errors
from dr2pipe.core import images
from dr2pipe.core.config import load_config
from dr2pipe.runs.restore import RestoreConfig, restore_folder

SIDE = 96
MOST = 1.5
KINDS = (("PNG", 8), ("PNG", 16), ("JPEG", 8), ("TIFF", 8), ("TIFF", 16))


def make_picture(*, saturated: bool, seed: int = 0) -> npt.NDArray[np.uint8]:
    """(S,S,3): smooth patches of all levels; muted ones keep to colours that sRGB has."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    if saturated:
        patches = np.where(rng.random((8, 8, 3)) < 0.5, 0, 255).astype(np.uint8)
    image = Image.fromarray(patches).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.asarray(image)


def write_files(folder: Path) -> dict[str, npt.NDArray[np.float64]]:
    """How each file looks, by its name."""
    files = {}
    for space in (*RGB_SPACES, *GREY_SPACES):
        for strength in ("muted", "saturated"):
            picture = make_picture(saturated=strength == "saturated")
            for kind, bits in KINDS:
                if strength == "muted":
                    levels = levels_of(picture, space, bits)
                else:  # the ends of the space itself, which sRGB may lack
                    levels = picture.astype(np.uint8 if bits == 8 else np.uint16)
                    levels = levels * (1 if bits == 8 else 257)
                    levels = levels[..., 1] if space in GREY_SPACES else levels
                path = folder / f"{space}_{strength}_{bits}.{kind.lower()}"
                path.write_bytes(encode(levels, kind, profile_of(space)))
                if kind == "JPEG":  # which changes the levels a little
                    with Image.open(path) as image:
                        levels = np.asarray(image)
                files[path.name] = appearance(levels, space)
    return files


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        source, output = Path(name, "in"), Path(name, "out")
        source.mkdir()
        files = write_files(source)
        settings = [f"input={source}", f"output={output}", "dr2.enabled=false"]
        settings += ["enhancer.name=bicubic", f"enhancer.options={{size: {SIDE}}}"]
        summary = restore_folder(load_config(RestoreConfig, overrides=settings))
        if summary.exit_code != 0:
            raise SystemExit((output / "failures.jsonl").read_text())
        worst = 0.0
        print("file                                 restore  inpaint")
        for file, shown in files.items():
            result = output / "restored" / f"{file}.png"
            refilled = _refilled((source / file).read_bytes())
            differences = [np.abs(look(d) - shown).mean() for d in (result.read_bytes(), refilled)]
            worst = max(worst, *differences)
            print(f"{file:36} {differences[0]:7.2f}  {differences[1]:7.2f}")
    print(f"largest of {len(files)} files: {worst:.2f}")
    return int(worst > MOST)


def _refilled(data: bytes) -> bytes:
    """The file that inpaint writes where a filling equals what it replaces."""
    picture = images.decode_image(data, keep_own=True)
    assert picture.own is not None
    everywhere = np.ones(picture.pixels.shape[:2], bool)
    changed = picture.own.changed(picture.pixels, everywhere)
    return images.encode_png(changed, profile=picture.own.profile, colour_chunks=picture.own.chunks)


if __name__ == "__main__":
    sys.exit(report_errors(main))
