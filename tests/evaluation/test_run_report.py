"""``dr2pipe report``: one page about a run of restore."""

import json
import shutil

import numpy as np
import pytest
from conftest import TINY, make_pictures
from pages import Page, browse, decode
from photos import landmarks_at, smooth_photo
from PIL import Image

from dr2pipe import cli
from dr2pipe.core.config import load_config
from dr2pipe.core.errors import ConfigError
from dr2pipe.evaluation.report.runs import write_run_report
from dr2pipe.runs.restore import RestoreConfig, restore_folder

PLACES = {f"p{i}.png": [(100 + 9 * i, 120, 90), (290, 150, 110)] for i in range(4)}


@pytest.fixture(scope="module")
def finished(model_folder, tmp_path_factory):
    """Folder of a run over six photos and a broken file; its input is beside it."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "in").mkdir()
    for i, name in enumerate([*PLACES, "none.png", "<b>odd&.png"]):
        Image.fromarray(smooth_photo(seed=i)).save(folder / "in" / name)
    (folder / "in/broken.jpg").write_bytes(b"no picture")
    listed = {
        name: [{"landmarks": landmarks_at(*place).round(2).tolist()} for place in places]
        for name, places in PLACES.items()
    }
    (folder / "faces.json").write_text(json.dumps(listed))
    overrides = [
        f"input={folder / 'in'}", f"output={folder / 'out'}", f"dr2.model={model_folder}",
        "dr2.tau=2", "dr2.omega=8", "dr2.factor=2", "dr2.num_evaluations=2", "samples=2",
        "enhancer.name=none", "faces.skip_good=false", "identity.measure=false", "scale=2",
        "faces.name=file", f"faces.file={folder / 'faces.json'}",
    ]  # fmt: skip
    restore_folder(load_config(RestoreConfig, None, overrides))
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the run's output, whose records may be changed."""
    return shutil.copytree(finished / "out", tmp_path / "out")


def change(run, edit):
    """Put every record of the manifest through a function."""
    lines = (run / "manifest.jsonl").read_text().splitlines()
    changed = [json.dumps(edit(json.loads(line))) for line in lines]
    (run / "manifest.jsonl").write_text("\n".join(changed) + "\n")


def give_likeness(record):
    for i, face in enumerate(record["faces"]):
        face["identity"] = (int(record["path"][1]) + 4 * i + 1) / 10
    return record


def said(page):
    """The text of a page; cells and captions stand without a space between them."""
    return " ".join(page.text[page.text.index("pictures, restored by") :].split())


def test_what_the_page_says(run):
    page = Page(write_run_report(run))
    text = said(page)
    assert "6pictures8faces restored0faces left as they are1failures" in text
    assert "no face was found2" in text
    assert "not an image file, whatever its name says1broken.jpg" in text
    assert "<b>odd&.png" in text  # escaped in the source
    assert "<b>odd" not in page.source
    assert "The most uncertain" in text
    assert "The most like before" not in text  # likeness was not measured
    assert "factor: 2" in text
    assert not [uri for uri in page.all("img", "src") if not uri.startswith("data:")]


def test_faces_are_ranked_by_likeness(run):
    change(run, give_likeness)
    text = said(Page(write_run_report(run)))
    most, rest = text.split("In the middle")
    middle, least = rest.split("The least like before")
    least = least.split("The most uncertain")[0]
    assert [most.count(f"likeness 0.{i}") for i in range(1, 9)] == [0] * 6 + [1] * 2
    assert [middle.count(f"likeness 0.{i}") for i in range(1, 9)] == [0, 0, 0, 1, 1, 0, 0, 0]
    assert [least.count(f"likeness 0.{i}") for i in range(1, 9)] == [1] * 2 + [0] * 6


def test_the_same_part_of_the_photo_before_and_after(finished, run):
    """Where a network changed nothing, the two halves show the same pixels."""
    for name in PLACES:  # as if the result were the photo, enlarged
        photo = Image.open(finished / "in" / name)
        photo.resize((800, 600), Image.Resampling.BICUBIC).save(run / "restored" / name)
    page = Page(write_run_report(run))
    uris = [uri for uri in page.all("img", "src") if uri.startswith("data:image/webp")]
    assert len(uris) == 2 * 6
    for before, after in zip(uris[::2], uris[1::2], strict=True):
        difference = np.abs(decode(before).astype(float) - decode(after))
        assert difference.mean() < 2


def test_moved_photos(finished, run, tmp_path):
    marker = run / "run.yaml"
    marker.write_text(marker.read_text().replace(str(finished / "in"), str(tmp_path / "gone")))
    page = Page(write_run_report(run))
    assert "6 faces are not shown: their pictures cannot be read in" in page.text
    assert cli.main(["report", str(run), "--input", str(finished / "in")]) == 0
    assert "not shown" not in Page(run / "report.html").text


def test_a_page_of_the_users_stays(run):
    assert not (run / "plots").exists()  # the page holds its plots
    (run / "report.html").write_text("<html>mine</html>")
    assert cli.main(["report", str(run)]) == 2
    assert (run / "report.html").read_text() == "<html>mine</html>"
    (run / "report.html").unlink()
    for _ in range(2):
        assert cli.main(["report", str(run)]) == 0


def test_skipped_faces_and_other_settings_are_listed(run):
    def edit(record):
        if record["path"] == "p0.png":
            record["settings"] = "another"
            record["faces"][0]["skipped"] = "good as it is: it has the detail of 231 pixels"
        if record["path"] == "p1.png":
            record["warnings"] = ["only the first of 3 pages or frames was taken"]
            record["faces"][0]["auto"] = {"factor": 4, "tau": 6, "omega": 16}
            record["faces"][1]["auto"] = {"enabled": False}
        return record

    change(run, edit)
    text = said(Page(write_run_report(run)))
    assert "good as it is: it has the detail of … pixels1p0.png" in text
    assert "only the first of … pages or frames was taken1p1.png" in text
    assert "1 pictures were made with other settings" in text
    assert "N = 4, τ = 6, ω = 161p1.png" in text
    assert "without stage 11p1.png" in text


def test_aligned_faces(model_folder, tmp_path):
    source = make_pictures(tmp_path / "in", 3)
    overrides = [
        *TINY,
        f"input={source}",
        f"output={tmp_path / 'out'}",
        f"dr2.model={model_folder}",
    ]
    restore_folder(load_config(RestoreConfig, None, [*overrides, "enhancer.name=none"]))
    page = Page(write_run_report(tmp_path / "out"))
    assert "Some of them" in page.text
    assert len(page.all("img", "class")) == 2 * 3


def test_records_that_make_no_sense_do_no_harm(run):
    def edit(record):
        record["faces"] = [None, {"box": "x"}, {"box": [0, 0, 1e9, 5], "identity": "high"}]
        record["seconds"], record["input"] = None, "?"
        return record

    change(run, edit)
    assert "Settings" in Page(write_run_report(run)).text


@pytest.mark.parametrize("content", [None, "dr2pipe_run: 1\n"])
def test_other_folders_are_refused(tmp_path, content, capsys):
    if content is not None:
        (tmp_path / "run.yaml").write_text(content)
    with pytest.raises(ConfigError, match="no output folder of dr2pipe restore"):
        write_run_report(tmp_path)
    assert cli.main(["report", str(tmp_path)]) == 2
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_it(run, tmp_path, width):
    change(run, give_likeness)
    found = browse(write_run_report(run), tmp_path, width)
    assert found["problems"] == []
    assert (found["broken"], found["overflow"]) == (0, 0)
    assert found["before"] == "inset(0px 0px 0px 50%)"
    assert found["after"] == "inset(0px 0px 0px 20%)"
    assert found["focused"]
    assert 200 < found["side"] < 450
