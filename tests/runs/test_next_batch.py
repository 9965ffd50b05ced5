"""The next batch of a folder run is put together while the networks are busy with this one."""

import threading

import pytest
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
