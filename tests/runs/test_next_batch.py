"""The next batch of a folder run is put together while the networks are busy with this one."""

import threading

import pytest
from conftest import make_pictures
from test_runs import FakeNetwork, folder_run

from dr2pipe.restoration.photos import PreparedPhoto
from dr2pipe.runs import folder_run as module

PATIENCE_S = 20


@pytest.fixture
def assembled(monkeypatch):
    """The sizes of the batches that were put together, and an event that says: two of them."""
    sizes, two = [], threading.Event()

    def together(batch):
        sizes.append(len(batch))
        if len(sizes) == 2:
            two.set()
        return original(batch)

    original = module.together
    monkeypatch.setattr(module, "together", together)
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
    def fails(_):
        raise RuntimeError("no pinned memory")

    monkeypatch.setattr(module, "together", fails)
    source = make_pictures(tmp_path / "in", 3)
    with pytest.raises(RuntimeError, match="pinned"):
        folder_run(source, tmp_path / "out", FakeNetwork()).run()
