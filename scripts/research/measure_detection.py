"""How many faces are found, and how exactly: the numbers of docs/measurements.md on detection.

Usage: ``python scripts/research/measure_detection.py FACES [PART ...]``. FACES holds the folders
``whole``, ``val`` and ``old`` and the file ``manifest.csv``, with five landmarks of each face.
Parts: singles, small, montages, faceless, scans, huge; all by default.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import psutil

from dr2pipe.core import images
from dr2pipe.core.foreign import read_csv
from dr2pipe.degradations import codecs, degrade
from dr2pipe.faces.detect import DetectorConfig, Face, FaceDetector, build_detector, select_faces
from dr2pipe.features.onet import similarity

POINTS = ("eyeL", "eyeR", "nose", "mouthL", "mouthR")
# Between the eyes of an aligned face, as a share of its side; and YuNet's box in eye distances.
_EYES_SHARE, _BOX_WIDTH = 0.246, 2.4
_BACKGROUNDS = ("gravel", "brick", "grass")
_HIDING = (
    ("halftone", 4),
    ("film_grain", 5),
    ("salt_and_pepper", 4),
    ("speckle", 5),
    ("severe", None),
)


@dataclass
class Sample:
    """A picture (H,W,3) uint8 and the landmarks (5,2) of the faces in it."""

    pixels: np.ndarray
    faces: list[np.ndarray]


class Count:
    """Faces found, missed and false, and errors in percent of the distance between the eyes."""

    def __init__(self, name: str):
        self.name, self.faces, self.found, self.false = name, 0, 0, 0
        self.errors: list[float] = []
        self.aligned: list[float] = []

    def add(self, found: list[Face], wanted: list[np.ndarray]) -> None:
        self.faces += len(wanted)
        left = list(found)
        for points in wanted:
            eyes = np.linalg.norm(points[0] - points[1])
            near = [f for f in left if np.linalg.norm(f.landmarks - points, axis=1).mean() < eyes]
            if near:
                best = min(near, key=lambda f: np.linalg.norm(f.landmarks - points))
                left = [face for face in left if face is not best]
                self.found += 1
                self.errors.append(_error(best.landmarks, points))
                self.aligned.append(_alignment_error(best.landmarks, points))
        self.false += len(left)

    def line(self) -> str:
        text = f"{self.name:44} found {self.found:3} of {self.faces:3}, false {self.false}"
        if self.errors:
            text += f", landmark error {np.mean(self.errors):.2f} % (worst {max(self.errors):.1f})"
            text += (
                f", aligned within {np.mean(self.aligned):.2f} % (worst {max(self.aligned):.1f})"
            )
        return text


def _error(points: np.ndarray, expected: np.ndarray) -> float:
    eyes = np.linalg.norm(expected[0] - expected[1])
    return float(np.linalg.norm(points - expected, axis=1).mean() / eyes * 100)


def _alignment_error(points: np.ndarray, expected: np.ndarray) -> float:
    """Where the alignment by found points puts the face, against that by the given points."""
    upright = _upright()
    found, given = (similarity(p, upright) for p in (points, expected))
    eyes = np.linalg.norm(upright[0] - upright[1])
    moved = _moved(expected, found) - _moved(expected, given)
    return float(np.linalg.norm(moved, axis=1).mean() / eyes * 100)


def _upright() -> np.ndarray:
    return np.array(
        [[0.377, 0.469], [0.623, 0.469], [0.501, 0.613], [0.393, 0.725], [0.611, 0.725]]
    )


def _moved(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]


def read_samples(folder: Path, table: Path) -> dict[str, Sample]:
    """By file name: pictures of ``folder`` that ``table`` lists."""
    samples = {}
    for line in read_csv(table, ["file"]):
        path = folder / line["file"]
        if path.is_file():
            numbers = [float(line[f"{point}_{axis}"]) for point in POINTS for axis in "xy"]
            points = np.array(numbers).reshape(5, 2)
            samples[line["file"]] = Sample(images.read_image(path).pixels, [points])
    return samples


def warped(sample: Sample, matrix: np.ndarray, size: tuple[int, int]) -> Sample:
    """Turned and shifted into a grey picture of ``size`` = (height, width)."""
    # OpenCV has the first pixel's centre at 0, the landmarks at 0.5.
    shifted = matrix.copy()
    shifted[:, 2] += matrix[:, :2] @ [0.5, 0.5] - 0.5
    pixels = cv2.warpAffine(
        sample.pixels, shifted, size[::-1], flags=cv2.INTER_CUBIC, borderValue=(128, 128, 128)
    )
    return Sample(pixels, [_moved(points, matrix) for points in sample.faces])


def scaled(sample: Sample, factor: float) -> Sample:
    height, width = (max(round(side * factor), 1) for side in sample.pixels.shape[:2])
    factors = np.array([width, height]) / sample.pixels.shape[1::-1]
    pixels = images.resize_pixels(sample.pixels, (height, width))
    return Sample(pixels, [points * factors for points in sample.faces])


def to_face_px(sample: Sample, side_px: float) -> Sample:
    """Reduced until the aligned face has this side."""
    points = sample.faces[0]
    return scaled(sample, side_px * _EYES_SHARE / np.linalg.norm(points[0] - points[1]))


def noisy(sample: Sample, sigma: float, quality: int, rng: np.random.Generator) -> Sample:
    noise = rng.normal(0, sigma, sample.pixels.shape)
    pixels = codecs.jpeg_roundtrip(images.round_to_uint8(sample.pixels + noise), quality=quality)
    return Sample(pixels, sample.faces)


def turned(sample: Sample, degrees: float) -> Sample:
    height, width = sample.pixels.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0)
    return warped(sample, matrix, (height, width))


def measure_singles(faces: Path, detector: FaceDetector) -> Iterator[str]:
    samples = read_samples(faces / "whole", faces / "whole" / "whole.csv")
    rng = np.random.default_rng(0)
    variants = {
        "clean": lambda s: s,
        "64 px per face": lambda s: to_face_px(s, 64),
        "32 px per face": lambda s: to_face_px(s, 32),
        "noise 25, JPEG 15": lambda s: noisy(s, 25, 15, rng),
        "blur 6 px": lambda s: Sample(cv2.GaussianBlur(s.pixels, (0, 0), 6), s.faces),
        "rotated 30°": lambda s: turned(s, 30),
        "rotated 60°": lambda s: turned(s, 60),
        "on its side": lambda s: turned(s, 90),
        "upside down": lambda s: turned(s, 180),
        "left half of the face alone": lambda s: Sample(
            s.pixels[:, : int(s.faces[0][:, 0].mean())], s.faces
        ),
        "64 px per face, noise 25, JPEG 15": lambda s: noisy(to_face_px(s, 64), 25, 15, rng),
    }
    for name, vary in variants.items():
        count = Count(f"whole photos, {name}")
        for sample in samples.values():
            varied = vary(sample)
            count.add(_found(detector, varied.pixels), varied.faces)
        yield count.line()


def measure_small(faces: Path, detector: FaceDetector) -> Iterator[str]:
    samples = list(read_samples(faces / "val", faces / "manifest.csv").values())
    rng = np.random.default_rng(0)
    for width_px in (16, 20, 24, 32):  # min_px is 16
        count = Count(f"60 faces with boxes about {width_px} px wide")
        for sample in samples:
            picture = Sample(images.resize_pixels(_texture("gravel"), (480, 640)).copy(), [])
            paste(picture, _to_box(sample, width_px), rng.uniform(150, 330, 2), 0)
            count.add(_found(detector, picture.pixels), picture.faces)
        yield count.line()


def measure_damaged(faces: Path, detector: FaceDetector) -> Iterator[str]:
    """Faces of 256 px under damage that hides them from a detector."""
    samples = read_samples(faces / "val", faces / "manifest.csv").values()
    for chain, severity in _HIDING:
        count = Count(f"60 faces of 256 px, {chain} {severity or ''}".rstrip())
        for sample in samples:
            small = scaled(sample, 256 / len(sample.pixels))
            rng = np.random.default_rng(0)
            damaged, _ = degrade(small.pixels, chain, rng, severity=severity)
            count.add(_found(detector, damaged), small.faces)
        yield count.line()


def _found(detector: FaceDetector, pixels: np.ndarray) -> list[Face]:
    return select_faces(detector.detect(pixels), DetectorConfig(), pixels.shape[:2])


def make_montage(samples: list[Sample], rng: np.random.Generator, index: int) -> Sample:
    """Twelve aligned faces of 40 to 320 pixels, turned by up to 45°, on a natural texture."""
    canvas = images.resize_pixels(_texture(_BACKGROUNDS[index % 3]), (1200, 1600))
    montage = Sample(canvas.copy(), [])
    sides = rng.permutation(np.geomspace(40, 320, len(samples)))
    for i, (sample, side) in enumerate(zip(samples, sides, strict=True)):
        centre = np.array([i % 4 * 400 + 200, i // 4 * 400 + 200]) + rng.uniform(-20, 20, 2)
        paste(montage, scaled(sample, side / 512), centre, rng.uniform(-45, 45))
    return montage


def paste(picture: Sample, face: Sample, centre: np.ndarray, degrees: float) -> None:
    """Put a picture of one face into another, turned, its middle at ``centre``."""
    height, width = face.pixels.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0)
    matrix[:, 2] += centre - [width / 2, height / 2]
    size = picture.pixels.shape[:2]
    placed = warped(face, matrix, size)
    full = Sample(np.full(face.pixels.shape, 255, np.uint8), [])
    mask = warped(full, matrix, size).pixels == 255
    corners = _moved(np.array([[0, 0], [width, 0], [0, height], [width, height]]), matrix)
    inside = cv2.fillConvexPoly(
        np.zeros(size, np.uint8), cv2.convexHull(corners.astype(np.int32)), 1
    )
    mask &= inside[..., None] == 1
    picture.pixels[mask] = placed.pixels[mask]
    picture.faces += placed.faces


def measure_montages(faces: Path, detector: FaceDetector) -> Iterator[str]:
    samples = list(read_samples(faces / "val", faces / "manifest.csv").values())
    rng = np.random.default_rng(0)
    montages = [make_montage(samples[12 * i : 12 * i + 12], rng, i) for i in range(4)]
    degraded = [noisy(montage, 10, 40, rng) for montage in montages]
    for name, set_of in (("", montages), (", noise 10, JPEG 40", degraded)):
        count = Count(f"four montages of twelve faces{name}")
        for montage in set_of:
            count.add(_found(detector, montage.pixels), montage.faces)
        yield count.line()


def _texture(name: str) -> np.ndarray:
    import skimage.data

    pixels = getattr(skimage.data, name)()
    return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels[..., :3]


def faceless_pictures() -> Iterator[tuple[str, np.ndarray]]:
    """Twenty pictures without a human face: textures, a cat, a cup, text, noise, lines, sky."""
    names = ("brick", "grass", "gravel", "text", "page", "coins", "moon", "rocket", "coffee")
    names += ("chelsea", "retina", "hubble_deep_field", "horse", "immunohistochemistry")
    for name in names:
        pixels = _texture(name)
        yield name, (pixels * 255 if pixels.dtype == bool else pixels).astype(np.uint8)
    rng = np.random.default_rng(0)
    height, width = 900, 1200
    yield "noise", rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    soft = cv2.GaussianBlur(rng.normal(0, 1, (height, width, 3)), (0, 0), 20)
    yield "clouds", images.round_to_uint8(128 + 60 * soft / soft.std())
    sky = np.linspace(90, 220, height)[:, None, None] * np.array([0.6, 0.8, 1.0])
    yield "sky", images.round_to_uint8(np.broadcast_to(sky, (height, width, 3)))
    y, x = np.mgrid[:height, :width]
    yield "checks", np.repeat((((x // 40 + y // 40) % 2) * 255)[..., None], 3, 2).astype(np.uint8)
    rings = images.round_to_uint8(127 + 127 * np.sin(np.hypot(x - 600, y - 450) / 9))
    yield "rings", np.repeat(rings[..., None], 3, axis=2)
    yield "grey", np.full((height, width, 3), 128, np.uint8)


def measure_faceless(_: Path, detector: FaceDetector) -> Iterator[str]:
    pictures = list(faceless_pictures())
    count = Count(f"{len(pictures)} pictures without faces")
    for name, pixels in pictures:
        before = count.false
        count.add(_found(detector, pixels), [])
        if count.false > before:
            yield f"  false faces in {name}"
    yield count.line()


def make_scan(portrait: Sample, rng: np.random.Generator) -> Sample:
    """An old portrait of 180 to 520 pixels on a page of paper, a little askew, noise and JPEG."""
    page = Sample(images.round_to_uint8(rng.normal((222, 212, 190), 4, (1100, 900, 3))), [])
    side = rng.uniform(180, 520)
    centre = np.array([450.0, 500.0]) + rng.uniform(-150, 150, 2)
    paste(page, scaled(portrait, side / portrait.pixels.shape[0]), centre, rng.uniform(-8, 8))
    return noisy(page, 4, 75, rng)


def measure_scans(faces: Path, detector: FaceDetector) -> Iterator[str]:
    samples = read_samples(faces / "old", faces / "old" / "old.csv")
    rng = np.random.default_rng(0)
    count = Count("old portraits in scans")
    for sample in samples.values():
        scan = make_scan(sample, rng)
        count.add(_found(detector, scan.pixels), scan.faces)
    yield count.line()
    for unit, share in (("the eyes' distance", 1.0), ("the aligned face's side", _EYES_SHARE)):
        within = sum(error * share <= 5 for error in count.aligned)
        yield f"  aligned within 5 % of {unit}: {within}, the worst {max(count.aligned) * share:.1f} %"


def measure_huge(faces: Path, detector: FaceDetector) -> Iterator[str]:
    whole = read_samples(faces / "whole", faces / "whole" / "whole.csv")
    samples = list(read_samples(faces / "val", faces / "manifest.csv").values())
    photo = Sample(cv2.resize(_texture("gravel"), (7728, 5152)), [])
    rng = np.random.default_rng(0)
    large = next(iter(whole.values()))
    paste(photo, _to_box(large, 2000), np.array([2600.0, 2600.0]), 0)
    for i in range(12):
        centre = np.array([6200 + 110 * (i % 4) * 3, 400 + 1400 * (i // 4)]) + rng.uniform(0, 90, 2)
        paste(photo, _to_box(samples[i], 20), centre, rng.uniform(-20, 20))
    process, peak, done = psutil.Process(), [0], threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    found = _found(detector, photo.pixels)
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    for name, part in (("a 2,000-px face", slice(0, 1)), ("twelve 20-px faces", slice(1, None))):
        count = Count(f"40 megapixels, {name}")
        near = [f for f in found if (f.side_px > 500) == (part.start == 0)]
        count.add(near, photo.faces[part])
        yield count.line()
    yield f"40 megapixels: {seconds:.1f} s, {(peak[0] - before) / 2**20:.0f} MiB beside the photo"


def _to_box(sample: Sample, width_px: float) -> Sample:
    points = sample.faces[0]
    return scaled(sample, width_px / _BOX_WIDTH / np.linalg.norm(points[0] - points[1]))


PARTS = {
    "singles": measure_singles,
    "small": measure_small,
    "damaged": measure_damaged,
    "montages": measure_montages,
    "faceless": measure_faceless,
    "scans": measure_scans,
    "huge": measure_huge,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("faces", type=Path)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    options = parser.parse_args()
    detector = build_detector(DetectorConfig())
    for part in options.parts or PARTS:
        for line in PARTS[part](options.faces, detector):
            print(line, flush=True)


if __name__ == "__main__":
    main()
