import os

import pytest
from conftest import PATIENCE_SECONDS, make_pictures, run_command

from dr2pipe.core.processes import forget_stray_ranks

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def environment(monkeypatch):
    for name in (*NAMES, "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    "left",
    [
        {"LOCAL_RANK": "0"},
        {"LOCAL_RANK": "one"},
        {"WORLD_SIZE": "4"},
        {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"},
        {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "host", "MASTER_PORT": "1"},
        {"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
    ],
)
def test_ranks_that_no_launcher_set_are_ignored(left, environment, caplog):
    for name, value in left.items():
        environment.setenv(name, value)
    forget_stray_ranks()
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} & set(os.environ)
    assert "no launcher such as accelerate or torchrun" in caplog.text


def test_ranks_of_a_launcher_stay(environment):
    for name, value in zip(NAMES, ("1", "2", "1", "localhost", "29500"), strict=True):
        environment.setenv(name, value)
    forget_stray_ranks()
    assert os.environ["RANK"] == "1"
    environment.delenv("MASTER_ADDR")
    environment.setenv("OMPI_COMM_WORLD_SIZE", "2")
    forget_stray_ranks()
    assert os.environ["RANK"] == "1"


def test_a_command_does_not_wait_for_processes_that_do_not_exist(tmp_path):
    pictures = make_pictures(tmp_path / "in", 1)
    command = ["-m", "dr2pipe", "degrade", pictures, tmp_path / "out", "--with", "mild"]
    ranks = {"LOCAL_RANK": "1", "RANK": "1", "WORLD_SIZE": "2"}
    done = run_command(*command, timeout=PATIENCE_SECONDS, **ranks)
    assert done.returncode == 0, done.stderr
    assert "1 degraded" in done.stdout
    assert "ignoring RANK=1 WORLD_SIZE=2 LOCAL_RANK=1" in done.stderr


def test_one_of_several_processes_ends_at_once():
    code = "import atexit; from dr2pipe.core.processes import leave_other_processes as leave; "
    code += "atexit.register(print, 'farewell'); print('said', end=''); leave(3)"
    for world_size, ended in (("1", (0, "saidfarewell\n")), ("2", (3, "said"))):
        done = run_command("-c", code, WORLD_SIZE=world_size)
        assert (done.returncode, done.stdout) == ended, done.stderr


def test_a_command_that_hangs_is_shown():
    code = "import time\ndef stands_here(): time.sleep(1000)\nstands_here()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"
    with pytest.raises(TimeoutError, match="stands_here"):
        run_command("-c", parent, timeout=5)
