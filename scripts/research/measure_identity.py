"""How well ``identity_similarity`` tells people apart, and where dlib has the face.

python scripts/research/measure_identity.py FACES [--photos CSV] [--groups CSV COLUMN...] [--fit CSV]

FACES is a folder of FFHQ-aligned faces, one per person. Each is reduced, or reduced to 64 pixels and
degraded, and compared with all of them: the table has rank-1 (the share that is nearest to its
own original), and the similarity to the own and to other people's faces.

The csv of --photos lists whole photos beside it: ``file``, ``crop`` (the same face in FACES) and five
landmarks (eyeL_x ...). --groups says how often two people of one group are taken for one; its csv
has ``file``, ``person_id`` and the columns. --fit takes FACES and its csv of ``file`` and landmarks, and prints the constants of
``dr2pipe/features/dlib_identity.py``; it needs dlib.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dr2pipe.cli import report_errors
from dr2pipe.core import images
from dr2pipe.core.config import stable_seed
from dr2pipe.core.errors import ConfigError
from dr2pipe.core.extras import find_in_package
from dr2pipe.core.foreign import read_csv
from dr2pipe.core.images import Pixels
from dr2pipe.degradations import degrade
from dr2pipe.features.dlib_identity import Embeddings, IdentityEmbedder, load_identity
from dr2pipe.features.dlib_resnet import SIZE

SIDES_PX = (256, 128, 64, 48, 32, 24, 16)
DEGRADATIONS = ("mild", "medium", "severe")
_DEGRADED_PX = 64
SAME = 0.4  # the similarity from which dlib's authors take two photos for one person
_POINTS = ("eyeL", "eyeR", "nose", "mouthL", "mouthR")


def similarities(found: Embeddings, originals: Embeddings) -> npt.NDArray[np.float64]:
    """(N,M) of embeddings (N,128) and (M,128)."""
    distances = np.linalg.norm(found[:, None] - originals[None], axis=2)
    found_similarities: npt.NDArray[np.float64] = np.maximum(0, 1 - distances)
    return found_similarities


def row(label: str, table: npt.NDArray[np.float64], own: list[int]) -> str:
    """A line of the table; ``own`` is the column of each row's person."""
    places = np.arange(len(own))
    same = table[places, own]
    others = np.delete(table.ravel(), places * table.shape[1] + own)
    rank_1 = (table.argmax(axis=1) == own).mean()
    return (
        f"{label:18} {rank_1:6.1%} {same.mean():8.3f} {same.min():7.3f} "
        f"{others.mean():9.3f} {np.percentile(others, 99):9.3f} {others.max():8.3f}"
    )


def landmarks_of(line: dict[str, str]) -> npt.NDArray[np.float64]:
    """(5,2) of a line of a csv."""
    return np.array([[float(line[f"{point}_{axis}"]) for axis in "xy"] for point in _POINTS])


def measure_table(faces: dict[str, Pixels], embedder: IdentityEmbedder) -> list[str]:
    """Lines for every side and degradation."""
    originals = embedder.embed_aligned(list(faces.values()))
    own = list(range(len(faces)))
    lines = [row("the same picture", similarities(originals, originals), own)]
    for side in SIDES_PX:
        small = [images.resize_pixels(face, (side, side)) for face in faces.values()]
        found = embedder.embed_aligned(small)
        lines.append(row(f"{side} px", similarities(found, originals), own))
    for name in DEGRADATIONS:
        damaged = []
        for file, face in faces.items():
            reduced = images.resize_pixels(face, (_DEGRADED_PX, _DEGRADED_PX))
            rng = np.random.default_rng(stable_seed(0, name, file))
            damaged.append(degrade(reduced, name, rng)[0])
        found = embedder.embed_aligned(damaged)
        lines.append(row(f"{_DEGRADED_PX} px, {name}", similarities(found, originals), own))
    return lines


def measure_photos(table: Path, faces: dict[str, Pixels], embedder: IdentityEmbedder) -> str:
    """A line about whole photos, whose faces are found by the given landmarks."""
    lines = [line for line in read_csv(table, ["file", "crop"]) if line["crop"] in faces]
    found = [
        embedder.embed(images.read_image(table.parent / line["file"]).pixels, landmarks_of(line))
        for line in lines
    ]
    originals = embedder.embed_aligned(list(faces.values()))
    own = [list(faces).index(line["crop"]) for line in lines]
    return row(f"{len(lines)} whole photos", similarities(np.stack(found), originals), own)


def measure_groups(
    table: Path, columns: list[str], faces: dict[str, Pixels], embedder: IdentityEmbedder
) -> list[str]:
    """Lines about pairs of two people, for each value of each column."""
    lines = [
        line for line in read_csv(table, ["file", "person_id", *columns]) if line["file"] in faces
    ]
    embeddings = embedder.embed_aligned([faces[line["file"]] for line in lines])
    values = similarities(embeddings, embeddings)
    people = np.array([line["person_id"] for line in lines])
    others = np.triu(people[:, None] != people[None], k=1)
    found = [f"{'group':26} {'faces':>5} {'mean':>6} {'99 %':>6} {'above ' + str(SAME):>9}"]
    for column in columns:
        groups = np.array([line[column] for line in lines])
        for group in sorted(set(groups)):
            mine = values[others & (groups[:, None] == group) & (groups[None] == group)]
            found.append(
                f"{column + ' ' + group:26} {(groups == group).sum():5} {mine.mean():6.3f} "
                f"{np.percentile(mine, 99):6.3f} {(mine > SAME).mean():9.2%}"
            )
    return found


def fit(table: Path, faces: dict[str, Pixels]) -> list[str]:
    """Where dlib's own detector and five landmarks put the picture that its network sees."""
    import dlib

    model = find_in_package(
        "face_recognition_models", "models/shape_predictor_5_face_landmarks.dat"
    )
    detect, predict = dlib.get_frontal_face_detector(), dlib.shape_predictor(str(model))
    boxes, points = [], []
    for line in read_csv(table, ["file"]):
        face = faces.get(line["file"])
        if face is None:
            continue
        found = detect(face)
        if len(found) != 1:
            continue
        chip = dlib.get_face_chip_details(predict(face, found[0]), SIZE, 0.25)
        # dlib counts from the centre of the first pixel.
        centre = np.array(
            [chip.rect.left() + chip.rect.right(), chip.rect.top() + chip.rect.bottom()]
        )
        centre, side = centre / 2 + 0.5, chip.rect.width()
        boxes.append([*(centre / len(face)), side / len(face)])
        cos, sin = np.cos(chip.angle), np.sin(chip.angle)
        turned = (landmarks_of(line) - centre) @ np.array([[cos, -sin], [sin, cos]])
        points.append(turned * SIZE / side + SIZE / 2)
    box, landmarks = np.median(boxes, axis=0).round(4), np.median(points, axis=0).round(1)
    return [
        f"{len(boxes)} faces: centre {box[:2].tolist()}, side {box[2]}",
        f"landmarks {landmarks.tolist()}",
    ]


def main() -> int:
    """Parse the command line and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("faces", type=Path)
    parser.add_argument("--photos", type=Path, help="csv of whole photos of the same people")
    parser.add_argument("--groups", nargs="+", help="a csv, and the columns to group by")
    parser.add_argument(
        "--fit", type=Path, help="csv of landmarks of FACES; prints constants alone"
    )
    options = parser.parse_args()
    paths = images.find_images(options.faces).paths
    if not paths:
        raise ConfigError(f"{options.faces} holds no pictures")
    faces = {path.name: images.read_image(path).pixels for path in paths}
    if options.fit:
        print("\n".join(fit(options.fit, faces)))
        return 0
    embedder = load_identity()
    if options.groups:
        table, *columns = options.groups
        print("\n".join(measure_groups(Path(table), columns, faces, embedder)))
        return 0
    print(f"{len(faces)} people")
    print(
        f"{'':18} {'rank-1':>6} {'own mean':>8} {'min':>7} {'oth. mean':>9} {'99 %':>9} {'max':>8}"
    )
    print("\n".join(measure_table(faces, embedder)))
    if options.photos:
        print(measure_photos(options.photos, faces, embedder))
    return 0


if __name__ == "__main__":
    sys.exit(report_errors(main))
