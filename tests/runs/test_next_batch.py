"""The next batch of a folder run is put together while the networks are busy with this one."""

import threading

import pytest
import torch
from conftest import make_pictures
from test_runs import FakeNetwork, folder_run

from dr2pipe.restoration.photos import PreparedPhoto
from dr2pipe.runs.steps import Steps

PATIENCE_S = 20


@pytest.fixture
def assembled(monkeypatch):
    """The sizes of the batches that were put together, and an event that says: two of them."""
    sizes, two = [], threading.Event()

    def together(steps, batch):
        sizes.append(len(batch))
        if len(sizes) == 2:
            two.set()
        return original(steps, batch)

    original = Steps.together
    monkeypatch.setattr(Steps, "together", together)
    return sizes, two


def test_aligned_pictures_are_put_together_meanwhile(tmp_path, assembled):
    sizes, two = assembled
    source, waited = make_pictures(tmp_path / "in", 7), []
    # The networks are held up until the next batch is there.
    network = FakeNetwork(lambda _: waited.append(two.wait(PATIENCE_S)))
    summary = folder_run(source, tmp_path / "out", network, batch_size=3).run()
    assert summary.restored == 7
    assert network.batches == sizes == [3, 3, 1]
    assert all(waited)


def test_no_further_photos_wait_in_memory(tmp_path, assembled, monkeypatch):
    sizes, _ = assembled
    seen = []
    monkeypatch.setattr(PreparedPhoto, "share_of_batch", lambda *_: 1.0)  # large ones

    def process(photos, seeds, decoded):
        seen.append(len(sizes))
        raise ValueError("enough is known")

    def prepare(picture, _):
        return PreparedPhoto(picture, [])

    source = make_pictures(tmp_path / "in", 3)
    run = folder_run(source, tmp_path / "out", process, size=None, batch_size=1, prepare=prepare)
    assert run.run().failed == 3
    assert seen == [1, 2, 3]


def test_an_error_while_a_batch_is_put_together_ends_the_run(tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(Steps, "together", fails)
    source = make_pictures(tmp_path / "in", 3)
    with pytest.raises(RuntimeError, match="shapes differ"):
        folder_run(source, tmp_path / "out", FakeNetwork()).run()


def test_smaller_batches_are_put_together_where_memory_ends(tmp_path, monkeypatch):
    def together(steps, batch):
        if len(batch) > 2:
            raise MemoryError
        return original(steps, batch)

    original = Steps.together
    monkeypatch.setattr(Steps, "together", together)
    source, network = make_pictures(tmp_path / "in", 10), FakeNetwork()
    summary = folder_run(source, tmp_path / "out", network, batch_size=4).run()
    assert (summary.restored, summary.failed) == (10, 0)
    assert set(network.batches) == {2}


def test_few_photos_are_read_ahead(tmp_path, monkeypatch):
    monkeypatch.setattr("dr2pipe.runs.folder_run.count_cores", lambda: 40)
    source = make_pictures(tmp_path / "in", 1)
    assert folder_run(source, tmp_path / "a", FakeNetwork()).loader_threads == 16
    photos = folder_run(source, tmp_path / "b", FakeNetwork(), size=None, batch_size=1)
    assert photos.loader_threads == 2
    chosen = folder_run(source, tmp_path / "c", FakeNetwork(), size=None, loader_threads=5)
    assert chosen.loader_threads == 5


class TwoPartNetwork(FakeNetwork):
    """Says when a batch is begun, and when its results are fetched."""

    def __init__(self, fails_to_begin=(), fails_to_finish=()):
        super().__init__()
        self.said, self.number = [], 0
        self.fails_to_begin, self.fails_to_finish = fails_to_begin, fails_to_finish

    def begin(self, pictures, seeds, decoded):
        number = self.number
        self.number += 1
        self.said.append(f"begin {number}")
        if number in self.fails_to_begin:
            raise torch.cuda.OutOfMemoryError("no room")

        def finish():
            self.said.append(f"finish {number}")
            if number in self.fails_to_finish:
                raise RuntimeError("a kernel failed")
            return FakeNetwork.__call__(self, pictures, seeds, decoded)

        return finish


def two_part_run(tmp_path, network, pictures=7):
    source = make_pictures(tmp_path / "in", pictures)
    return folder_run(source, tmp_path / "out", network, begin=network.begin, batch_size=3)


def test_a_gpu_has_the_next_batch_before_results_are_fetched(tmp_path):
    network = TwoPartNetwork()
    summary = two_part_run(tmp_path, network).run()
    assert (summary.restored, summary.failed) == (7, 0)
    assert network.said == ["begin 0", "begin 1", "finish 0", "begin 2", "finish 1", "finish 2"]
    folder_run(tmp_path / "in", tmp_path / "plain", FakeNetwork(), batch_size=3).run()
    for path in (tmp_path / "plain/restored").iterdir():
        assert path.read_bytes() == (tmp_path / "out/restored" / path.name).read_bytes()


@pytest.mark.parametrize("part", ["fails_to_begin", "fails_to_finish"])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_batch_that_fails_in_either_part_is_done_again(tmp_path, part, number):
    network = TwoPartNetwork(**{part: [number]})
    summary = two_part_run(tmp_path, network).run()
    assert (summary.restored, summary.failed) == (7, 0)


def test_a_picture_that_always_fails_is_the_only_failure(tmp_path):
    network = TwoPartNetwork(fails_to_finish=range(99))
    network.fails = lambda batch: ValueError("poison") if len(batch) == 3 else None
    summary = two_part_run(tmp_path, network).run()
    assert (summary.restored, summary.failed) == (7, 0)
    network = TwoPartNetwork(fails_to_finish=[1])
    network.fails = lambda batch: ValueError("poison")
    summary = two_part_run(tmp_path / "all", network, pictures=2).run()
    assert (summary.restored, summary.failed) == (0, 2)


def test_what_is_begun_is_finished_when_a_run_is_stopped(tmp_path):
    network = TwoPartNetwork()
    run = two_part_run(tmp_path, network, pictures=12)

    def stops(pictures):
        run._request_stop()

    network.fails = stops
    summary = run.run()
    assert summary.interrupted
    assert network.said == ["begin 0", "begin 1", "finish 0", "finish 1"]
    assert summary.restored == 6
