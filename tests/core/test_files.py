import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dr2pipe.core import files, images
from dr2pipe.core.config import stable_hash, stable_seed
from dr2pipe.core.errors import UnreadableFileError
from dr2pipe.core.records import append_jsonl, read_jsonl


def test_another_disk_below_the_output_is_written_to(tmp_path, monkeypatch):
    rename = os.replace
    target = tmp_path / "linked" / "a.png"
    partial = tmp_path / ".partial"
    partial.mkdir()

    def replace(source, destination):
        if Path(source).parent != Path(destination).parent:
            raise OSError(errno.EXDEV, "Invalid cross-device link", source, None, destination)
        rename(source, destination)

    monkeypatch.setattr(os, "replace", replace)
    files.write_bytes(target, b"whole", partial_folder=partial)
    assert target.read_bytes() == b"whole"
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["a.png"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EFBIG])
def test_an_error_of_the_disk_names_the_file(number, tmp_path, monkeypatch):
    def fail(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"a\.png") as failed:
        files.write_bytes(tmp_path / "a.png", b"data")
    assert failed.value.errno == number
    assert not list(tmp_path.iterdir())


def test_a_line_that_is_cut_off_names_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "write", lambda handle, data: len(data) - 1)
    with pytest.raises(OSError, match=r"full.*lines.jsonl"):
        append_jsonl(tmp_path / "lines.jsonl", [{"a": 1}])


def test_the_leftover_of_a_killed_process_is_taken_away(tmp_path):
    target = tmp_path / "a.json"
    child = os.fork()
    if child == 0:
        os.replace = lambda *paths: os._exit(9)
        files.write_bytes(target, b"never whole")
    os.waitpid(child, 0)
    assert [p.suffix for p in tmp_path.iterdir()] == [".partial"]
    files.write_bytes(target, b"whole")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_folder_is_never_lost(renames, tmp_path):
    """A process is killed before, between and after the renames that replace a folder."""

    def save(content):
        def write(folder):
            folder.mkdir()
            (folder / "a").write_text(content)

        return write

    def found():
        return sorted(p.read_text() for p in tmp_path.rglob("a"))

    target = tmp_path / "model"
    files.write_folder(target, save("old"))
    child = os.fork()
    if child == 0:
        rename, left = os.replace, [renames]

        def replace(*paths):
            if not left[0]:
                os._exit(9)
            left[0] -= 1
            rename(*paths)

        os.replace, files.shutil.rmtree = replace, lambda *_, **options: None
        files.write_folder(target, save("new"))
        os._exit(9)
    os.waitpid(child, 0)
    assert found() == ["new", "old"]

    def fail(folder):
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    with pytest.raises(OSError, match="No space"):
        files.write_folder(target, fail)
    assert (target / "a").read_text() == ("new" if renames == 2 else "old")
    files.write_folder(target, save("newest"))
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert found() == ["newest"]


@pytest.mark.parametrize("place", ["pipe", "folder", "device"])
def test_what_is_no_file_keeps_its_place(place, tmp_path):
    path = tmp_path / "place"
    if place == "pipe":
        os.mkfifo(path)
    elif place == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/null")
    before = os.lstat(path)
    with pytest.raises(UnreadableFileError, match=r"place: (not a regular|a folder)"):
        files.write_bytes(path, b"data")
    assert os.lstat(path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["place"]


@given(st.binary(min_size=1, max_size=20).filter(lambda name: b"\0" not in name))
def test_names_of_any_bytes_come_back_from_json_lines(tmp_path_factory, name):
    path = tmp_path_factory.mktemp("names") / "lines.jsonl"
    append_jsonl(path, [{"path": os.fsdecode(name)}])
    assert os.fsencode(read_jsonl(path).records[0]["path"]) == name
    assert stable_hash({"path": os.fsdecode(name)}) == stable_hash(json.loads(path.read_text()))
    assert stable_seed(0, os.fsdecode(name)) >= 0


def test_a_folder_that_may_not_be_opened_is_named(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UnreadableFileError, match=r"cannot be opened: Permission denied"):
        images.find_images(tmp_path)
