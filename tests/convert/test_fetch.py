import hashlib
import http.server
import os
import threading
from pathlib import Path

import pytest

from dr2pipe.cli import main
from dr2pipe.convert import fetch as fetching
from dr2pipe.convert.fetch import fetch
from dr2pipe.core.errors import FetchError
from dr2pipe.core.official import FILES

CONTENT = b"PK\x03\x04" + bytes(range(256)) * 2000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT; ``server.faults`` is a list of what goes wrong, one for each request."""

    def do_GET(self):
        server = self.server
        server.ranges.append(self.headers.get("Range"))
        fault = server.faults.pop(0) if server.faults else ""
        start = 0
        if self.headers.get("Range") and fault != "ignores ranges":
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
        if fault.isdigit():
            self.send_error(int(fault))
            return
        if start >= len(CONTENT):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            self.end_headers()
            return
        body = CONTENT[start:]
        if fault == "alters":
            body = b"x" + body[1:]
        if fault == "sends more":
            body = body * 3
        if fault == "says hello":
            start, body = 0, b"<html>Please log in</html>"
        self.send_response(206 if start or fault == "sends a part" else 200)
        self.send_header("ETag", '"1"')
        if start:
            first = start + (fault == "shifts")
            self.send_header("Content-Range", f"bytes {first}-{len(CONTENT) - 1}/{len(CONTENT)}")
        length = {"says nonsense": "-5", "says too much": "9" * 15}.get(fault, str(len(body)))
        if fault not in ("hides the length", "sends more"):
            self.send_header("Content-Length", length)
        self.end_headers()
        if fault == "truncates":
            body = body[: len(body) // 2]
        if fault == "stalls":
            self.wfile.write(body[:1000])
            self.wfile.flush()
            server.released.wait(600)  # ended by the fixture
            return
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A user folder, where fetched files are remembered."""
    monkeypatch.setenv("DR2PIPE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(fetching.time, "sleep", lambda _: None)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.faults, server.ranges, server.released = [], [], threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.mirror = f"http://127.0.0.1:{server.server_port}/files/"
    yield server
    server.released.set()
    server.shutdown()


def get(server, folder, **options):
    return fetch(
        "gfpgan14", folder=folder, mirror=server.mirror, **{"timeout_seconds": 60} | options
    )


def names_in(folder):
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".lock")


def test_a_file_is_fetched_once(server, tmp_path):
    path = get(server, tmp_path / "new", sha256=SHA256)
    assert path == tmp_path / "new" / "GFPGANv1.4.pth"
    assert path.read_bytes() == CONTENT
    assert get(server, tmp_path / "new") == path
    assert len(server.ranges) == 1
    assert names_in(tmp_path / "new") == ["GFPGANv1.4.pth"]


def test_a_broken_download_goes_on_where_it_stopped(server, tmp_path):
    server.faults = ["truncates", "truncates"]
    assert get(server, tmp_path, sha256=SHA256).read_bytes() == CONTENT
    assert server.ranges[0] is None
    assert all(r.startswith("bytes=") and r != "bytes=0-" for r in server.ranges[1:])


def test_a_silent_server_is_asked_again(server, tmp_path):
    server.faults = ["stalls"]
    # Two more attempts follow, so a slow machine may fail one of them.
    assert get(server, tmp_path, sha256=SHA256, timeout_seconds=2).read_bytes() == CONTENT
    assert len(server.ranges) >= 2
    assert server.ranges[1] == "bytes=1000-"


def test_three_failures_leave_the_part_for_the_next_call(server, tmp_path):
    server.faults = ["truncates"] * 3
    with pytest.raises(FetchError, match=r"connection ended after .*by hand and put it at"):
        get(server, tmp_path)
    assert names_in(tmp_path) == ["GFPGANv1.4.pth.part", "GFPGANv1.4.pth.source"]
    assert get(server, tmp_path, sha256=SHA256).read_bytes() == CONTENT


def test_a_server_without_ranges_sends_it_all_again(server, tmp_path):
    server.faults = ["truncates", "ignores ranges"]
    assert get(server, tmp_path, sha256=SHA256).read_bytes() == CONTENT


def leave_part(server, folder, content, address=None):
    folder.mkdir(exist_ok=True)
    (folder / "GFPGANv1.4.pth.part").write_bytes(content)
    address = address or f"{server.mirror}GFPGANv1.4.pth"
    (folder / "GFPGANv1.4.pth.source").write_text(f'{address}\n"1"\n')


def test_a_complete_part_only_takes_its_name(server, tmp_path):
    leave_part(server, tmp_path, CONTENT)
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges == [f"bytes={len(CONTENT)}-"]
    leave_part(server, tmp_path / "b", CONTENT + b"more")
    assert get(server, tmp_path / "b").read_bytes() == CONTENT
    assert names_in(tmp_path / "b") == ["GFPGANv1.4.pth"]


def test_parts_of_another_server_are_not_continued(server, tmp_path):
    leave_part(server, tmp_path, b"x" * 1000, address="http://127.0.0.1:9/GFPGANv1.4.pth")
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None]


def test_other_bytes_than_asked_for_are_not_appended(server, tmp_path):
    leave_part(server, tmp_path, CONTENT[:1000])
    server.faults = ["shifts"]
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_without_a_sha256_rubbish_is_refused_too(server, tmp_path):
    server.faults = ["says hello"]
    with pytest.raises(FetchError, match="is no file of PyTorch"):
        get(server, tmp_path)
    server.faults = ["hides the length"]
    with pytest.raises(FetchError, match="does not say how long the file is"):
        get(server, tmp_path)
    assert names_in(tmp_path) == []
    server.faults = ["hides the length"]
    assert get(server, tmp_path, sha256=SHA256).read_bytes() == CONTENT


def test_an_altered_file_is_refused_and_nothing_overwritten(server, tmp_path):
    server.faults = ["alters"]
    with pytest.raises(FetchError, match=r"it was altered.*removed; download http"):
        get(server, tmp_path, sha256=SHA256)
    assert names_in(tmp_path) == []
    (tmp_path / "GFPGANv1.4.pth").write_bytes(b"mine")
    with pytest.raises(FetchError, match="altered"):
        get(server, tmp_path, sha256=SHA256)
    assert (tmp_path / "GFPGANv1.4.pth").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("says nonsense", "says that the file has '-5' bytes"),
        ("says too much", "no official file has more"),
        ("sends more", "sends more than"),
    ],
)
def test_impossible_lengths_are_refused(server, tmp_path, monkeypatch, fault, says):
    monkeypatch.setattr(fetching, "_MOST_BYTES", len(CONTENT))
    server.faults = [fault]
    with pytest.raises(FetchError, match=says):
        get(server, tmp_path, sha256=SHA256)
    assert names_in(tmp_path) in ([], ["GFPGANv1.4.pth.source"])
    assert get(server, tmp_path, sha256=SHA256).read_bytes() == CONTENT


def test_a_part_that_was_not_asked_for_is_refused(server, tmp_path):
    server.faults = ["sends a part"]
    assert get(server, tmp_path, sha256=SHA256).read_bytes() == CONTENT
    assert server.ranges == [None, None]


def test_two_at_once_download_one_file(server, tmp_path):
    leave_part(server, tmp_path, CONTENT[:1000])
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(get(server, tmp_path, sha256=SHA256)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.read_bytes() == CONTENT for path in found] == [True] * 4
    assert server.ranges == ["bytes=1000-"]


@pytest.mark.parametrize("sha256", ["", "xyz", "0" * 65])
def test_a_sha256_that_is_none_is_refused(server, tmp_path, sha256):
    with pytest.raises(FetchError, match="hexadecimal"):
        get(server, tmp_path, sha256=sha256)
    assert server.ranges == []


def test_nothing_but_files_is_replaced(server, tmp_path):
    os.mkfifo(tmp_path / "GFPGANv1.4.pth")
    with pytest.raises(FetchError, match="not a regular file"):
        get(server, tmp_path)
    os.mkfifo(tmp_path / "new.part")
    (tmp_path / "GFPGANv1.4.pth").unlink()
    (tmp_path / "new.part").rename(tmp_path / "GFPGANv1.4.pth.part")
    with pytest.raises(FetchError, match="not a regular file"):
        get(server, tmp_path)


def test_refusals_and_errors_of_the_server(server, tmp_path):
    server.faults = ["404"]
    with pytest.raises(FetchError, match="answers 404"):
        get(server, tmp_path)
    assert len(server.ranges) == 1  # asking again is no use
    server.faults = ["503", "503"]
    assert get(server, tmp_path).read_bytes() == CONTENT
    with pytest.raises(FetchError, match="unknown file 'gfpgan9'; there are gfpgan14"):
        fetch("gfpgan9")


def test_no_server(tmp_path, monkeypatch):
    monkeypatch.setattr(fetching.time, "sleep", lambda _: None)
    with pytest.raises(FetchError, match=r"by hand and put it at .*GFPGANv1\.4\.pth"):
        fetch("gfpgan14", folder=tmp_path, mirror="http://127.0.0.1:9", timeout_seconds=0.5)


def test_the_command(server, tmp_path, capsys):
    arguments = ["fetch", "gfpgan14", "--dir", str(tmp_path), "--mirror", server.mirror]
    assert main([*arguments, "--sha256", SHA256.upper()]) == 0
    said = capsys.readouterr().out
    assert SHA256 in said
    assert "--kind gfpgan_clean" in said
    assert main([*arguments, "--sha256", "0" * 64]) == 2
    assert main(["fetch"]) == 0
    assert "commercial use: no" in capsys.readouterr().out


def test_the_first_file_is_remembered(server, tmp_path, home, monkeypatch):
    note = home / "known" / "GFPGANv1.4.pth.sha256"
    get(server, tmp_path / "a")
    assert note.read_text() == f"{SHA256}  GFPGANv1.4.pth\n"
    assert get(server, tmp_path / "b").read_bytes() == CONTENT
    (tmp_path / "a" / "GFPGANv1.4.pth").write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(FetchError, match=r"came first. If you trust the new file, remove .*known"):
        get(server, tmp_path / "a")
    monkeypatch.setattr(fetching, "remembered", lambda _: "")
    assert get(server, tmp_path / "a").exists()  # without the note it may be anything of PyTorch
    note.write_text("nonsense\n")
    monkeypatch.undo()
    monkeypatch.setenv("DR2PIPE_HOME", str(home))
    get(server, tmp_path / "b")
    assert note.read_text().startswith(SHA256)


def test_another_file_of_a_server_is_refused(server, tmp_path):
    get(server, tmp_path / "a")
    server.faults = ["alters"]
    with pytest.raises(FetchError, match="came first"):
        get(server, tmp_path / "b")
    assert "GFPGANv1.4.pth" not in names_in(tmp_path / "b")


def test_without_a_folder_it_goes_into_the_user_folder(server, tmp_path, monkeypatch):
    monkeypatch.setenv("DR2PIPE_HOME", str(tmp_path / "home"))
    path = fetch("gfpgan14", mirror=server.mirror)
    assert path == tmp_path / "home" / "downloads" / "GFPGANv1.4.pth"
    assert path.read_bytes() == CONTENT


def test_the_table_lists_every_file():
    models = Path(__file__).resolve().parents[2] / "docs" / "models.md"
    table = models.read_text(encoding="utf-8")
    for name, file in FILES.items():
        row = next(line for line in table.splitlines() if line.startswith(f"| `{name}` |"))
        assert file.address in row
        assert file.licence in row
        use = {True: "yes", False: "no", None: "unclear"}[file.commercial_use]
        assert row.endswith(f"| {use} |")
        assert file.kind is None or f"`{file.kind}`" in row
