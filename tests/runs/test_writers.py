import threading

import numpy as np
import pytest
from conftest import TINY, make_pictures
from test_runs import FakeNetwork, failing_write, folder_run, lines, restored_pixels

from dr2pipe import cli
from dr2pipe.core import files, images
from dr2pipe.core.errors import ConfigError
from dr2pipe.runs.options import RunOptions
from dr2pipe.runs.writers import Writers

PATIENCE_S = 20


class Slow:
    """Writes that go on when they are told to, and the most that were begun at once."""

    def __init__(self):
        self.may_end, self.lock = threading.Event(), threading.Lock()
        self.begun = self.ended = 0

    def __call__(self, *_):
        with self.lock:
            self.begun += 1
        assert self.may_end.wait(PATIENCE_S)
        with self.lock:
            self.ended += 1


def submitted_without_waiting(writers, slow, *, count, picture_bytes):
    """How many of ``count`` pictures can be submitted while none is finished."""
    taken = []

    def submit():
        for i in range(count):
            writers.submit(picture_bytes, slow)
            taken.append(i)

    thread = threading.Thread(target=submit)
    thread.start()
    thread.join(0.3)  # only a bound keeps it from ending at once
    reached = len(taken)
    slow.may_end.set()
    thread.join(PATIENCE_S)
    assert len(taken) == count
    return reached


@pytest.mark.parametrize(
    ("bounds", "picture_bytes", "most"),
    [
        ({"most_pictures": 5}, 100, 5),
        ({"most_pictures": 1}, 100, 3),  # the threads have work
        ({"most_pictures": 9, "most_bytes": 400}, 100, 4),
        ({"most_pictures": 9, "most_bytes": 400}, 1000, 1),  # one is always taken
    ],
)
def test_what_waits_is_bounded(bounds, picture_bytes, most):
    slow = Slow()
    with Writers(3, **bounds) as writers:
        reached = submitted_without_waiting(writers, slow, count=12, picture_bytes=picture_bytes)
    assert reached == most
    assert slow.ended == 12


def test_several_pictures_are_written_at_once():
    together = threading.Barrier(3)
    with Writers(3, most_pictures=3) as writers:
        for _ in range(3):
            writers.submit(0, lambda: together.wait(PATIENCE_S) and None)


def test_an_error_of_a_thread_is_raised():
    def fail():
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"), Writers(2, most_pictures=8) as writers:
        writers.submit(0, fail)


def test_results_do_not_depend_on_the_threads(tmp_path):
    source = make_pictures(tmp_path / "in", 9)
    for threads in (1, 4):
        run = folder_run(source, tmp_path / str(threads), FakeNetwork(), writer_threads=threads)
        assert run.run().restored == 9
    one, four = (restored_pixels(tmp_path / name) for name in "14")
    assert one.keys() == four.keys()
    assert all((one[name] == four[name]).all() for name in one)
    manifests = [lines(tmp_path / name / "manifest.jsonl") for name in "14"]
    wanted, found = ({r["path"]: r["files"] for r in manifest} for manifest in manifests)
    assert wanted == found


def test_a_line_comes_after_the_files(tmp_path, monkeypatch):
    """Whatever the order in which the threads end."""
    source = make_pictures(tmp_path / "in", 8)
    run = folder_run(source, tmp_path / "out", FakeNetwork(), writer_threads=4)
    add = run.records.add_finished
    whole = []

    def checked(record):
        whole.extend(
            (tmp_path / "out" / name).stat().st_size == size
            and files.sha256(tmp_path / "out" / name) == digest
            for name, (size, digest) in record["files"].items()
        )
        add(record)

    monkeypatch.setattr(run.records, "add_finished", checked)
    run.run()
    assert whole == [True] * 8


def test_a_failed_write_is_one_pictures_own(tmp_path, monkeypatch):
    source = make_pictures(tmp_path / "in", 7)
    failing_write(monkeypatch, PermissionError(13, "Permission denied", "face_001.png"))
    summary = folder_run(source, tmp_path / "out", FakeNetwork(), writer_threads=4).run()
    assert (summary.restored, summary.failed, summary.exit_code) == (6, 1, 3)
    assert [r["path"] for r in lines(tmp_path / "out" / "failures.jsonl")] == ["face_001.png"]


def test_inputs_are_hashed_and_results_encoded_once(tmp_path, monkeypatch):
    source = make_pictures(tmp_path / "in", 5)
    counts = {"hash_bytes": 0, "encode_picture": 0}

    def counted(name):
        original = getattr(images, name)

        def call(*arguments, **options):
            counts[name] += 1
            return original(*arguments, **options)

        monkeypatch.setattr(images, name, call)
        if name == "hash_bytes":
            monkeypatch.setattr("dr2pipe.core.images.reading.hash_bytes", call)

    for name in counts:
        counted(name)
    folder_run(source, tmp_path / "out", FakeNetwork(), writer_threads=1).run()
    assert counts == {"hash_bytes": 5 + 5, "encode_picture": 5}  # inputs and results


def test_another_compression_leaves_finished_results(tmp_path):
    source = make_pictures(tmp_path / "in", 3)
    first = folder_run(source, tmp_path / "a", FakeNetwork(), options=RunOptions(png_compression=0))
    assert first.run().restored == 3
    second = folder_run(source, tmp_path / "a", FakeNetwork())
    assert second.run().skipped == 3
    assert folder_run(source, tmp_path / "b", FakeNetwork()).run().restored == 3
    pixels = [restored_pixels(tmp_path / name) for name in "ab"]
    assert all(np.array_equal(pixels[0][name], pixels[1][name]) for name in pixels[1])
    size = [(tmp_path / name / "restored/face_000.png").stat().st_size for name in "ab"]
    assert size[0] > size[1]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"writer_threads": 0}, "writer_threads"),
        ({"options": RunOptions(png_compression=10)}, "png_compression=10: choose 0"),
        ({"options": RunOptions(quality=0)}, "quality=0: choose 1..100"),
    ],
)
def test_settings_that_are_not_valid(tmp_path, pictures, settings, said):
    with pytest.raises(ConfigError, match=said):
        folder_run(pictures, tmp_path / "out", FakeNetwork(), **settings)


def test_quality_of_jpeg_results_reaches_the_files(pictures, model_folder, tmp_path):
    sizes = []
    for quality in ("20", "95"):
        out = tmp_path / quality
        command = ["restore", str(pictures), str(out), "--aligned", "--format", "jpg"]
        settings = ["--set", f"dr2.model={model_folder}", *TINY]
        assert cli.main([*command, "--quality", quality, *settings]) == 0
        sizes.append(sum(p.stat().st_size for p in (out / "restored").iterdir()))
    assert sizes[0] < sizes[1]
