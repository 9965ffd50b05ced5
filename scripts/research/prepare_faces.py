"""Training faces for stage 1 and the enhancer, from the archives of aligned faces.

python scripts/research/prepare_faces.py FACES OUT [--size 128]

FACES holds ``more/<group>_<side>.npz`` (JPEG bytes) and ``more/<group>.csv``, one line per face.
Writes OUT/faces<size>.npz and OUT/check<size>.npz: ``images`` (N,S,S,3) uint8 RGB, ``files``
(N,) and ``source`` (N,), the place of the face's group in ``GROUPS``. The check set holds other
people than the training set: settings and averages are chosen on it, never on an evaluation set.
"""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path

import numpy as np
from PIL import Image

from dr2pipe.core import files
from dr2pipe.core.config import stable_seed

# Only groups whose pictures may be used for weights that are given away. Their place here is
# the number in ``source``; the second entry counts the faces kept for checks.
GROUPS = {
    "usgpo_congress": 12,
    "us_pif": 8,
    "us_18f": 6,
    "us_digitalcorps": 5,
    "us_usds": 2,
    "judge_pics": 0,
    "bssw": 2,
    "ropensci": 0,
    "historic": 5,
}
_MOST_MASKED = 0.02  # share of a circular crop's corners; 0.05 at most is usual
_WITH_CIRCLES = ("us_pif", "us_18f", "us_digitalcorps", "us_usds")
_ALIKE = 0.93  # correlation of two thumbnails above which they may be one photograph


def read_group(folder: Path, group: str, size: int) -> tuple[list[np.ndarray], list[str]]:
    """Faces (S,S,3) of one group and their names; crops smaller than ``size`` are left out."""
    pictures, names = [], []
    archives: dict[str, dict[str, np.ndarray]] = {}
    with (folder / f"{group}.csv").open(newline="") as table:
        for row in csv.DictReader(table):
            if not _is_usable(row) or int(row["crop_px"]) < size:
                continue
            if row["npz"] not in archives:
                with np.load(folder / row["npz"], allow_pickle=False) as archive:
                    archives[row["npz"]] = {k: archive[k] for k in ("jpeg", "offsets")}
            archive, index = archives[row["npz"]], int(row["index"])
            start, end = archive["offsets"][index : index + 2]
            face = Image.open(io.BytesIO(archive["jpeg"][start:end].tobytes())).convert("RGB")
            pictures.append(np.asarray(face.resize((size, size), Image.Resampling.LANCZOS)))
            names.append(f"{group}/{Path(row['source_path']).stem}_{row['crop_px']}_{index:04d}")
    return pictures, names


def _is_usable(row: dict[str, str]) -> bool:
    """No circular crop, and of old photographs only those without grain or retouching."""
    masked = float(row["masked_frac"] or 0) > _MOST_MASKED
    return not masked and row.get("quality_eye", "a") == "a"


def without_circles(
    pictures: list[np.ndarray], names: list[str]
) -> tuple[list[np.ndarray], list[str]]:
    """Leave out crops whose four corners show one flat colour that the top edge does not."""
    kept = [(p, n) for p, n in zip(pictures, names, strict=True) if not _is_circle(p)]
    return [p for p, _ in kept], [n for _, n in kept]


def _is_circle(face: np.ndarray) -> bool:
    side = len(face) // 32
    corners = [face[y, x].reshape(-1, 3) for y in _ends(side) for x in _ends(side)]
    top = np.concatenate(corners[:2]).astype(int)
    flat = (top.max(axis=0) - top.min(axis=0)).max() <= 8
    same_below = any(abs(c.mean(axis=0) - top.mean(axis=0)).max() <= 8 for c in corners[2:])
    middle = face[:side, len(face) // 2 - side : len(face) // 2 + side].reshape(-1, 3)
    differs = abs(middle.mean(axis=0) - top.mean(axis=0)).max() > 30
    return bool(flat and same_below and differs)


def _ends(side: int) -> tuple[slice, slice]:
    return slice(0, side), slice(-side, None)


def split(names: list[str], count: int) -> np.ndarray:
    """(N,) bool: the ``count`` faces kept for checks, by a hash of their names."""
    order = sorted(range(len(names)), key=lambda i: stable_seed("check", names[i]))
    chosen = np.zeros(len(names), bool)
    chosen[order[:count]] = True
    return chosen


def copies_of(pictures: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N,) bool: which of ``pictures`` (N,S,S,3) look like the same photo as one of ``others``."""
    alike: np.ndarray = (_thumbnails(pictures) @ _thumbnails(others).T).max(axis=1) > _ALIKE
    return alike


def _thumbnails(pictures: np.ndarray) -> np.ndarray:
    """Grey 16-pixel versions as rows of mean 0 and length 1."""
    step = pictures.shape[1] // 16
    small = pictures.mean(axis=3).reshape(len(pictures), 16, step, 16, step).mean(axis=(2, 4))
    rows = small.reshape(len(pictures), -1)
    rows = rows - rows.mean(axis=1, keepdims=True)
    units: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-6)
    return units


def same_names(names: list[str], others: list[str]) -> np.ndarray:
    """(N,) bool: which names are those of a person in ``others``, whatever the group."""
    people = {_person(name) for name in others}
    return np.array([_person(name) in people for name in names])


def _person(name: str) -> str:
    stem = name.split("/", 1)[1].rsplit("_", 2)[0].lower()
    return "".join(c for c in stem.removeprefix("social-").removesuffix("-headshot") if c.isalnum())


def main() -> None:
    """Read the arguments and write the two files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("faces", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--size", type=int, default=128, choices=(64, 128, 256))
    options = parser.parse_args()
    pictures, names, source, check = [], [], [], []
    for number, (group, count) in enumerate(GROUPS.items()):
        some, some_names = read_group(options.faces / "more", group, options.size)
        if group in _WITH_CIRCLES:
            some, some_names = without_circles(some, some_names)
        pictures += some
        names += some_names
        source += [number] * len(some)
        check.append(split(some_names, count))
    images, numbers, checked = np.stack(pictures), np.array(source), np.concatenate(check)
    checked_names = [n for n, c in zip(names, checked, strict=True) if c]
    trained = ~checked & ~same_names(names, checked_names) & ~copies_of(images, images[checked])
    options.output.mkdir(parents=True, exist_ok=True)
    for kind, chosen in (("faces", trained), ("check", checked)):
        buffer = io.BytesIO()
        np.savez(
            buffer, images=images[chosen], files=np.array(names)[chosen], source=numbers[chosen]
        )
        files.write_bytes(options.output / f"{kind}{options.size}.npz", buffer.getvalue())
        counts = np.bincount(numbers[chosen], minlength=len(GROUPS))
        print(kind, chosen.sum(), dict(zip(GROUPS, counts.tolist(), strict=True)))
    print("left out as copies of checked people:", int((~trained & ~checked).sum()))


if __name__ == "__main__":
    main()
