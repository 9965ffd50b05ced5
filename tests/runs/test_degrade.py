import csv
import errno
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import make_pictures, run_here
from PIL import Image

from dr2pipe.cli import main
from dr2pipe.core import files
from dr2pipe.runs.degrade import DegradeConfig, degrade_folder
from dr2pipe.runs.embed import read_parameters
from dr2pipe.runs.jobs import find_jobs


def pixels_of(folder):
    return {p.name: np.asarray(Image.open(p)) for p in sorted((folder / "degraded").iterdir())}


def rows_of(folder):
    return list(csv.DictReader((folder / "parameters.csv").open()))


@pytest.fixture
def mixed(tmp_path):
    folder = make_pictures(tmp_path / "in", 4, height=40, width=40)
    Image.fromarray(np.full((30, 50, 3), 90, np.uint8)).save(folder / "wide.jpg")
    return folder


def test_copies_keep_their_size_and_parameters_are_listed(mixed, tmp_path):
    assert main(["degrade", str(mixed), str(tmp_path / "o"), "--with", "severe"]) == 0
    pictures = pixels_of(tmp_path / "o")
    assert len(pictures) == 5
    assert pictures["wide.png"].shape == (30, 50, 3)
    rows = rows_of(tmp_path / "o")
    assert [r["path"] for r in rows] == sorted(r["path"] for r in rows)
    assert len({r["sigma_x_px"] for r in rows}) == 5
    assert all(20 <= int(r["jpeg_quality"]) <= 50 and r["degradation"] == "severe" for r in rows)
    lines = (tmp_path / "o/manifest.jsonl").read_text().splitlines()
    assert not any(json.loads(line)["warnings"] for line in lines)  # nothing is made square


def test_a_picture_depends_on_seed_and_path_alone(mixed, tmp_path):
    degrade_folder(DegradeConfig(str(mixed), str(tmp_path / "a"), "speckle", severity=3))
    for path in list(mixed.iterdir())[:3]:
        path.unlink()
    degrade_folder(DegradeConfig(str(mixed), str(tmp_path / "b"), "speckle", severity=3))
    degrade_folder(DegradeConfig(str(mixed), str(tmp_path / "c"), "speckle", severity=3, seed=1))
    whole, part, other = (pixels_of(tmp_path / name) for name in "abc")
    assert part
    assert all((pixels == whole[name]).all() for name, pixels in part.items())
    assert all((pixels != other[name]).any() for name, pixels in part.items())


def test_goes_on_and_does_again_what_changed(mixed, tmp_path):
    def counts(**settings):
        summary = degrade_folder(DegradeConfig(str(mixed), str(tmp_path / "o"), **settings))
        return summary.restored, summary.skipped

    ranges = tmp_path / "mine.yaml"
    ranges.write_text("sigma_px: [1, 2]\nshrink: [1, 2]\nnoise: [0, 5]\njpeg_quality: [60, 90]\n")
    assert counts(degradation="mild") == (5, 0)
    assert counts(degradation="mild") == (0, 5)
    next(iter((tmp_path / "o/degraded").iterdir())).unlink()
    assert counts(degradation="mild") == (1, 4)
    assert counts(degradation="mild", size=24) == (5, 0)
    assert {p.shape for p in pixels_of(tmp_path / "o").values()} == {(24, 24, 3)}
    assert counts(degradation=str(ranges)) == (5, 0)


def test_the_csv_tells_of_this_degradation_alone(mixed, tmp_path):
    degrade_folder(DegradeConfig(str(mixed), str(tmp_path / "o"), "mild"))
    (mixed / "face_000.png").write_bytes(b"rubbish")
    degrade_folder(DegradeConfig(str(mixed), str(tmp_path / "o"), "severe"))
    rows = rows_of(tmp_path / "o")
    assert len(rows) == 4
    assert all(int(r["jpeg_quality"]) <= 50 for r in rows)


def test_degraded_copies_may_be_the_input_of_a_run_beside_them(mixed, tmp_path):
    degrade_folder(DegradeConfig(str(mixed), str(tmp_path / "o"), "mild"))
    again = DegradeConfig(str(tmp_path / "o/degraded"), str(tmp_path / "o"), "rain", severity=1)
    assert len(find_jobs(again.input, again.output, ["restored"])) == 5


def test_an_unreadable_picture_is_recorded(mixed, tmp_path, capsys):
    (mixed / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    assert main(["degrade", str(mixed), str(tmp_path / "o"), "--with", "mild"]) == 3
    assert "failures.jsonl" in capsys.readouterr().out
    failure = json.loads((tmp_path / "o/failures.jsonl").read_text())
    assert failure["path"] == "broken.png"
    assert len(rows_of(tmp_path / "o")) == 5


def test_sheet_of_the_unseen_families(mixed, tmp_path):
    face = str(mixed / "face_000.png")
    assert main(["degrade", face, str(tmp_path / "sheet.png"), "--sheet"]) == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (12 * 98 - 2, 9 * 98 - 2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--with", "snow"], "unknown degradation 'snow'"),
        (["--with", "rain"], "severity of 1..5, not None"),
        (["--with", "mild", "--severity", "2"], "takes no severity"),
        (["--with", "mild", "--size", "0"], "size=0"),
        (["--sheet", "--size", "64"], "no --size"),
        (["--sheet", "--severity", "0"], "no --severity"),
        (["--sheet"], "folder"),
        ([], "--with"),
    ],
)
def test_usage_errors(mixed, tmp_path, capsys, arguments, says):
    assert main(["degrade", str(mixed), str(tmp_path / "o"), *arguments]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_table_of_the_user_stays(mixed, tmp_path, capsys):
    (tmp_path / "o").mkdir()
    (tmp_path / "o/parameters.csv").write_text("mine")
    arguments = ["degrade", str(mixed), str(tmp_path / "o"), "--with", "mild"]
    assert main(arguments) == 2
    assert "holds parameters.csv, which no run" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "o").iterdir()] == ["parameters.csv"]
    (tmp_path / "o/parameters.csv").unlink()
    assert main(arguments) == main(arguments) == 0


def test_a_sheet_never_replaces_its_face(tmp_path, capsys):
    (face,) = make_pictures(tmp_path / "in", 1).iterdir()
    (tmp_path / "link.png").symlink_to(face)
    before = face.read_bytes()
    for output in (face, tmp_path / "link.png"):
        assert main(["degrade", str(face), str(output), "--sheet"]) == 2
        assert f"would replace {face}" in capsys.readouterr().err
    assert face.read_bytes() == before


def test_as_a_command(mixed, tmp_path):
    result = run_here("-m", "dr2pipe", "degrade", mixed, tmp_path / "o", "--with", "mild")
    assert result.returncode == 0, result.stderr
    assert "5 degraded, 0 already done, 0 failed" in result.stdout


def test_names_that_are_no_utf_8_keep_their_bytes(mixed, tmp_path):
    name = b"M\xfcller.png"
    (mixed / "face_000.png").rename(os.fsdecode(os.fsencode(mixed) + b"/" + name))
    assert main(["degrade", str(mixed), str(tmp_path / "o"), "--with", "mild"]) == 0
    assert b"\n" + name + b",degraded/" + name in (tmp_path / "o" / "parameters.csv").read_bytes()
    assert name in os.listdir(os.fsencode(tmp_path / "o" / "degraded"))
    known = read_parameters(tmp_path / "o")
    assert str((tmp_path / "o" / "degraded" / os.fsdecode(name)).resolve()) in known


def test_a_full_disk_ends_the_run_and_names_the_file(mixed, tmp_path, monkeypatch, capsys):
    write, refused = files.write_bytes, []

    def fail(path, data, **options):
        if refused or "face_002" in str(path):
            refused.append(path)
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, data, **options)

    command = ["degrade", str(mixed), str(tmp_path / "o"), "--with", "mild"]
    monkeypatch.setattr(files, "write_bytes", fail)
    assert main(command) == 2
    said = capsys.readouterr().err  # several threads write, and the first that fails is named
    assert any(f"{Path(path).name}: No space left on device" in said for path in refused)
    monkeypatch.setattr(files, "write_bytes", write)
    assert main(command) == 0
    counts = re.search(r"(\d) degraded, (\d) already done", capsys.readouterr().out)
    assert sum(map(int, counts.groups())) == 5
