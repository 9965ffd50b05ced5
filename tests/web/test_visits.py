"""What the page takes, keeps and deletes."""

import os
import struct
import time
import zlib

import pytest
from conftest import make_pixels
from PIL import Image

from dr2pipe.core.errors import PictureError
from dr2pipe.web.visits import Limits, Visits, take_upload


def bomb(path):
    """A PNG whose header says 60,000 x 60,000 pixels."""
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header
    chunk += struct.pack(">I", zlib.crc32(b"IHDR" + header))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 900) + b"IDAT" + bytes(1000))
    return path


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (
            "notes.jpg",
            b"Dear Ada,\n",
            r"notes.jpg cannot be used \(not an image file, whatever its name says\): add the photo",
        ),
        (
            "notes.txt",
            b"Dear Ada,\n",
            r"notes.txt cannot be used \(this kind of file is not read; there are png",
        ),
        ("empty.png", b"", r"empty.png cannot be used \(the file is empty\)"),
        ("page.png", b"<html><script>alert(1)</script></html>", "not an image file"),
    ],
)
def test_uploads_that_lie(tmp_path, name, content, says):
    upload = tmp_path / name
    upload.write_bytes(content)
    with pytest.raises(PictureError, match=says) as error:
        take_upload(upload, tmp_path / "mine", Limits())
    assert str(tmp_path) not in str(error.value)


def test_limits(tmp_path):
    with pytest.raises(
        PictureError,
        match=r"^bomb.png has more than 64 million pixels: save a smaller copy and add that$",
    ):
        take_upload(bomb(tmp_path / "bomb.png"), tmp_path, Limits())
    Image.fromarray(make_pixels(0, 40, 40)).save(tmp_path / "a.bmp")
    with pytest.raises(
        PictureError, match=r"a.bmp has more than 0.001 million pixels: save a smaller copy"
    ):
        take_upload(tmp_path / "a.bmp", tmp_path / "mine", Limits(pixels=1000))
    (tmp_path / "big.png").write_bytes(bytes(1_000_001))
    with pytest.raises(PictureError, match=r"big.png cannot be used .the file has 1000001 bytes"):
        take_upload(tmp_path / "big.png", tmp_path / "mine", Limits(megabytes=1))


def test_a_full_disk(tmp_path, monkeypatch):
    Image.fromarray(make_pixels(0)).save(tmp_path / "a.png")

    def full(path, data):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("dr2pipe.core.files.write_bytes", full)
    with pytest.raises(
        PictureError, match=r"a.png cannot be kept: no space left on device. Free some space"
    ):
        take_upload(tmp_path / "a.png", tmp_path / "mine", Limits())


def test_visitors_have_folders_of_their_own_that_go_with_them(tmp_path):
    visits = Visits(tmp_path, idle_seconds=1000, stray_seconds=1000)
    a, b = visits.of("a"), visits.of("b")
    assert visits.of("a") is a
    assert a.folder != b.folder
    assert len(a.folder.name) >= 32
    assert a.folder.name != "a"
    (a.folder / "photo.png").write_bytes(b"1")
    visits.end("a")
    visits.end("a")
    assert not a.folder.exists()
    assert (b.folder.exists(), len(visits)) == (True, 1)


def test_what_waits_or_is_at_work_is_kept(tmp_path):
    visits = Visits(tmp_path, idle_seconds=1000, stray_seconds=100)
    for name in ("waits", "forgotten"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").touch()
        os.utime(tmp_path / name, (0, 0))
    upload = str(tmp_path / "waits" / "a.png")
    visits.ask("ada", [upload])
    ada = visits.of("ada")
    ada.used -= 2000
    visits.sweep()
    assert {path.name for path in tmp_path.iterdir()} == {ada.folder.name, "waits"}
    visits.ask("ada", [])  # another click, while it works
    with visits.at_work("ada", [upload]):
        ada.used -= 200_000
        visits.sweep()
        assert ada.folder.exists()
    visits.sweep()  # it was used a moment ago, but its upload is not needed any more
    assert {path.name for path in tmp_path.iterdir()} == {ada.folder.name}
    ada.used -= 2000
    visits.sweep()
    assert ada.folder.exists()
    with visits.at_work("ada"):
        pass
    ada.used -= 2000
    visits.sweep()
    assert list(tmp_path.iterdir()) == []


def test_sweeping(tmp_path):
    visits = Visits(tmp_path, idle_seconds=1000, stray_seconds=100)
    used, idle = visits.of("used"), visits.of("idle")
    idle.used -= 2000
    for name, age in {"new": 0, "old": 200}.items():
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    (tmp_path / "file").touch()
    os.utime(tmp_path / "file", (0, 0))
    os.utime(used.folder, (0, 0))
    visits.sweep()
    assert {path.name for path in tmp_path.iterdir()} == {used.folder.name, "new"}
    visits.sweep_for_ever(0.01)
    os.utime(tmp_path / "new", (0, 0))
    for _ in range(500):
        if not (tmp_path / "new").exists():
            break
        time.sleep(0.01)
    assert not (tmp_path / "new").exists()
