"""The check set holds other people than the training set, and unusable faces are left out."""

import csv
import io
import sys

import numpy as np
import prepare_faces
from conftest import make_pixels
from PIL import Image

SIZE = 64


def jpeg_of(seed):
    buffer = io.BytesIO()
    Image.fromarray(make_pixels(seed, SIZE, SIZE)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def write_group(folder, group, faces):
    """``faces``: (seed of the picture, name, side of the crop, masked share) of each."""
    data = [jpeg_of(seed) for seed, *_ in faces]
    np.savez(
        folder / f"{group}.npz",
        jpeg=np.frombuffer(b"".join(data), np.uint8),
        offsets=np.cumsum([0, *map(len, data)]),
    )
    with (folder / f"{group}.csv").open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["npz", "index", "source_path", "crop_px", "masked_frac"])
        for index, (_, name, side, masked) in enumerate(faces):
            writer.writerow([f"{group}.npz", index, f"{name}.jpg", side, masked])


def test_faces_are_split_by_person(tmp_path, monkeypatch):
    (tmp_path / "more").mkdir()
    write_group(tmp_path / "more", "old", [(0, "ann", 80, 0)])
    write_group(
        tmp_path / "more",
        "new",
        [
            (1, "ben", 80, 0),
            (2, "ann", 80, 0),  # the name of a checked person
            (0, "eve", 80, 0),  # the photo of a checked person
            (3, "tiny", 40, 0),
            (4, "round", 80, 0.5),
        ],
    )
    monkeypatch.setattr(prepare_faces, "GROUPS", {"old": 1, "new": 0})
    monkeypatch.setattr(
        sys, "argv", ["prepare_faces", str(tmp_path), str(tmp_path / "out"), "--size", str(SIZE)]
    )
    prepare_faces.main()
    checked, trained = (np.load(tmp_path / f"out/{kind}64.npz") for kind in ("check", "faces"))
    assert list(checked["files"]) == ["old/ann_80_0000"]
    assert list(trained["files"]) == ["new/ben_80_0000"]
    assert (list(checked["source"]), list(trained["source"])) == ([0], [1])
    assert trained["images"].shape == (1, SIZE, SIZE, 3)


def test_circular_crops_are_found():
    face = np.full((SIZE, SIZE, 3), 120, np.uint8)
    circle = face.copy()
    for rows in (slice(0, 8), slice(-8, None)):
        for columns in (slice(0, 8), slice(-8, None)):
            circle[rows, columns] = 255
    kept, names = prepare_faces.without_circles([face, circle], ["a", "b"])
    assert names == ["a"]
    assert kept[0] is face
