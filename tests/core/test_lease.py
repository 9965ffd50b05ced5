import json
import time

import pytest

from dr2pipe.core import lease as module
from dr2pipe.core.errors import ConfigError, FolderInUseError
from dr2pipe.core.lease import LEASE, Lease
from dr2pipe.core.storage import Storage

BEAT_S = 0.05
ABOUT = {"input": "in", "--block": 4}


@pytest.fixture
def output(tmp_path):
    return Storage(str(tmp_path / "out"))


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(module, "_SETTLE_S", 0)


def lease_of(output, *, about=ABOUT, joins=False, beat_s=1.0):
    return Lease(output, about, joins=joins, beat_s=beat_s)


def of_another(output, *, beat=None, owner="0", **said):
    """The file of a run on another machine; without ``said``, one that is at work."""
    content = {"owner": owner, "beat": time.time() if beat is None else beat, **said}
    name = f"{LEASE}{owner}.json"
    output.write(name, json.dumps(content).encode())
    return name


def wait_until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_second_run_is_refused_and_nothing_stays(output, at_once):
    with (
        lease_of(output) as first,
        pytest.raises(FolderInUseError, match=r"--join; if it was killed, start again in \d s"),
    ):
        lease_of(output).__enter__()
    assert first.is_first
    with lease_of(output):
        pass
    assert output.names() == []


def test_those_that_join_keep_others_out_when_the_first_has_ended(output, at_once):
    first, second = lease_of(output), lease_of(output, joins=True)
    first.__enter__()
    with second:
        assert not second.is_first
        assert len(first.others()) == len(second.others()) == 1
        first.__exit__(None, None, None)
        assert second.others() == []
        with pytest.raises(FolderInUseError):
            lease_of(output).__enter__()
        with lease_of(output, joins=True):
            pass
    with lease_of(output, joins=True) as alone:
        assert alone.is_first


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"input": "other", "--block": 4}, "here: input$"),
        ({"input": "in", "--block": 5}, "here: --block$"),
        ({"input": "other", "--block": 5}, "here: input, --block$"),
    ],
)
def test_who_joins_does_the_same(output, at_once, about, said):
    with lease_of(output), pytest.raises(ConfigError, match=said):
        lease_of(output, about=about, joins=True).__enter__()


def test_the_heart_beats(output, at_once):
    with lease_of(output, beat_s=BEAT_S) as lease:

        def beat():
            return json.loads(output.read(lease._name))["beat"]

        first = beat()
        wait_until(lambda: beat() != first)


def test_a_dead_run_is_followed_and_knows_it_when_it_wakes(output, at_once):
    asleep = lease_of(output, beat_s=BEAT_S)
    asleep._say(is_at_work=True)
    time.sleep(BEAT_S * 8)
    with lease_of(output, beat_s=BEAT_S) as follower:
        assert follower.is_first
        asleep._thread.start()
        wait_until(lambda: asleep.is_lost)
        assert not follower.is_lost
        asleep._ended.set()
    assert output.names() == []


@pytest.mark.parametrize(
    ("owner", "is_at_work", "stays"),
    [("0", False, False), ("z", False, True), ("z", True, False)],
)
def test_of_two_that_begin_at_once_one_stays(output, monkeypatch, owner, is_at_work, stays):
    """The other one's file comes between the first look and the second."""
    monkeypatch.setattr(
        module.time, "sleep", lambda _: of_another(output, owner=owner, is_at_work=is_at_work)
    )
    lease = lease_of(output)
    if stays:
        with lease:
            pass
        return
    with pytest.raises(FolderInUseError):
        lease.__enter__()
    assert set(output.names()) - {".partial"} == {f"{LEASE}{owner}.json"}


def test_two_that_join_at_once_both_stay(output, monkeypatch):
    monkeypatch.setattr(
        module.time, "sleep", lambda _: of_another(output, is_at_work=True, about=ABOUT)
    )
    with lease_of(output, joins=True) as lease:
        assert not lease.is_first


@pytest.mark.parametrize(("owner", "is_first"), [("0", False), ("z", True)])
def test_of_those_that_join_at_once_one_is_the_first(output, monkeypatch, owner, is_first):
    monkeypatch.setattr(
        module.time,
        "sleep",
        lambda _: of_another(output, owner=owner, is_at_work=False, about=ABOUT),
    )
    with lease_of(output, joins=True) as lease:
        assert lease.is_first == is_first


def test_nonsense_is_no_run(output, at_once):
    for number, content in enumerate([b"[]", b"{", b"", b"{}", b'{"beat": "soon"}']):
        output.write(f"{LEASE}{number}.json", content)
    with lease_of(output) as lease:
        assert lease.is_first


def test_an_output_that_cannot_be_written(output, monkeypatch):
    def write(name, data):
        raise OSError("no such bucket")

    monkeypatch.setattr(output, "write", write)
    with pytest.raises(ConfigError, match="cannot be written: no such bucket"):
        lease_of(output).__enter__()
