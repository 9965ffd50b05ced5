import errno

import fsspec
import pytest

from dr2pipe.core import storage as module
from dr2pipe.core.errors import ConfigError, Dr2pipeError
from dr2pipe.core.storage import Storage, again, read_url


@pytest.fixture(params=["disk", "memory"])
def stored(request, tmp_path):
    if request.param == "disk":
        return Storage(str(tmp_path / "a folder"))
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    return Storage("memory://bucket/folder")


@pytest.fixture
def waits(monkeypatch):
    """Waits of this test, none of which happens."""
    found = []
    monkeypatch.setattr(module.time, "sleep", found.append)
    return found


def test_what_is_written_is_listed_and_read(stored):
    assert stored.find() == {}
    stored.write("a/b.png", b"123")
    stored.write("ä.txt", b"")
    found = stored.find()
    assert {name: file.size for name, file in found.items()} == {"a/b.png": 3, "ä.txt": 0}
    assert stored.read("a/b.png") == b"123"
    assert read_url(stored.fs.unstrip_protocol(f"{stored.root}/a/b.png")) == b"123"
    stored.remove("a/b.png")
    stored.remove("a/b.png")
    assert list(stored.find()) == ["ä.txt"]
    with pytest.raises(FileNotFoundError):
        stored.read("a/b.png")


def test_folders_that_come_and_go_under_a_write(tmp_path, monkeypatch):
    """Runs that share an output remove what is left when they end."""
    stored, write = Storage(str(tmp_path)), module.files.write_bytes
    troubles = [FileNotFoundError("gone"), FileExistsError("there")]

    def interrupted(*given, **options):
        if troubles:
            raise troubles.pop()
        write(*given, **options)

    monkeypatch.setattr(module.files, "write_bytes", interrupted)
    stored.write("x", b"1")
    assert stored.read("x") == b"1"
    gone = tmp_path / ".partial/.a.partial"
    monkeypatch.setattr(module.Path, "glob", lambda *_: [gone])
    stored.remove_partial()


def test_names_of_the_folder_itself(stored):
    assert stored.names() == []
    for name in ("a", "b/c", ".d"):
        stored.write(name, b"1")
    assert set(stored.names()) - {".partial"} == {"a", "b", ".d"}


def test_long_names_are_listed_as_they_are_written(stored):
    for name in ("short.png", "x/" + "long" * 100 + ".png", "ä" * 200 + "/a.png"):
        stored.write(name, b"1")
        assert stored.listed_name(name) in stored.find()


def test_two_colons_are_part_of_a_name(tmp_path):
    stored = Storage(str(tmp_path))
    stored.write("a::b.png", b"1")
    assert read_url(f"file://{tmp_path}/a::b.png") == b"1"
    assert read_url(f"{tmp_path}/a::b.png") == b"1"


def test_versions_tell_that_a_file_changed(tmp_path):
    stored = Storage(str(tmp_path))
    stored.write("x", b"1")
    first = stored.find()["x"].version
    assert first
    import os

    os.utime(tmp_path / "x", (1, 1))
    assert stored.find()["x"].version != first


def test_names_stay_inside(stored):
    for name in ("../x", "/etc/x", "a/../../x"):
        with pytest.raises(Dr2pipeError, match="cannot be used"):
            stored.write(name, b"")


def test_leftovers_of_killed_processes_are_removed(tmp_path, monkeypatch):
    stored = Storage(str(tmp_path))
    stored.write("x", b"1")
    (tmp_path / ".partial" / ".0123.partial").write_bytes(b"")
    stored.remove_partial()
    assert (tmp_path / ".partial" / ".0123.partial").exists()  # it may be of another run
    monkeypatch.setattr(module, "_ABANDONED_S", -1)
    stored.remove_partial()
    assert list(tmp_path.iterdir()) == [tmp_path / "x"]
    stored.write("y", b"1")  # the folder comes back
    assert stored.read("y") == b"1"
    (tmp_path / ".partial" / "theirs").write_bytes(b"")
    stored.remove_partial()
    assert (tmp_path / ".partial" / "theirs").exists()  # of another program


def test_trouble_is_waited_out(waits):
    answers = [OSError(errno.EBUSY, "503"), TimeoutError(), 7]

    def call():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert again(call, "x") == 7
    assert len(waits) == 2
    assert 0 < waits[0] < waits[1] < 2


@pytest.mark.parametrize(
    ("error", "calls"),
    [
        (FileNotFoundError("x"), 1),
        (PermissionError("x"), 1),
        (OSError(errno.ENOSPC, "full"), 1),
        (ConnectionResetError("x"), 10),
        (OSError(errno.EBUSY, "503"), 10),
    ],
)
def test_some_errors_are_final(waits, error, calls):
    tried = []

    def call():
        tried.append(1)
        raise error

    with pytest.raises(type(error)):
        again(call, "x")
    assert len(tried) == calls


def test_wrong_urls_are_one_sentence():
    with pytest.raises(ConfigError, match="nonsense"):
        Storage("nonsense://x")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError("denied"), "check the credentials"),
        (ValueError("odd"), "cannot be reached"),
    ],
)
def test_a_store_that_refuses_is_one_sentence(stored, waits, monkeypatch, error, said):
    def find(*_, **__):
        raise error

    monkeypatch.setattr(stored.fs, "find", find)
    with pytest.raises(ConfigError, match=said):
        stored.find()
