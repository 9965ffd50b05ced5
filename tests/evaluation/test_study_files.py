"""What a study reads from other people's files, and what it leaves."""

import json
import logging
import os

import numpy as np
import pytest
from conftest import make_pictures, make_pixels
from PIL import Image

from dr2pipe.cli import main
from dr2pipe.core.config import load_config
from dr2pipe.core.errors import ConfigError, Dr2pipeError
from dr2pipe.core.markers import read_marker
from dr2pipe.data.folders import FaceDataset, write_pictures
from dr2pipe.evaluation.evaluate import evaluate
from dr2pipe.evaluation.protocol import Protocol, read_hashes, write_hashes

SETTINGS = ["name=t", "size=32", "degraded_size=16", "degradations=[mild]", "metrics=[psnr]"]


def study(faces, output, *more, methods="{input: {}}"):
    given = [f"clean.path={faces}", f"output={output}", f"methods={methods}", *more]
    return evaluate(load_config(Protocol, None, [*SETTINGS, *given]))


def npz(path, *names):
    pixels = np.stack([make_pixels(i, 32, 32) for i in range(len(names))])
    np.savez(path, images=pixels, files=np.array(names))
    return path


@pytest.mark.parametrize("name", ["../../out", "{tmp}/out", "a/../../out", "C:\\out", "x\0/../y"])
def test_names_of_an_npz_never_leave_the_output(tmp_path, name):
    faces = npz(tmp_path / "f.npz", "good", name.format(tmp=tmp_path))
    if "\0" not in name:  # NumPy ends texts there
        with pytest.raises(Dr2pipeError, match="cannot be used for a file"):
            study(faces, tmp_path / "deep/deep/o", "save_pictures=true")
    assert study(faces, tmp_path / "deep/deep/o")  # without pictures, names are names
    assert {p.name for p in tmp_path.iterdir()} == {"f.npz", "deep"}


def test_faces_of_one_name_are_refused(tmp_path):
    faces = npz(tmp_path / "f.npz", "a", "b", "a")
    with pytest.raises(Dr2pipeError, match="two faces of the name 'a', number 0 and 2"):
        study(faces, tmp_path / "o")
    write_pictures(npz(tmp_path / "g.npz", "../x/a.jpg", "b"), tmp_path / "w")
    assert sorted(p.name for p in (tmp_path / "w").iterdir()) == ["a.png", "b.png"]


def test_equal_pictures_count_as_100_db_and_all_files_are_json(tmp_path):
    faces = make_pictures(tmp_path / "faces", 2, height=32, width=32)
    made = make_pictures(tmp_path / "made/mild", 1, height=32, width=32)
    Image.fromarray(make_pixels(7, 32, 32)).save(made / "face_001.png")
    methods = f"{{input: {{}}, mine: {{folder: {tmp_path / 'made'}}}}}"
    study(faces, tmp_path / "o", methods=methods)

    def refuse(constant):
        raise ValueError(constant)

    lines = (tmp_path / "o/rows.jsonl").read_text().splitlines()
    values = [json.loads(line, parse_constant=refuse)["values"]["mine"]["psnr"] for line in lines]
    assert max(values) == 100
    summary = json.loads((tmp_path / "o/summary.json").read_text(), parse_constant=refuse)
    cell = next(c for c in summary["cells"] if c["method"] == "mine")
    assert cell["mean"] == pytest.approx(np.mean(values))
    assert cell["equal"] == 1


def test_a_study_inside_of_the_faces_does_not_measure_its_own_pictures(tmp_path):
    faces = make_pictures(tmp_path / "faces", 2, height=32, width=32)
    for _ in range(2):
        study(faces, faces / "study", "save_pictures=true")
    assert len(FaceDataset(faces, size=32)) == 2
    assert read_marker(faces / "study")["kind"] == "study"


def test_folders_of_others_are_refused_and_unchanged(tmp_path):
    faces = make_pictures(tmp_path / "faces", 2, height=32, width=32)
    for text in ("mine: 1\n", "dr2pipe_run: 1\nresult_folders: [restored]\n"):
        (tmp_path / "o").mkdir(exist_ok=True)
        (tmp_path / "o/run.yaml").write_text(text)
        with pytest.raises(ConfigError, match="choose another output"):
            study(faces, tmp_path / "o")
        assert (tmp_path / "o/run.yaml").read_text() == text
        assert sorted(p.name for p in (tmp_path / "o").iterdir()) in (
            ["run.yaml"],
            [".lock", "run.yaml"],
        )


@pytest.mark.parametrize(
    "name", ["report.html", "table.md", "results.csv", "preset.yaml", "plots/a"]
)
def test_files_of_others_are_never_replaced(tmp_path, name):
    faces = make_pictures(tmp_path / "faces", 2, height=32, width=32)
    path = tmp_path / "o" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(ConfigError, match=rf"holds {name.split('/')[0]}, which no run"):
        study(faces, tmp_path / "o")
    assert path.read_text() == "mine"


def test_damaged_rows_are_set_aside_and_measured_again(tmp_path, caplog):
    faces = make_pictures(tmp_path / "faces", 3, height=32, width=32)
    study(faces, tmp_path / "o")
    table = (tmp_path / "o/results.csv").read_bytes()
    rows = (tmp_path / "o/rows.jsonl").read_bytes().splitlines(keepends=True)
    odd = b'{"degradation": "mild", "picture": "face_001.png", "values": 3}\n'
    (tmp_path / "o/rows.jsonl").write_bytes(rows[0] + odd + b"\xff\n[1]\n" + rows[2][:20])
    with caplog.at_level(logging.WARNING):
        study(faces, tmp_path / "o")
    assert "3 damaged line(s)" in caplog.text
    assert (tmp_path / "o/rows.jsonl.damaged").read_bytes().startswith(b"\xff\n[1]\n")
    assert (tmp_path / "o/results.csv").read_bytes() == table


def test_long_names_and_names_that_are_no_utf8(tmp_path):
    faces = make_pictures(tmp_path / "faces", 1, height=32, width=32)
    face = (faces / "face_000.png").read_bytes()
    Image.open(faces / "face_000.png").save(faces / f"{'n' * 251}.jpg")
    strange = os.fsdecode(b"M\xfcller.png")
    (faces / strange).write_bytes(face)
    study(faces, tmp_path / "o", "save_pictures=true")
    assert len(list((tmp_path / "o/pictures/input/mild").iterdir())) == 3
    assert b"M\xfcller.png" in (tmp_path / "o/results.csv").read_bytes()
    assert strange in read_hashes(tmp_path / "o/clean.sha256")
    study(faces, tmp_path / "p", f"clean.sha256={tmp_path / 'o/clean.sha256'}")
    # Another tool that works on the kept pictures, under the names that they have.
    tool = f"{{input: {{}}, tool: {{folder: {tmp_path / 'o/pictures/input'}}}}}"
    study(faces, tmp_path / "q", methods=tool)


def test_hashes_come_back(tmp_path):
    hashes = {os.fsdecode(b"\xff a.png"): "0" * 64, "b\r.png": "1" * 64}
    (tmp_path / "h").write_bytes(write_hashes(hashes))
    assert read_hashes(tmp_path / "h") == hashes


def test_parameters_never_replace_their_pictures(tmp_path, capsys):
    faces = tmp_path / "faces.npz"
    names = np.array(["a.png", "b.png"])
    np.savez(faces, images=np.stack([make_pixels(i, 32, 32) for i in range(2)]), files=names)
    before = faces.read_bytes()
    arguments = ["fit-niqe", str(faces), str(faces), "--size", "32", "--block", "16"]
    assert main(arguments) == 2
    assert "would replace" in capsys.readouterr().err
    assert faces.read_bytes() == before
