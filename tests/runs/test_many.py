"""A restoration in blocks, without Ray: what is to do, the steps of a block, and the whole run."""

import contextlib
import dataclasses
import errno
import json
import pickle
import signal

import fsspec
import numpy as np
import pytest
from conftest import make_pictures
from test_photo_runs import photos, settings_for
from test_runs import FakeNetwork

from dr2pipe.core import images, lease
from dr2pipe.core.config import load_config
from dr2pipe.core.errors import ClusterError, ConfigError, FolderInUseError, MissingPackageError
from dr2pipe.core.models import find_file
from dr2pipe.core.storage import Storage
from dr2pipe.runs import many, many_plan, on_ray, ray_cluster, restore_many
from dr2pipe.runs.actor_places import ActorPlaces
from dr2pipe.runs.many import ManyConfig
from dr2pipe.runs.many_plan import list_pictures
from dr2pipe.runs.restore import RestoreConfig, restore_folder
from dr2pipe.runs.shards import RECORDS, read_rows, read_shard
from dr2pipe.runs.steps import Steps

pytest.importorskip("pyarrow", reason="the extra [ray] is not installed")
import pyarrow as pa
import pyarrow.parquet as pq


def fake_steps(config, device):
    return Steps(
        process=FakeNetwork(), size=16, output_size=16, settings={"seed": config.seed},
        outputs=["restored"], seed=config.seed, batch_size=2,
    )  # fmt: skip


def test_steps_without_networks_can_be_sent():
    """What ``aligned_steps`` has for a GPU is a function inside a function."""
    steps = fake_steps(RestoreConfig(input="i", output="o"), "cpu")
    steps = dataclasses.replace(steps, begin=lambda *_: None, prepare=lambda *_: None)
    sent = pickle.loads(pickle.dumps(many.described_steps(steps)))
    assert sent.settings_hash == steps.settings_hash


def test_a_cluster_that_is_this_machine_describes_its_steps_here(monkeypatch):
    """Without Ray: no process is waited for."""
    pool = on_ray.Pool(ActorPlaces(now=1, most=1, gpus=0.0, cpus=1), is_here=True)
    config = ManyConfig(RestoreConfig(input="i", output="o"))
    described = pool.describe(config, fake_steps)
    assert described.settings_hash == fake_steps(config.restore, "cpu").settings_hash
    with pytest.raises(AssertionError, match="no networks"):
        pickle.loads(pickle.dumps(described)).process()

    def fails(restore, device):
        raise ConfigError(f"no weights for {device}")

    with pytest.raises(ConfigError, match="no weights for cpu"):
        pool.describe(config, fails)


@dataclasses.dataclass
class InProcess:
    """Stands in for Ray: blocks one after another; those with a poison picture are lost."""

    poison: tuple = ()
    rounds: list = dataclasses.field(default_factory=list)
    interrupts: bool = False
    catches: bool = False  # errors of a step, as workers do

    def describe(self, config, load):
        return many.described_steps(load(config.restore, "cpu"))

    def run(self, blocks, config, steps, load, *, alone):
        self.rounds.append([len(block.items) for block in blocks])
        output, network = Storage(config.restore.output), load(config.restore, "cpu")
        for block in blocks:
            if self.interrupts:
                signal.raise_signal(signal.SIGINT)
            if any(item.path in self.poison for item in block.items):
                continue
            try:
                read = many.read_block(block, many.reading_steps(config.restore, steps), output)
                yield many.write_block(many.restore_block(read, network), steps, output)
            except Exception as error:
                if not self.catches:
                    raise
                yield dataclasses.replace(block, error=error)


@pytest.fixture
def pool(monkeypatch):
    pool = InProcess()
    monkeypatch.setattr(lease, "_SETTLE_S", 0)
    monkeypatch.setattr(restore_many, "cluster", lambda config: contextlib.nullcontext())
    monkeypatch.setattr(restore_many.Pool, "of", lambda config, is_here: pool)
    return pool


@pytest.fixture(params=["disk", "memory"])
def places(request, tmp_path):
    """Input and output, with ten pictures."""
    make_pictures(tmp_path / "in", 10)
    if request.param == "disk":
        return str(tmp_path / "in"), str(tmp_path / "out")
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.put(str(tmp_path / "in"), "/bucket/in", recursive=True)
    return "memory://bucket/in", "memory://bucket/out"


def config_of(places, *overrides, **spread):
    paths = [f"input={places[0]}", f"output={places[1]}"]
    preset = find_file("configs/restore", "portrait128", what="preset")
    config = load_config(RestoreConfig, preset, [*paths, "faces.mode=aligned", *overrides])
    return ManyConfig(config, **{"block_pictures": 4, "beat_s": 1.0} | spread)


def run(places, *overrides, load=fake_steps, **spread):
    return restore_many.restore_many(config_of(places, *overrides, **spread), load=load)


def counts(summary):
    return summary.restored, summary.skipped, summary.failed


def test_a_run_and_the_next(places, pool):
    assert counts(run(places)) == (10, 0, 0)
    output = Storage(places[1])
    names = sorted(output.find())
    assert sum(name.startswith("restored/") for name in names) == 10
    assert {"run.yaml", "summary.json", "report.html"} <= set(names)
    assert not [name for name in names if "partial" in name or "lease" in name]
    assert pool.rounds == [[4, 4, 2]]
    assert counts(run(places)) == (0, 10, 0)
    assert pool.rounds[-1] == []
    # Other settings: again, and the results are those of the new ones.
    assert counts(run(places, "seed=1")) == (10, 0, 0)
    assert counts(run(places, "seed=1")) == (0, 10, 0)


def test_earlier_settings_come_back(places, pool):
    """Their records are there already, but the results are those of other settings."""
    output, made = Storage(places[1]), []
    for seed in ("seed=7", "seed=9", "seed=7"):
        assert counts(run(places, seed)) == (10, 0, 0)
        names = sorted(name for name in output.find() if name.startswith("restored/"))
        made.append([output.read(name) for name in names])
    assert made[0] == made[2]
    assert made[0] != made[1]
    assert counts(run(places, "seed=7")) == (0, 10, 0)


def test_a_small_run_that_loses_everything_quarantines_nothing(tmp_path, pool):
    make_pictures(tmp_path / "in", 3)
    places = str(tmp_path / "in"), str(tmp_path / "out")
    pool.poison = tuple(Storage(places[0]).find())
    with pytest.raises(ClusterError, match="3 pictures were lost"):
        run(places)
    pool.poison = ()
    assert counts(run(places)) == (3, 0, 0)
    # Others were restored before, so it is these two.
    make_pictures(tmp_path / "in/more", 2)
    pool.poison = tuple(name for name in Storage(places[0]).find() if "more/" in name)
    assert counts(run(places)) == (0, 3, 2)


def test_the_pictures_of_a_disk_are_those_of_restore(tmp_path, pool):
    make_pictures(tmp_path / "elsewhere", 2)
    make_pictures(tmp_path / "in", 2)
    (tmp_path / "in/._face.png").write_bytes(b"a companion")
    (tmp_path / "in/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/one.png").symlink_to(sorted((tmp_path / "elsewhere").iterdir())[0])
    (tmp_path / "in/gone.png").symlink_to(tmp_path / "nowhere.png")
    places = str(tmp_path / "in"), str(tmp_path / "in/out")
    assert counts(run(places)) == (5, 0, 1)  # the link to nothing
    found = images.find_images(tmp_path / "in", exclude=(tmp_path / "in/out",)).paths
    items = list_pictures(config_of(places).restore, Storage(places[1]))
    assert [item.path for item in items] == sorted(
        path.relative_to(tmp_path / "in").as_posix() for path in found
    )
    assert counts(run(places)) == (0, 5, 1)


def test_one_place_has_many_names(tmp_path, pool, monkeypatch):
    make_pictures(tmp_path / "in", 3)
    monkeypatch.chdir(tmp_path)
    assert counts(run(("in", "out"))) == (3, 0, 0)
    for name in ("in/", "./in", str(tmp_path / "in")):
        assert counts(run((name, str(tmp_path / "out")))) == (0, 3, 0)


@pytest.mark.parametrize("gpus", [-1, 1.5])
def test_gpus_of_an_actor(tmp_path, gpus):
    restore = RestoreConfig(input=str(tmp_path), output=str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="gpus-per-actor"):
        restore_many.restore_many(ManyConfig(restore, gpus_per_actor=gpus))


def test_what_is_gone_or_changed_is_done_again(places, pool):
    run(places)
    source, output = Storage(places[0]), Storage(places[1])
    (first, second) = sorted(name for name in output.find() if name.startswith("restored/"))[:2]
    content = output.read(first)
    output.remove(first)
    output.write(second, b"cut")
    assert counts(run(places)) == (2, 8, 0)
    assert output.read(first) == content
    changed = sorted(source.find())[-1]
    if source.is_local:  # the memory's listing has no version
        source.write(changed, source.read(sorted(source.find())[0]))
        assert counts(run(places)) == (1, 9, 0)


def test_failures_are_recorded_and_tried_a_few_times(places, pool):
    Storage(places[0]).write("bad.png", b"no picture")
    for attempt in range(1, 4):
        summary = run(places)
        assert (summary.failed, summary.exit_code) == (1, 3)
        output = Storage(places[1])
        assert read_rows(output, output.find())["bad.png"].attempts == attempt
    pool.rounds.clear()
    assert counts(run(places)) == (0, 10, 1)
    assert pool.rounds == [[]]  # enough
    assert run(places, retries=3).failed == 1
    assert pool.rounds[-1] == [1]
    summary = json.loads(Storage(places[1]).read("summary.json"))
    assert summary["failures"] == {"PictureError": 1}
    assert "not an image" in Storage(places[1]).read("report.html").decode()


def test_a_poison_picture_is_found_and_quarantined(places, pool):
    poison = sorted(Storage(places[0]).find())[5]
    pool.poison = (poison,)
    summary = run(places, block_pictures=8)
    assert (counts(summary), summary.exit_code) == ((9, 0, 1), 3)
    assert pool.rounds == [[8, 2], [1] * 8, [1]]
    output = Storage(places[1])
    row = read_rows(output, output.find())[poison]
    assert (row.status, row.attempts) == ("quarantined", 3)
    assert json.loads(output.read("summary.json"))["quarantined"] == [poison]
    assert counts(run(places)) == (0, 9, 1)
    assert pool.rounds[-1] == []


def test_a_cluster_that_loses_everything_quarantines_nothing(tmp_path, pool):
    make_pictures(tmp_path / "in", 25)
    places = str(tmp_path / "in"), str(tmp_path / "out")
    pool.poison = tuple(Storage(places[0]).find())
    with pytest.raises(ClusterError, match="25 pictures were lost"):
        run(places)
    assert not list((tmp_path / "out").glob(f"{RECORDS}/*"))


def test_a_full_disk_ends_the_run(places, pool, monkeypatch):
    def write(self, name, data):
        raise OSError(errno.ENOSPC, "full", name)

    monkeypatch.setattr(many, "write_shard", lambda *_: None)
    config = config_of(places)
    steps = fake_steps(config.restore, "cpu")
    items = list_pictures(config.restore, Storage(places[1]))
    block = many.read_block(many_plan.block_of(items[:2], steps, {}), steps, Storage(places[1]))
    block = many.restore_block(block, steps)
    monkeypatch.setattr(Storage, "write", write)
    with pytest.raises(OSError, match="full"):
        many.write_block(block, steps, Storage(places[1]))


def test_a_write_that_fails_is_the_pictures_failure(places, pool, monkeypatch):
    bad = sorted(Storage(places[0]).find())[3]
    write = Storage.write

    def writes(self, name, data):
        if name == f"restored/{bad}":
            raise OSError(errno.ENAMETOOLONG, "too long", name)
        write(self, name, data)

    monkeypatch.setattr(Storage, "write", writes)
    assert counts(run(places)) == (9, 0, 1)


def test_two_runs_share_the_work(places, pool):
    """The one that joins comes from the other end; what one has done the other does not do."""
    output = Storage(places[1])
    asked = config_of(places)

    class Meeting(InProcess):
        def run(self, blocks, config, steps, load, **options):
            for number, block in enumerate(super().run(blocks, config, steps, load, **options)):
                yield block
                if number == 0:
                    pool.joined = run(places, join=True)

    first = Meeting()
    of = restore_many.Pool.of
    pools = iter([first, pool])
    restore_many.Pool.of = lambda config, is_here: next(pools)
    try:
        summary = restore_many.restore_many(asked, load=fake_steps)
    finally:
        restore_many.Pool.of = of
    assert counts(summary) == (4, 6, 0)  # the first block
    assert counts(pool.joined) == (6, 4, 0)
    shards = [name for name in output.find() if name.startswith(RECORDS)]
    rows = [row for name in shards for row in read_shard(output, name)]
    assert sorted(row.path for row in rows) == sorted(Storage(places[0]).find())


def test_a_second_run_is_refused(places, pool):
    output = Storage(places[1])
    with restore_many.Lease(output, {}), pytest.raises(FolderInUseError, match="--join"):
        run(places)


def test_an_interrupted_run_goes_on(places, pool):
    pool.interrupts = True
    summary = run(places)
    assert (summary.restored, summary.interrupted, summary.exit_code) == (4, True, 130)
    pool.interrupts = False
    assert counts(run(places)) == (6, 4, 0)


def test_a_run_that_was_overtaken_stops(places, pool, monkeypatch):
    class Lost(restore_many.Lease):
        def __enter__(self):
            super().__enter__()
            self.is_lost = True
            return self

    with monkeypatch.context() as patched:
        patched.setattr(restore_many, "Lease", Lost)
        assert run(places).interrupted
    assert "summary.json" not in Storage(places[1]).find()  # that of the other run


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_lists_of_urls(places, pool, tmp_path, kind):
    source = Storage(places[0])
    urls = [source.fs.unstrip_protocol(f"{source.root}/{name}") for name in source.find()]
    path = tmp_path / f"list.{kind}"

    def write(urls):
        if kind == "csv":
            path.write_text("\n".join(["url", *urls]))
        else:
            pq.write_table(pa.table({"url": urls}), path)

    write([*urls, f"{urls[0]}gone.png"])
    summary = run((str(path), places[1]))
    assert counts(summary) == (10, 0, 1)
    examples = json.loads(Storage(places[1]).read("summary.json"))["failed_examples"]
    assert [one["kind"] for one in examples] == ["FileNotFoundError"]
    write([*urls, urls[0]])
    with pytest.raises(ConfigError, match="twice"):
        run((str(path), places[1]))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.csv", "path\na.png\n", "no column 'url'"),
        ("x.csv", "url\n", "no pictures"),
        ("x.parquet", "nonsense", "no parquet"),
        ("missing.csv", None, "cannot be read"),
        ("empty", None, "no files"),
    ],
)
def test_wrong_inputs_are_one_sentence(tmp_path, pool, name, content, said):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=said):
        run((str(tmp_path / name), str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("overrides", "spread", "said"),
    [
        (["repair.mask=x.png"], {}, "no masks"),
        (["pages=all"], {}, "pages"),
        ([], {"actors": -1}, "at least 1"),
        ([], {"block_pictures": 0}, "at least 1"),
    ],
)
def test_wrong_settings_are_one_sentence(tmp_path, pool, overrides, spread, said):
    make_pictures(tmp_path / "in", 1)
    with pytest.raises(ConfigError, match=said):
        run((str(tmp_path / "in"), str(tmp_path / "out")), *overrides, **spread)


@pytest.mark.parametrize(
    "name",
    [
        "manifest.jsonl",
        "failures.jsonl",
        "records/a",
        "restored/0.png",
        "coarse/0.png",
        "report.html",
    ],
)
def test_files_of_other_programs_stay_as_they_are(places, pool, name):
    output = Storage(places[1])
    output.write(name, b"theirs")
    with pytest.raises(ConfigError, match="which no run of this command wrote"):
        run(places)
    assert list(output.find()) == [name]
    assert output.read(name) == b"theirs"
    other = Storage(f"{places[1]}2")
    other.write("notes.txt", b"theirs")
    assert counts(run((places[0], other.url))) == (10, 0, 0)
    assert other.read("notes.txt") == b"theirs"


def test_results_of_other_runs_stay_out(tmp_path, pool):
    make_pictures(tmp_path / "in", 2)
    inside = str(tmp_path / "in"), str(tmp_path / "in" / "out")
    assert counts(run(inside)) == (2, 0, 0)
    assert counts(run(inside)) == (0, 2, 0)
    # Another run's output below the same input.
    assert counts(run((inside[0], str(tmp_path / "other")))) == (2, 0, 0)
    make_pictures(tmp_path / "in2", 1)
    with pytest.raises(ConfigError, match="another input"):
        run((str(tmp_path / "in2"), str(tmp_path / "other")))
    one = config_of((inside[0], str(tmp_path / "one")), "dr2.num_evaluations=1").restore
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "run.yaml").write_text("dr2pipe_run: 1\n")
    with pytest.raises(ConfigError, match="another command"):
        run((inside[0], one.output))


@pytest.mark.parametrize("mode", ["aligned", "photos"])
def test_files_and_records_are_those_of_restore(photos, model_folder, tmp_path, pool, mode):
    is_aligned = mode == "aligned"
    settings = [
        *settings_for(photos, model_folder, "save_compare=true", "format=keep"),
        *(
            ["faces.mode=aligned", "faces.file=null", "faces.name=yunet", "faces.skip_good=true"]
            if is_aligned
            else []
        ),
        *(["save_faces=true", "faces.mode=photos"] if not is_aligned else []),
    ]
    settings = [one for one in settings if not one.startswith(("input=", "output="))]
    (photos / "sub/two.png").write_bytes((photos / "one.png").read_bytes())
    places = str(photos), str(tmp_path / "many")
    many_run = run(places, *settings, load=restore_many.load_steps)
    config = config_of((places[0], str(tmp_path / "one")), *settings).restore
    one_run = restore_folder(config)
    assert counts(many_run) == counts(one_run) == (5, 0, 0)
    files = [
        {
            path.relative_to(tmp_path / name): path.read_bytes()
            for folder in ("restored", "faces", "compare")
            for path in (tmp_path / name / folder).rglob("*.*")
            if path.is_file()
        }
        for name in ("one", "many")
    ]
    assert len(files[0]) >= 10
    assert files[0] == files[1]
    output = Storage(places[1])
    shards = [name for name in output.find() if name.startswith(RECORDS)]
    records = {row.path: row.record for name in shards for row in read_shard(output, name)}
    lines = (tmp_path / "one" / "manifest.jsonl").read_text().splitlines()
    for line in map(json.loads, lines):
        found = records[line["path"]]
        assert line.keys() == found.keys()
        assert {**line, "seconds": 0} == {**found, "seconds": 0}


@pytest.mark.slow
def test_an_s3_store_that_refuses_and_stalls(tmp_path, pool, monkeypatch):
    pytest.importorskip("s3fs", reason="the extra [ray] is not installed")
    pytest.importorskip(
        "moto", reason="a server for tests: pip install 'moto[s3]' flask flask-cors"
    )
    from troubled_store import store_here

    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "")  # is put back at the end
    local = str(make_pictures(tmp_path / "in", 40)), str(tmp_path / "out")
    run(local)
    with store_here(refuse_every=20, stall_every=150, stall_s=20) as app:
        with pytest.raises(ConfigError, match="no files in s3://photos"):
            run(("s3://photos/in", local[1] + "2"))
        with pytest.raises(ConfigError, match="cannot be written"):
            run((local[0], "s3://photos/out"))
        fs = Storage("s3://photos").fs
        fs.mkdir("photos")
        fs.put(local[0], "photos/in", recursive=True)
        places = "s3://photos/in", "s3://photos/out"
        assert counts(run(places)) == (40, 0, 0)
        assert counts(run(places)) == (0, 40, 0)
        remote, one = Storage(places[1]), Storage(local[1])
        names = [name for name in one.find() if name.startswith("restored/")]
        assert len(names) == 40
        assert all(remote.read(name) == one.read(name) for name in names)
        fs.pipe_file("photos/in/face_000.png", one.read(names[5]))  # another ETag
        assert counts(run(places)) == (1, 39, 0)
        assert app.refused > 5
        assert app.stalled
    rows = [row for name in one.find() if name.startswith(RECORDS) for row in read_shard(one, name)]
    assert len(rows) == 40


assert photos  # a fixture


def test_ray_is_an_extra(monkeypatch):
    import builtins

    imported = builtins.__import__

    def without(name, *rest, **more):
        if name.partition(".")[0] == "ray":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return imported(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingPackageError, match=r"pip install 'dr2pipe\[ray\]'"):
        ray_cluster.cluster(ManyConfig(None)).__enter__()


def test_blocks_hold_so_many_bytes(monkeypatch):
    monkeypatch.setattr(many_plan, "_BLOCK_BYTES", 100)
    steps = fake_steps(RestoreConfig(), "cpu")
    items = [many.Item(str(n), "", str(n), size=60 if n < 2 else 10) for n in range(8)]
    blocks, _, _ = many_plan.plan(items, steps, {}, {}, block_pictures=4, retries=0)
    assert [len(block.items) for block in blocks] == [1, 4, 3]
    assert len({block.shard for block in blocks}) == 3
    again, _, _ = many_plan.plan(items, steps, {}, {}, block_pictures=4, retries=0)
    assert [block.shard for block in again] == [block.shard for block in blocks]
    assert np.unique([block.shard[:8] for block in blocks]) == [f"{RECORDS}/"]
