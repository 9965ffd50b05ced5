"""Aligned faces cut out of photos, as a training takes them."""

import csv
import json

import numpy as np
import pytest
from conftest import run_here
from photos import landmarks_at, smooth_photo
from PIL import Image

from dr2pipe.core.errors import ConfigError
from dr2pipe.data.folders import FaceDataset
from dr2pipe.data.landmarks import read_parts
from dr2pipe.faces import DetectorConfig
from dr2pipe.faces.align import TEMPLATE, align, cut
from dr2pipe.runs.cut_faces import CutConfig, cut_faces

# Photo: x, y, side and rotation of its faces.
PLACES = {
    "a.png": [(110, 140, 120, 10), (300, 150, 80, -25)],
    "sub/b.jpg": [(200, 150, 150, 0), (60, 60, 30, 0)],
    "empty.png": [],
}


@pytest.fixture
def photos(tmp_path):
    """Photos, and the list of their faces."""
    listed = {}
    for seed, (name, places) in enumerate(PLACES.items()):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(smooth_photo(seed=seed)).save(path, quality=95)
        listed[name] = [{"landmarks": landmarks_at(*place).tolist()} for place in places]
    (tmp_path / "faces.json").write_text(json.dumps(listed))
    return tmp_path / "photos"


def config_for(photos, output, **changes):
    detector = DetectorConfig("file", str(photos.parent / "faces.json"))
    return CutConfig(str(photos), str(output), **{"size": 64, "detector": detector} | changes)


def rows_of(output):
    with (output / "faces.csv").open(newline="") as table:
        return list(csv.DictReader(table))


def test_faces_and_their_table(photos, tmp_path):
    out = tmp_path / "out"
    assert cut_faces(config_for(photos, out)).restored == 3
    rows = rows_of(out)
    assert [(row["file"], row["photo"]) for row in rows] == [
        ("faces/a/a_000.png", "a.png"),
        ("faces/a/a_001.png", "a.png"),
        ("faces/sub/b/b_000.png", "sub/b.jpg"),  # the other one has 30 pixels in the photo
    ]
    assert sorted(p.relative_to(out).as_posix() for p in out.glob("faces/**/*.png")) == [
        row["file"] for row in rows
    ]
    for row in rows:
        points = [[float(row[f"{name}_{axis}"]) for axis in "xy"]
                  for name in ("eyeL", "eyeR", "nose", "mouthL", "mouthR")]  # fmt: skip
        assert np.abs(np.array(points) - TEMPLATE * 64).max() < 0.3
    x, y, side, degrees = PLACES["a.png"][1]
    expected = cut(smooth_photo(seed=0), align(landmarks_at(x, y, side, degrees)), 64)
    assert np.array_equal(np.array(Image.open(out / "faces/a/a_001.png")), expected)
    assert [float(row["side_px"]) for row in rows] == pytest.approx([120, 80, 150], rel=0.01)
    # A training reads them, and the table as the places of eyes and mouth.
    faces = FaceDataset(out / "faces", size=64)
    assert [faces.relative(name) for name in faces.names] == [
        "a/a_000.png", "a/a_001.png", "sub/b/b_000.png",
    ]  # fmt: skip
    assert set(read_parts(out / "faces.csv", 64)) == {
        "faces/a/a_000", "faces/a/a_001", "faces/sub/b/b_000"
    }  # fmt: skip


def test_a_second_run_does_what_is_missing(photos, tmp_path):
    out = tmp_path / "out"
    cut_faces(config_for(photos, out))
    before = (out / "faces.csv").read_bytes()
    (out / "faces/a/a_000.png").unlink()
    again = cut_faces(config_for(photos, out))
    assert (again.restored, again.skipped) == (1, 2)
    assert (out / "faces/a/a_000.png").is_file()
    assert (out / "faces.csv").read_bytes() == before
    small = cut_faces(config_for(photos, out, min_px=20))
    assert small.restored == 3
    assert len(rows_of(out)) == 4


def test_the_command(photos, tmp_path):
    given = ["-m", "dr2pipe", "cut-faces", photos, tmp_path / "out", "--size", "64"]
    done = run_here(*given, "--min-px", "100", "--faces", photos.parent / "faces.json")
    assert done.returncode == 0, done.stderr
    assert "3 photos searched, 0 already done, 0 failed" in done.stdout
    assert [row["file"] for row in rows_of(tmp_path / "out")] == [
        "faces/a/a_000.png", "faces/sub/b/b_000.png",
    ]  # fmt: skip


@pytest.mark.parametrize("changes", [{"size": 8}, {"min_px": 0}])
def test_sizes_out_of_range(photos, tmp_path, changes):
    with pytest.raises(ConfigError, match="must be at least 16, and min_px="):
        cut_faces(config_for(photos, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_a_table_of_the_user_stays(photos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/faces.csv").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds faces\.csv, which no run"):
        cut_faces(config_for(photos, tmp_path / "out"))
    assert (tmp_path / "out/faces.csv").read_text() == "mine"
