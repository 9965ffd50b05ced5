"""Which pictures a folder holds, and what is left out with a word."""

import pytest
from conftest import make_pixels
from PIL import Image

from dr2pipe.core import images
from dr2pipe.core.config import to_yaml
from dr2pipe.core.errors import PictureError
from dr2pipe.core.markers import MARKER, marked, read_marker, result_folders


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def names(folder, **options):
    found = images.find_images(folder, **options)
    return [path.relative_to(folder).as_posix() for path in found.paths]


def mark(folder, *results):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).write_text(to_yaml(marked({"config": {}}, results)))


def test_results_inside_are_left_out_and_told(tmp_path, caplog):
    touch(tmp_path, "a.png", "run/restored/a.png", "run/compare/a.png", "run/b.png")
    mark(tmp_path / "run", "restored", "compare")
    found = images.find_images(tmp_path)
    assert [p.name for p in found.paths] == ["a.png", "b.png"]  # b.png is nobody's result
    found.say_what_was_left_out()
    assert "skipped 2 folder(s) with results" in caplog.text
    assert len(names(tmp_path, with_results=True)) == 4


def test_a_folder_restored_in_place_keeps_its_originals(tmp_path):
    touch(tmp_path, "anna/1.png", "anna/restored/1.png", "ben/1.png")
    mark(tmp_path / "anna", "restored")
    assert names(tmp_path) == ["anna/1.png", "ben/1.png"]
    assert names(tmp_path / "anna") == ["1.png"]


@pytest.mark.parametrize(
    "content", ["mine: 1\n", "dr2pipe_run: 99\n", "dr2pipe_run: [\n", "dr2pipe_run: 1\n", "\0\xff"]
)
def test_folders_that_merely_look_alike_are_searched(tmp_path, content):
    touch(tmp_path, "coarse/a.png", "degraded/b.png", "restored/c.png", "manifest.jsonl")
    (tmp_path / MARKER).write_text(content, encoding="latin-1")
    assert names(tmp_path) == ["coarse/a.png", "degraded/b.png", "restored/c.png"]
    assert result_folders(tmp_path) == frozenset()


def test_a_marker_is_what_was_written(tmp_path):
    mark(tmp_path, "restored")
    assert read_marker(tmp_path)["config"] == {}
    assert read_marker(tmp_path / "none") is None
    (tmp_path / "folder" / MARKER).mkdir(parents=True)
    assert read_marker(tmp_path / "folder") is None


def test_trash_and_thumbnails_are_not_entered(tmp_path):
    touch(
        tmp_path, "a.png", ".Trash-1000/files/b.png", "@eaDir/c.jpg", ".thumbnails/d.png",
        "$RECYCLE.BIN/e.png", "._a.png", "trash/f.png", "thumbnails/g.png",
    )  # fmt: skip
    assert names(tmp_path) == ["a.png", "thumbnails/g.png", "trash/f.png"]


def test_every_readable_ending_is_taken_and_others_are_counted(tmp_path, caplog):
    touch(
        tmp_path, "a.jfif", "b.JPE", "c.gif", "d.avif", "e.jp2", "f.nef", "g.CR2", "h.cr2", "i.txt",
        "png", ".png",
    )  # fmt: skip
    found = images.find_images(tmp_path)
    taken = [path.name for path in found.paths]
    assert taken == [name for name in ("a.jfif", "b.JPE", "c.gif", "d.avif", "e.jp2")]
    assert found.unreadable == {".cr2": 2, ".nef": 1}
    found.say_what_was_left_out()
    assert "2 .cr2" in caplog.text


@pytest.mark.parametrize("kind", ["PNG", "MPO", "PPM", "JPEG2000"])
def test_every_ending_that_is_taken_is_read(tmp_path, kind):
    picture = Image.fromarray(make_pixels(1, 64, 64))
    endings = {
        "PNG": (".apng", ".png"), "MPO": (".mpo",), "PPM": (".ppm", ".pnm"),
        "JPEG2000": (".jp2", ".j2k"),
    }[kind]  # fmt: skip
    for ending in endings:
        picture.save(tmp_path / f"a{ending}", kind)
    found = images.find_images(tmp_path).paths
    assert [path.suffix for path in found] == sorted(endings)
    for path in found:
        assert images.read_image(path).pixels.shape == (64, 64, 3)


def test_videos_are_counted_and_named(tmp_path, caplog):
    for name in ("a.mp4", "b.MOV"):
        (tmp_path / name).write_bytes(b"\0\0\0\x20ftypisom" + bytes(40))
    found = images.find_images(tmp_path)
    found.say_what_was_left_out()
    assert found.paths == []
    assert "skipped 2 video(s): dr2pipe video takes them" in caplog.text
    for begins in (b"\0\0\0\x20ftypisom", b"\x1aE\xdf\xa3", b"RIFF\0\0\0\0AVI "):
        with pytest.raises(PictureError, match="dr2pipe video takes it"):
            images.decode_image(begins + bytes(40))
    for brand in (b"heic", b"heim", b"crx ", b"M4A "):
        with pytest.raises(PictureError, match="not an image file"):
            images.decode_image(b"\0\0\0\x20ftyp" + brand + bytes(40))
