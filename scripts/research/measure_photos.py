"""What restoring does to whole photos: the numbers of docs/measurements.md on pasting and harm.

Usage: ``python scripts/research/measure_photos.py FACES [PART ...]``. FACES holds the folders
``whole`` (photos, and ``whole.csv`` with five landmarks of each) and ``val`` (aligned faces).
Parts: pasting, restoring, sharp, group, hostile, spectrum; all by default.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
from PIL import Image

from dr2pipe import cli
from dr2pipe.cli import report_errors
from dr2pipe.core import images
from dr2pipe.core.config import load_config, resource
from dr2pipe.core.foreign import read_csv
from dr2pipe.faces.align import align, cut
from dr2pipe.faces.paste import face_patches, photo_weights
from dr2pipe.faces.quality import band_power
from dr2pipe.restoration.settings import RestorationConfig, load_photo_engine

POINTS = ("eyeL", "eyeR", "nose", "mouthL", "mouthR")
LUMA = np.array([0.299, 0.587, 0.114])
_SEED = 0
_LOSSLESS = (".png", ".tif", ".webp", ".gif")  # no inks among them, whose conversion may round


def whole_photos(folder: Path) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Name, pixels (H,W,3) and landmarks (5,2) of the photos."""
    return [
        (
            line["file"],
            images.read_image(folder / "whole" / line["file"]).pixels,
            np.array([[float(line[f"{p}_{axis}"]) for axis in "xy"] for p in POINTS]),
        )
        for line in read_csv(folder / "whole" / "whole.csv")
    ]


def damaged(pixels: np.ndarray, scale: float, rng: np.random.Generator) -> np.ndarray:
    """Reduced, blurred by 1 px, noise of 10 levels, JPEG 40."""
    height, width = (round(side * scale) for side in pixels.shape[:2])
    small = cv2.GaussianBlur(images.resize_pixels(pixels, (height, width)), (0, 0), 1)
    noisy = images.round_to_uint8(small + rng.normal(0, 10, small.shape))
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, "JPEG", quality=40)
    return np.asarray(Image.open(buffer))


def measure_pasting(folder: Path) -> None:
    """Faces cut and pasted with the identity as network, at the size of the network."""
    print("align, then paste, with the identity as network:")
    for size in (512, 256, 128):
        found, outside = [], 0
        for _, pixels, points in whole_photos(folder):
            scale = size / align(points).side_px
            if scale < 1:
                sides = [round(side * scale) for side in pixels.shape[:2]]
                pixels, points = images.resize_pixels(pixels, (sides[0], sides[1])), points * scale
            alignment = align(points)
            crop = cut(pixels, alignment, size)
            result, inside = pixels.copy(), photo_weights(alignment, pixels.shape[:2]) > 0
            for patch in face_patches(crop.astype(np.float32), alignment, pixels.shape[:2]):
                part, weights = result[patch.place], patch.weights[..., None]
                part[:] = images.round_to_uint8(part * (1 - weights) + patch.pixels * weights)
            outside += int((result != pixels)[~inside].sum())
            error = np.square(result[inside].astype(float) - pixels[inside]).mean()
            found.append(10 * np.log10(255**2 / error))
        print(
            f"  {size:3} px: PSNR inside the masks {np.mean(found):.1f} dB in the mean of "
            f"{len(found)}, least {min(found):.1f}; samples changed outside: {outside}"
        )


def default_engine(*overrides: str) -> Any:
    """The default preset with other settings, and a place to put its faces into."""
    preset = resource("configs") / "restore" / "default.yaml"
    engine, _ = load_photo_engine(load_config(RestorationConfig, preset, overrides), "cpu")
    return engine


def prepared(engine: Any, pixels: np.ndarray) -> Any:
    """The photo as the engine prepares it."""
    picture = images.picture_of(Image.fromarray(pixels), keep_own=True, whole_photo=True)
    return engine.prepare(picture)


def measure_restoring(folder: Path) -> None:
    """Seams, and colours, of damaged photos after the default restoration."""
    engine = default_engine("faces.skip_good=false", "identity.measure=false")
    rng = np.random.default_rng(_SEED)
    ratios, shifts, faces = [], [], 0
    for _, pixels, _points in whole_photos(folder):
        photo = prepared(engine, damaged(pixels, 0.25, rng))
        before = photo.picture.pixels
        (result,) = engine.restore([photo], [_SEED])
        for face in photo.faces:
            faces += 1
            weights = photo_weights(face.alignment, before.shape[:2])
            ratios.append(across(result.levels @ LUMA, weights) / across(before @ LUMA, weights))
            difference = result.levels.astype(np.float32) - before
            slow = cv2.GaussianBlur(difference, (0, 0), face.alignment.side_px / 16)
            shifts.append(np.abs(slow[weights > 0.5]).max(axis=0))
    print(
        f"default preset on {faces} faces of damaged photos (a quarter, blur 1, noise 10, JPEG 40):"
    )
    print(
        f"  gradient across the mask's edge, after : before: mean {np.mean(ratios):.3f}, "
        f"worst {max(ratios):.3f}"
    )
    worst = np.max(shifts, axis=0)
    print(
        f"  largest slow change of colour in a face: mean {np.mean(shifts):.2f} of 255, "
        f"worst by channel {worst[0]:.2f} {worst[1]:.2f} {worst[2]:.2f}"
    )


def across(luma: np.ndarray, weights: np.ndarray) -> float:
    """Mean size of the luma's gradient in the direction in which the mask fades, on its edge."""
    mask_y, mask_x = np.gradient(weights.astype(float))
    length = np.hypot(mask_x, mask_y)
    edge = (weights > 0) & (weights < 1) & (length > 1e-4)
    y, x = np.gradient(luma)
    return float(np.abs((x * mask_x + y * mask_y)[edge] / length[edge]).mean())


def measure_sharp(folder: Path) -> None:
    """Sharp faces of about 600 px or more are left alone."""
    engine = default_engine("identity.measure=false")
    skipped = same = total = 0
    for _, pixels, _points in whole_photos(folder):
        photo = prepared(engine, pixels)
        (result,) = engine.restore([photo], [_SEED])
        total += 1
        skipped += all("skipped" in face.record for face in result.faces)
        same += result.levels is None
    print(f"sharp photos, faces of about 700 px: {skipped} of {total} skipped, {same} unchanged")


def measure_group(folder: Path) -> None:
    """A photo of 6000x4000 pixels with 40 faces, through the command."""
    faces = sorted((folder / "val").glob("*.jpg"))[:40]
    rng = np.random.default_rng(_SEED)
    photo = images.resize_pixels(rng.integers(90, 150, (40, 60, 3), dtype=np.uint8), (4000, 6000))
    photo = photo.copy()
    for number, path in enumerate(faces):
        row, column = divmod(number, 8)
        side = int(rng.integers(120, 500))
        face = damaged(images.read_image(path).pixels, side / 512, rng)
        top, left = 150 + row * 760, 120 + column * 735
        photo[top : top + len(face), left : left + face.shape[1]] = face
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "group.jpg"
        Image.fromarray(photo).save(source, quality=92)
        del photo
        out = Path(temporary) / "out"
        start = time.perf_counter()
        code = cli.main(["restore", str(source), str(out), "--set", "faces.skip_good=false"])
        seconds = time.perf_counter() - start
        record = json.loads((out / "manifest.jsonl").read_text().splitlines()[-1])
        peak = psutil.Process().memory_info()
        used = getattr(peak, "peak_wset", 0) or _peak_bytes()
        count = len(record["faces"])
        print(
            f"group photo 6000x4000: exit {code}, {count} of {len(faces)} faces, "
            f"{seconds:.1f} s in all, {record['seconds'] / max(1, count):.3f} s per face for "
            f"restoring and pasting, peak memory of the process {used / 2**30:.2f} GiB"
        )


def _peak_bytes() -> int:
    import resource as limits

    return limits.getrusage(limits.RUSAGE_SELF).ru_maxrss * 1024


def measure_hostile(folder: Path) -> None:
    """Odd and broken photos among good ones."""
    good = [photo for photo in whole_photos(folder)[:4]]
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "in"
        source.mkdir()
        for name, pixels, _points in good:
            small = images.resize_pixels(pixels, (256, 256))
            Image.fromarray(small).save(source / f"good_{name}", quality=60)
        odd, broken = write_odd_photos(source, good[0][1])
        out = Path(temporary) / "out"
        code = cli.main(["restore", str(source), str(out)])
        lines = (out / "manifest.jsonl").read_text().splitlines()
        records = {record["path"]: record for record in map(json.loads, lines)}
        failed = {
            json.loads(line)["path"] for line in (out / "failures.jsonl").read_text().splitlines()
        }
        lost = {p.name for p in source.iterdir()} - set(records) - failed
        wrong = sum(not _same_outside(source, out, record) for record in records.values())
    print(
        f"{len(odd)} odd and {len(broken)} broken photos among {len(good)} good ones: exit {code}, "
        f"{len(records)} done, {len(failed)} failed (broken ones: {failed == set(broken)}), "
        f"lost {len(lost)}, other size or other colours than the photo's: {wrong}"
    )


def _same_outside(source: Path, out: Path, record: dict[str, Any]) -> bool:
    """Whether a result looks like its photo, but for what is inside of faces' boxes."""
    before, after = (
        images.decode_image(path.read_bytes(), whole_photo=True).pixels.astype(int)
        for path in (source / record["path"], out / record["output"])
    )
    if before.shape != after.shape:
        return False
    outside = np.ones(before.shape[:2], bool)
    for face in record["faces"]:
        (x, y, width, height), side = face["box"], face["side_px"]
        top, left = max(0, round(y - side / 2)), max(0, round(x - side / 2))
        outside[top : round(y + height + side / 2), left : round(x + width + side / 2)] = False
    if record["path"].endswith(_LOSSLESS):
        return bool((before == after)[outside].all())
    return not outside.any() or bool(np.abs(before - after)[outside].mean() < 1.5)


def write_odd_photos(folder: Path, portrait: np.ndarray) -> tuple[list[str], list[str]]:
    """Write photos that are odd, and files that are broken; returns their names."""
    rng = np.random.default_rng(_SEED)
    small = images.resize_pixels(portrait, (300, 300))
    grey = np.asarray(Image.fromarray(small).convert("L"))
    noise = rng.integers(0, 256, (200, 300, 3), dtype=np.uint8)
    lines = np.full((300, 300), 255, np.uint8)
    for _ in range(40):
        a, b = (tuple(map(int, rng.integers(0, 300, 2))) for _ in range(2))
        cv2.line(lines, a, b, 0, 2)
    large = Image.fromarray(noise).resize((7800, 5200))
    pictures: dict[str, Image.Image] = {
        "one_wide.png": Image.fromarray(small[:, :1]),
        "one_high.png": Image.fromarray(small[:1]),
        "one_pixel.png": Image.fromarray(small[:1, :1]),
        "40_megapixels.jpg": large,
        "noise.png": Image.fromarray(noise),
        "drawing.png": Image.fromarray(lines),
        "black.png": Image.new("RGB", (200, 200)),
        "white.jpg": Image.new("RGB", (200, 200), "white"),
        "grey.png": Image.fromarray(grey),
        "grey_alpha.png": Image.fromarray(np.dstack([grey, grey])),
        "alpha.png": Image.fromarray(np.dstack([small, grey])),
        "clear.png": Image.fromarray(np.dstack([small, grey * 0])),
        "bits.tif": Image.fromarray(grey > 127),
        "palette.gif": Image.fromarray(small).quantize(16),
        "inks.jpg": Image.fromarray(small).convert("CMYK"),
        "inks.tiff": Image.fromarray(small).convert("CMYK"),
        "panorama.jpg": Image.fromarray(np.tile(noise, (1, 30, 1))),
        "tower.png": Image.fromarray(np.tile(noise, (20, 1, 1))),
        "left_half.jpg": Image.fromarray(small[:, :150]),
        "right_half.jpg": Image.fromarray(small[:, 150:]),
        "upper_half.png": Image.fromarray(small[:130]),
        "lower_half.png": Image.fromarray(small[130:]),
        "upside_down.jpg": Image.fromarray(small[::-1, ::-1]),
        "mirrored.webp": Image.fromarray(small[:, ::-1]),
        "tiny.png": Image.fromarray(images.resize_pixels(small, (24, 24))),
    }
    for name, picture in pictures.items():
        picture.save(folder / name)
    exif = Image.Exif()
    for orientation in (3, 6, 8):
        exif[0x0112] = orientation
        Image.fromarray(small).save(folder / f"turned_{orientation}.jpg", exif=exif)
    (folder / "deep.png").write_bytes(images.encode_png(small.astype(np.uint16) * 257))
    whole = (folder / "turned_3.jpg").read_bytes()
    broken = {"cut.jpg": whole[: len(whole) // 2], "text.png": b"no picture", "empty.png": b""}
    for name, data in broken.items():
        (folder / name).write_bytes(data)
    odd = [*pictures, "deep.png", *(f"turned_{o}.jpg" for o in (3, 6, 8))]
    return odd, list(broken)


def measure_spectrum(folder: Path) -> None:
    """The power of sharp faces by band, which quality.py compares with."""
    bands = []
    for path in sorted((folder / "val").glob("*.jpg")):
        power = np.log10(band_power(images.read_image(path).pixels @ LUMA)[0])
        bands.append(power - power[:4].mean())
    median = ", ".join(f"{value:.2f}" for value in np.median(bands, axis=0))
    print(f"log10 of the power by half octaves, median of {len(bands)} sharp faces: {median}")


PARTS = {
    "pasting": measure_pasting,
    "restoring": measure_restoring,
    "sharp": measure_sharp,
    "group": measure_group,
    "hostile": measure_hostile,
    "spectrum": measure_spectrum,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("faces", type=Path)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)} (all)")
    options = parser.parse_args()
    for part in options.parts or PARTS:
        PARTS[part](options.faces)
    return 0


if __name__ == "__main__":
    sys.exit(report_errors(main))
