import json
import os
import time
from pathlib import Path

import pytest

from dr2pipe.core.errors import ConfigError, FolderInUseError
from dr2pipe.core.lease import LEASE, Lease
from dr2pipe.core.storage import Storage

BEAT_S = 0.05


@pytest.fixture
def output(tmp_path):
    return Storage(str(tmp_path / "out"))


def wait_until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def beat(output):
    try:
        return json.loads(output.read(LEASE))["beat"]
    except ValueError:
        return None


def test_a_second_run_is_refused_and_the_lease_goes_at_the_end(output):
    with (
        Lease(output, beat_s=1),
        pytest.raises(FolderInUseError, match=r"--join; if it was killed, start again in \d s"),
    ):
        Lease(output, beat_s=1).__enter__()
    with Lease(output, beat_s=BEAT_S):
        pass
    assert output.find() == {}


def test_the_heart_beats(output):
    with Lease(output, beat_s=BEAT_S):
        first = beat(output)
        wait_until(lambda: beat(output) not in (first, None))


def test_a_dead_run_is_followed(output):
    output.write(LEASE, json.dumps({"owner": "x", "beat": time.time() - 100}).encode())
    with Lease(output, beat_s=BEAT_S) as lease:
        assert json.loads(output.read(LEASE))["owner"] == lease.owner


def test_a_run_that_is_overtaken_knows_and_leaves_the_lease_alone(output):
    with Lease(output, beat_s=BEAT_S) as lease:
        wait_until(lambda: beat(output))
        for _ in range(3):  # a beat may be on its way
            output.write(LEASE, json.dumps({"owner": "x", "beat": time.time()}).encode())
            time.sleep(2 * BEAT_S)
        wait_until(lambda: lease.is_lost)
    assert json.loads(output.read(LEASE))["owner"] == "x"


def test_of_two_at_once_one_wins(output, monkeypatch):
    other = json.dumps({"owner": "x", "beat": time.time()}).encode()

    def create(name, data):
        output.write(name, other)
        return True

    monkeypatch.setattr(output, "create", create)
    with pytest.raises(FolderInUseError, match="just begun"):
        Lease(output, beat_s=BEAT_S).__enter__()


def test_nonsense_is_no_living_run(output):
    output.write(LEASE, b"[]")
    assert Lease(output).living() is None
    output.write(LEASE, b"{")  # half of one: somebody is writing
    assert Lease(output).living() is not None


def test_an_output_that_cannot_be_written(output, monkeypatch):
    def create(name, data):
        raise OSError("no such bucket")

    monkeypatch.setattr(output, "create", create)
    with pytest.raises(ConfigError, match="cannot be written: no such bucket"):
        Lease(output).__enter__()


def test_half_of_a_lease_that_a_kill_left_does_not_stay(output):
    output.write(LEASE, b"")
    assert Lease(output, beat_s=1).living() is not None  # somebody may be writing it
    long_ago = time.time() - 3600
    os.utime(Path(output.root, LEASE), (long_ago, long_ago))
    with Lease(output, beat_s=BEAT_S):
        assert beat(output) > long_ago
