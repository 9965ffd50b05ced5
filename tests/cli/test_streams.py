"""Output that cannot be written neither stops the work nor changes the exit code."""

import os
import subprocess
import sys

import pytest
from conftest import PATIENCE_SECONDS, ROOT, make_pictures

PROGRAM = """
import logging, sys
from tqdm import tqdm
from dr2pipe.cli import report_errors
from dr2pipe.cli.streams import safe_streams

def run():
    for _ in tqdm(range(3)):
        logging.warning("no UTF-8: %s", "\\udcff")
    for _ in range(2000):
        print("words of any script: é 出力 😀")
    print("and errors", file=sys.stderr)
    open(sys.argv[1], "w").write("done")
    return 3

with safe_streams():
    code = report_errors(run)
sys.exit(code)
"""


def run_in_shell(redirection, *arguments, **environment):
    words = " ".join(f"'{word}'" for word in (sys.executable, *arguments))
    return subprocess.run(
        ["bash", "-c", f"{words} {redirection}; exit ${{PIPESTATUS[0]}}"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        timeout=PATIENCE_SECONDS,
    )


REDIRECTIONS = [
    "", "2>&-", ">&-", "<&- >&- 2>&-", "> /dev/full", "2> /dev/full", "> /dev/full 2>&1",
    "| true", "2>&1 | true", "| head -1",
]  # fmt: skip


ENCODINGS = [
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "cp1252", "PYTHONUNBUFFERED": "1"},
]


@pytest.mark.parametrize(
    ("redirection", "environment"),
    [(redirection, {}) for redirection in REDIRECTIONS]
    + [(redirection, e) for redirection in ("", "2>&1 | true") for e in ENCODINGS],
)
def test_streams_that_take_nothing(redirection, environment, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    program = [tmp_path / "program.py", tmp_path / "done"]
    done = run_in_shell(redirection, *program, PYTHONPATH=str(ROOT), **environment)
    assert done.returncode == 3, done.stderr
    assert (tmp_path / "done").read_text() == "done"
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    if not redirection:
        assert done.stdout.count(b"words of any script") == 2000
        assert b"and errors" in done.stderr
        assert b"\\udcff" in done.stderr


@pytest.mark.parametrize("redirection", ["2>&-", "2>&1 | true", "> /dev/full 2>&1"])
def test_a_command_does_its_work_all_the_same(redirection, tmp_path):
    pictures = make_pictures(tmp_path / "出力", 2)
    command = ["-m", "dr2pipe", "degrade", pictures, tmp_path / "out", "--with", "mild"]
    done = run_in_shell(redirection, *command, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out" / "degraded").iterdir())) == 2


def test_closed_descriptors_are_not_given_to_files(tmp_path):
    """Otherwise messages of libraries would go into the first file that is opened."""
    program = (
        "from dr2pipe.cli.streams import safe_streams\n"
        "import os, sys\n"
        "with safe_streams():\n"
        "    handle = open(sys.argv[1], 'w')\n"
        "    os.write(2, b'a message of a library')\n"
        "    os.write(1, b'another')\n"
    )
    done = run_in_shell("<&- >&- 2>&-", "-c", program.replace("'", '"'), tmp_path / "file")
    assert done.returncode == 0
    assert (tmp_path / "file").read_text() == ""


def test_usage_errors_keep_their_exit_code():
    for redirection in ("2>&-", "2> /dev/full", "2>&1 | true"):
        assert run_in_shell(redirection, "-m", "dr2pipe", "nothing").returncode == 2
    assert run_in_shell("> /dev/full", "-m", "dr2pipe", "--help").returncode == 0
