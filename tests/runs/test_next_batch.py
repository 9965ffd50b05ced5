"""The next batch of a folder run is put together while the networks are busy with this one."""

import json
import threading

import numpy as np
import pytest
import torch
from conftest import make_pictures
from test_runs import FakeNetwork, folder_run

from dr2pipe.core import images
from dr2pipe.restoration.placing import PreparedPhoto
from dr2pipe.runs.jobs import LoadedPicture
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
            raise torch.cuda.OutOfMemoryError("out of memory")

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
    data = (make_pictures(tmp_path / "in", 7) / "face_004.png").read_bytes()
    poison = images.decode_image(data).resized(16)
    network = TwoPartNetwork()

    def fails(batch):
        has_it = bool((batch == poison).flatten(1).all(dim=1).any())
        return ValueError("poison") if has_it else None

    network.fails = fails
    summary = two_part_run(tmp_path, network).run()
    assert (summary.restored, summary.failed) == (6, 1)
    (line,) = (tmp_path / "out/failures.jsonl").read_text().splitlines()
    assert json.loads(line)["path"] == "face_004.png"


def test_batches_stay_small_once_memory_has_run_out(tmp_path):
    network = TwoPartNetwork(fails_to_begin=[0])

    def fails(batch):
        return torch.cuda.OutOfMemoryError("out of memory") if len(batch) > 1 else None

    network.fails = fails
    summary = two_part_run(tmp_path, network).run()
    assert (summary.restored, summary.failed) == (7, 0)
    # The second batch was begun before the first one failed; the third has one picture, which fits.
    assert network.said == ["begin 0", "begin 1", "begin 2", "finish 1", "finish 2"]
    assert network.batches == [3, 1, 1, 1, 3, 1, 1, 1, 1]


def test_what_a_gpu_has_is_written_if_the_next_batch_cannot_be_read():
    network, found = TwoPartNetwork(), []
    steps = Steps(
        process=network, size=16, output_size=16, settings={}, outputs=["restored"], seed=0,
        batch_size=2, begin=network.begin, picture_seed=1,
    )  # fmt: skip

    def batches():
        face = torch.zeros(1, 3, 16, 16)
        picture = images.decode_image(images.encode_png(np.zeros((16, 16, 3), np.uint8)))
        yield [LoadedPicture(None, face, picture, {}, {})], None
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="gone"):
        found.extend(steps.process_batches(batches()))
    assert network.said == ["begin 0", "finish 0"]
    assert len(found) == 1


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
