import importlib.metadata
import json
import os
import subprocess
import sys

import pytest
from conftest import run_command

import dr2pipe
from dr2pipe.core.errors import ConfigError, Dr2pipeError, FolderInUseError, MissingPackageError
from dr2pipe.core.extras import needs_extra
from dr2pipe.core.files import lock_folder, locked
from dr2pipe.core.records import RunRecords, append_jsonl, read_jsonl, versions


def test_lines_are_appended_and_read(tmp_path):
    path = tmp_path / "a.jsonl"
    assert (read_jsonl(path).records, read_jsonl(path).damaged) == ([], [])
    append_jsonl(path, [{"path": "\udcff ü\u2028.png"}, {"n": 1}])
    append_jsonl(path, [{"n": 2}])
    lines = read_jsonl(path)
    assert lines.records == [{"path": "\udcff ü\u2028.png"}, {"n": 1}, {"n": 2}]
    assert lines.damaged == []


def test_damaged_lines_are_told_apart(tmp_path):
    path = tmp_path / "a.jsonl"
    damaged = [b'{"n": 1', b"\xff\xfe", b"[1]", b"null", b"[" * 100_000]
    path.write_bytes(b'{"n": 1}\n\n' + b"\n".join(damaged) + b'\n{"n": 2}\n{"n"')
    lines = read_jsonl(path)
    assert lines.records == [{"n": 1}, {"n": 2}]
    assert [number for number, _ in lines.damaged] == [3, 4, 5, 6, 7, 9]
    assert lines.damaged[0] == (3, b'{"n": 1\n')


def test_a_line_that_is_not_written_whole_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "write", lambda handle, data: len(data) - 1)
    with pytest.raises(OSError, match="could not be written whole"):
        append_jsonl(tmp_path / "a.jsonl", [{"n": 1}])


def test_no_part_of_a_line_stays_on_a_full_disk(tmp_path):
    """Under a limit of the file size, as quotas work: a write stops in the middle of a line."""
    path = tmp_path / "a.jsonl"
    code = f"""
import resource, signal
from dr2pipe.core.records import append_jsonl
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
for n in range(50):
    append_jsonl({str(path)!r}, [{{"number": n}}])
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert "could not be written whole" in ended.stderr
    assert read_jsonl(path).records == [{"number": n} for n in range(len(path.read_bytes()) // 14)]
    assert path.read_bytes().endswith(b"}\n")


def test_versions():
    found = versions()
    assert found["dr2pipe"] == dr2pipe.__version__
    assert found["torch"] == importlib.metadata.version("torch")


def test_a_missing_package_names_its_extra():
    with (
        pytest.raises(
            MissingPackageError, match=r"^this needs no_such: pip install 'dr2pipe\[train\]'$"
        ) as caught,
        needs_extra("train"),
    ):
        import no_such.module  # noqa: F401
    assert isinstance(caught.value, Dr2pipeError)
    with pytest.raises(ZeroDivisionError), needs_extra("train"):
        1 / 0  # noqa: B018


def test_the_last_line_about_a_picture_counts_and_damaged_ones_go(tmp_path):
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text(
        '{"path": "a", "n": 1}\n{"n": 3}\n{"path": ["b"]}\n{"path": "a", "n": 2}\n{"pa'
    )
    records = RunRecords(tmp_path)
    assert records.finished() == {"a": {"path": "a", "n": 2}}
    with pytest.raises(ConfigError, match=r"holds manifest.jsonl, which no run"):
        records.prepare({})
    records.close()
    assert manifest.read_text().endswith('{"pa')
    manifest.rename(tmp_path / "kept")
    records.prepare({})
    records.close()
    (tmp_path / "kept").rename(manifest)
    records.prepare({})
    records.close()
    assert json.loads(manifest.read_text()) == {"path": "a", "n": 2}
    assert (tmp_path / "manifest.jsonl.damaged").read_text() == (
        '{"n": 3}\n{"path": ["b"]}\n{"pa\n'
    )


LOCK = """
import sys
from dr2pipe.core.files import lock_folder
lock = lock_folder(sys.argv[1])
print("locked", flush=True)
sys.stdin.read()
"""


def test_two_runs_do_not_share_a_folder(tmp_path):
    with locked(tmp_path), pytest.raises(FolderInUseError, match="another run"):
        lock_folder(tmp_path)
    lock_folder(tmp_path).release()
    records = RunRecords(tmp_path)
    records.prepare({})
    try:
        done = run_command("-c", LOCK, tmp_path)
        assert "FolderInUseError" in done.stderr
    finally:
        records.close()
    assert run_command("-c", LOCK, tmp_path).stdout == "locked\n"


def test_what_a_killed_run_left_does_not_lock(tmp_path):
    code = LOCK.replace("sys.stdin.read()", "import os; os._exit(1)")
    assert run_command("-c", code, tmp_path).stdout == "locked\n"
    lock_folder(tmp_path).release()
