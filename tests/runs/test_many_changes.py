"""Restorations in blocks whose settings, pictures, workers or machines change."""

import dataclasses
import json
import os
import pickle
import shutil
import socket
import sys
import time

import pytest
from conftest import make_pictures
from test_many import config_of, counts, fake_steps, places, pool, run  # noqa: F401  fixtures
from test_photo_runs import photos, settings_for  # noqa: F401
from test_runs import FakeNetwork

from dr2pipe.core.errors import ConfigError, StorageError
from dr2pipe.core.storage import Storage, absolute_url
from dr2pipe.runs import many, many_plan, on_ray, ray_cluster, restore_many
from dr2pipe.runs.actor_places import find_places
from dr2pipe.runs.many import Block, Item, ManyConfig
from dr2pipe.runs.many_report import Progress
from dr2pipe.runs.restore import RestoreConfig
from dr2pipe.runs.shards import BEGUN, DONE, FAILED, Row, read_rows, write_shard
from dr2pipe.runs.steps import Steps

pytest.importorskip("pyarrow", reason="the extra [ray] is not installed")


def results(output):
    return {name for name in output.find() if name.startswith(("restored/", "coarse/", "faces/"))}


def steps_with(*outputs):
    """Steps with these result folders, which change what a record says of the settings."""

    def load(config, device):
        def process(pictures, seeds, decoded):
            made = FakeNetwork()(pictures, seeds, decoded)
            pixels = [dict.fromkeys(outputs, one["restored"]) for one in made.pixels]
            return dataclasses.replace(made, pixels=pixels)

        settings = {"outputs": list(outputs), "format": config.format}
        options = dataclasses.replace(fake_steps(config, device).options)
        return Steps(
            process=process, size=16, output_size=16, settings=settings, outputs=list(outputs),
            seed=0, batch_size=2, options=options,
        )  # fmt: skip

    return load


def test_files_that_other_settings_do_not_make_go(places, pool):  # noqa: F811
    output = Storage(places[1])
    run(places, load=steps_with("restored", "coarse"))
    assert len(results(output)) == 20
    coarse = sorted(name for name in results(output) if name.startswith("coarse/"))
    output.write(coarse[0], b"changed by someone")
    assert counts(run(places, load=steps_with("restored"))) == (10, 0, 0)
    assert len(results(output)) == 11
    assert output.read(coarse[0]) == b"changed by someone"


def test_files_of_failures_and_of_settings_before_the_last_go_too(places, pool):  # noqa: F811
    output, source = Storage(places[1]), Storage(places[0])
    name = sorted(source.find())[0]
    whole = source.read(name)
    run(places, load=steps_with("restored", "coarse"))
    source.write(name, b"no picture")
    assert counts(run(places, load=steps_with("restored"))) == (9, 0, 1)
    assert len(results(output)) == 11  # what was made before it failed stays
    source.write(name, whole)
    assert counts(run(places, load=steps_with("restored"))) == (1, 9, 0)
    assert len(results(output)) == 10


def test_a_name_that_another_picture_has_now_stays(tmp_path, pool):  # noqa: F811
    make_pictures(tmp_path / "in", 2)
    first, second = sorted((tmp_path / "in").iterdir())
    first.rename(first.with_suffix(".bmp"))
    places = str(tmp_path / "in"), str(tmp_path / "out")  # noqa: F811
    run(places)
    output = Storage(places[1])
    assert results(output) == {f"restored/{first.name}", f"restored/{second.name}"}
    # first.png has the short name now, and first.bmp another.
    first.write_bytes(second.read_bytes())
    assert counts(run(places)) == (2, 1, 0)
    assert len(results(output)) == 3
    assert counts(run(places)) == (0, 3, 0)


def test_faces_that_are_not_found_any_more_go(photos, model_folder, tmp_path, pool):  # noqa: F811
    places = str(photos), str(tmp_path / "many")  # noqa: F811
    settings = settings_for(photos, model_folder, "faces.mode=photos")
    settings = [one for one in settings if not one.startswith(("input=", "output="))]
    run(places, *settings, "save_faces=true", load=restore_many.load_steps)
    output = Storage(places[1])
    faces = {name for name in results(output) if name.startswith("faces/")}
    assert faces
    run(places, *settings, "save_faces=true", "faces.max_count=1", load=restore_many.load_steps)
    fewer = {name for name in results(output) if name.startswith("faces/")}
    assert fewer < faces
    run(places, *settings, load=restore_many.load_steps)
    assert not {name for name in results(output) if name.startswith("faces/")}


@pytest.mark.parametrize(
    ("overrides", "spread", "said"),
    [
        (["seed=3"], {}, "here: settings$"),
        (["format=jpg"], {}, "here: settings$"),
        (["save_compare=true"], {}, "here: settings$"),
        ([], {"block_pictures": 5}, "here: --block$"),
        ([], {"retries": 5, "block_pictures": 5}, "here: --block, --retries$"),
    ],
)
def test_who_joins_makes_the_same(places, pool, overrides, spread, said):  # noqa: F811
    asked = config_of(places)
    restore = dataclasses.replace(
        asked.restore, input=absolute_url(places[0]), output=absolute_url(places[1])
    )
    about = restore_many._about(dataclasses.replace(asked, restore=restore))
    with restore_many.Lease(Storage(places[1]), about):
        with pytest.raises(ConfigError, match=said):
            run(places, *overrides, join=True, **spread)
        assert counts(run(places, join=True)) == (10, 0, 0)


def test_pictures_of_another_run_are_not_counted_as_ones_own():
    progress = Progress(total=4, done=0, given_up=[], price=None)
    rows = [Row(str(number), DONE, "", "", 1, {}) for number in range(2)]
    with progress:
        progress.add(Block([], "x", rows=rows, actor="a", busy_s=1.0))
        progress.add(Block([], "y", rows=rows, is_theirs=True))
    assert counts(progress.summary) == (2, 2, 0)
    assert progress.samples[-1][1] == 2


# -- stores in trouble ------------------------------------------------------------------------


def test_trouble_of_the_input_is_no_fault_of_its_pictures(places, pool, monkeypatch):  # noqa: F811
    def refuses(url):
        raise PermissionError("the token has expired")

    with monkeypatch.context() as patched:
        patched.setattr(many, "read_url", refuses)
        for _ in range(4):
            assert counts(run(places)) == (0, 0, 10)
    summary = json.loads(Storage(places[1]).read("summary.json"))
    assert summary["failures"] == {"PermissionError": 10}
    assert counts(run(places)) == (10, 0, 0)


def test_blocks_whose_records_a_store_does_not_take_come_again(places, pool, monkeypatch):  # noqa: F811
    write, refused = many.write_shard, []

    def refuses_once(storage, name, rows):
        if not refused:
            refused.append(name)
            raise OSError("503 Slow Down")
        write(storage, name, rows)

    monkeypatch.setattr(many, "write_shard", refuses_once)
    pool.catches = True
    assert counts(run(places)) == (10, 0, 0)
    assert [sum(sizes) for sizes in pool.rounds] == [10, 4]
    assert counts(run(places)) == (0, 10, 0)


def test_a_store_that_takes_no_records_ends_the_run(places, pool, monkeypatch):  # noqa: F811
    def refuses(storage, name, rows):
        raise OSError("503 Slow Down")

    monkeypatch.setattr(many, "write_shard", refuses)
    pool.catches = True
    with pytest.raises(StorageError, match="503 Slow Down"):
        run(places)
    assert len(pool.rounds) == 3


def test_a_store_that_is_down_is_not_asked_for_ever(tmp_path, pool, monkeypatch):  # noqa: F811
    make_pictures(tmp_path / "in", 25)
    monkeypatch.setattr(many, "write_shard", lambda *_: (_ for _ in ()).throw(OSError("503")))
    pool.catches = True
    with pytest.raises(StorageError, match="503"):
        run((str(tmp_path / "in"), str(tmp_path / "out")), block_pictures=1)
    assert len(pool.rounds) == 1


def test_records_that_another_run_wrote_anew_are_seen(tmp_path, pool, monkeypatch):  # noqa: F811
    make_pictures(tmp_path / "in", 2)
    places = str(tmp_path / "in"), str(tmp_path / "out")  # noqa: F811
    with monkeypatch.context() as patched:  # attempts stay, and so does the name of the records
        patched.setattr(many, "read_url", lambda url: (_ for _ in ()).throw(PermissionError(url)))
        run(places)
    output, config = Storage(places[1]), config_of(places)
    steps = fake_steps(config.restore, "cpu")
    items, stored = many_plan.list_pictures(config.restore, output), output.find()
    planned, _, _ = many_plan.plan(
        items, steps, read_rows(output, stored), stored, block_pictures=4, retries=2
    )
    assert planned[0].listed is not None
    assert not many.read_block(planned[0], steps, output).is_theirs
    time.sleep(0.02)  # of another time
    assert counts(run(places)) == (2, 0, 0)
    assert many.read_block(planned[0], steps, output).is_theirs


def test_the_files_of_the_latest_of_many_rows_count(tmp_path):
    storage = Storage(str(tmp_path))
    for number, (name, size) in enumerate([("b", 100), ("c", 120), ("a", None)]):
        record = {"path": "p"} if size is None else {"path": "p", "files": {"coarse/p": [size, ""]}}
        status = FAILED if size is None else DONE
        row = Row("p", status, "", str(number), 1, record)
        write_shard(storage, f"records/{name}.parquet", [row])
        time.sleep(0.01)
    (row,) = read_rows(storage, sorted(storage.find())).values()
    assert row.status == FAILED
    assert row.files == {"coarse/p": 120}


def test_a_picture_that_cannot_be_encoded_is_given_up(places, pool):  # noqa: F811
    class Fails(Steps):
        def encode(self, done, read_again):
            raise ValueError("no such colours")

    def load(config, device):
        steps = fake_steps(config, device)
        return Fails(
            **{one.name: getattr(steps, one.name) for one in dataclasses.fields(steps) if one.init}
        )

    for _ in range(3):
        assert counts(run(places, load=load)) == (0, 0, 10)
    pool.rounds.clear()
    assert counts(run(places, load=load)) == (0, 0, 10)
    assert pool.rounds == [[]]


@pytest.mark.parametrize("made_again", [1, 3])
def test_making_results_again_is_no_failure(places, pool, made_again):  # noqa: F811
    source, output = Storage(places[0]), Storage(places[1])
    name = sorted(source.find())[0]
    for _ in range(made_again):
        run(places)
        output.remove(f"restored/{name}")
    whole = source.read(name)
    source.remove(name)
    source.write(name, b"no picture")
    for attempt in range(1, 4):
        pool.rounds.clear()
        assert run(places).failed == 1
        assert pool.rounds == [[1]], attempt
    source.write(name, whole)


def test_why_pictures_failed_is_not_forgotten(places, pool):  # noqa: F811
    Storage(places[0]).write("bad.png", b"no picture")
    for _ in range(4):
        run(places)
        summary = json.loads(Storage(places[1]).read("summary.json"))
        assert summary["failures"] == {"PictureError": 1}
        assert "not an image" in summary["failed_examples"][0]["message"]


class OneSize(Steps):
    """All results have as many bytes, as those of some formats have."""

    def encode(self, done, read_again):
        content = f"{self.settings['seed']:100}".encode()
        return dict.fromkeys(self.names_of(done.loaded.job).values(), content)


def test_a_kill_while_results_are_replaced(places, pool, monkeypatch):  # noqa: F811
    """Where files have one size, only the records tell whose they are."""
    write, output = many.write_shard, Storage(places[1])

    def load(config, device):
        steps = fake_steps(config, device)
        kept = {one.name: getattr(steps, one.name) for one in dataclasses.fields(steps) if one.init}
        return OneSize(**kept)

    def killed(storage, name, rows):
        if rows[0].status != BEGUN:
            raise KeyboardInterrupt
        write(storage, name, rows)

    def seeds():
        return {int(output.read(name)) for name in results(output)}

    assert counts(run(places, "seed=1", load=load)) == (10, 0, 0)
    with monkeypatch.context() as patched:
        patched.setattr(many, "write_shard", killed)
        with pytest.raises(KeyboardInterrupt):
            run(places, "seed=2", load=load)
    assert seeds() == {1, 2}
    assert counts(run(places, "seed=1", load=load)) == (4, 6, 0)
    assert seeds() == {1}


@pytest.mark.skipif(sys.platform != "linux", reason="names of bytes")
def test_names_that_are_no_text(tmp_path, pool):  # noqa: F811
    make_pictures(tmp_path / "in", 1)
    (picture,) = (tmp_path / "in").iterdir()
    for name in (b"caf\xe9.png", b"a::b.png", b"n" * 300 + b"/x.png"):
        target = os.path.join(os.fsencode(tmp_path / "in"), name)
        if len(name) < 200:
            shutil.copy(picture, target)
    places = str(tmp_path / "in"), str(tmp_path / "out")  # noqa: F811
    assert counts(run(places)) == (3, 0, 0)
    assert counts(run(places)) == (0, 3, 0)
    # All of them fail: the report says so.
    for name in os.listdir(os.fsencode(tmp_path / "in")):
        with open(os.path.join(os.fsencode(tmp_path / "in"), name), "wb") as file:
            file.write(b"no picture")
    assert counts(run(places)) == (0, 0, 3)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["url,size", "{0},many"], "picture 1: its size is no number of bytes: many"),
        (["url,name", "{0},a.png", ",b.png"], "picture 2: it has no url"),
        (["url", "../in/a.png"], "picture 1: the name .* leads out"),
        (["url,name", "{0},/etc/a.png"], "picture 1: the name .* absolute"),
        (["url,size", "{0},nan"], "picture 1: its size"),
        (["url,size", "{0},inf"], "picture 1: its size"),
    ],
)
def test_lists_are_checked_before_work_starts(tmp_path, pool, lines, said):  # noqa: F811
    make_pictures(tmp_path / "in", 1)
    (picture,) = (tmp_path / "in").iterdir()
    path = tmp_path / "list.csv"
    path.write_text("\n".join(lines).format(picture))
    with pytest.raises(ConfigError, match=said):
        run((str(path), str(tmp_path / "out")))
    assert pool.rounds == []


def test_long_names_of_a_list_are_done_once(tmp_path, pool):  # noqa: F811
    make_pictures(tmp_path / "in", 1)
    (picture,) = (tmp_path / "in").iterdir()
    path = tmp_path / "list.csv"
    path.write_text(f"url,name\n{picture},{'signed' * 60}.png\n{picture},b.png\n")
    places = str(path), str(tmp_path / "out")  # noqa: F811
    assert counts(run(places)) == (2, 0, 0)
    assert counts(run(places)) == (0, 2, 0)


def test_no_credentials_are_one_sentence(places, pool, monkeypatch):  # noqa: F811
    class NoCredentialsError(Exception):
        pass

    def refuses(self, name):
        raise NoCredentialsError("Unable to locate credentials")

    monkeypatch.setattr(Storage, "read", refuses)
    with pytest.raises(ConfigError, match="no access; check the credentials"):
        run(places)


# -- what comes from other processes ----------------------------------------------------------


class Unsendable(Exception):
    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


@pytest.mark.parametrize("error", [Unsendable("a", "b"), OSError(28, "full"), ConfigError("wrong")])
def test_errors_of_workers_come_through(error):
    def fails(block):
        raise error

    (block,) = on_ray._blocks_of(
        on_ray._each(on_ray._table(Block([Item("a", "a", "a")], "x")), fails)
    )
    assert str(error) in str(block.error)
    assert isinstance(error, Unsendable) or type(block.error) is type(error)
    assert pickle.loads(pickle.dumps(block.error)).args == block.error.args


def test_relative_paths_mean_the_drivers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    on_ray._work_in(str(tmp_path / "elsewhere"))  # a folder that this machine does not have
    assert on_ray.os.getcwd() == str(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    on_ray._work_in(str(tmp_path / "elsewhere"))
    assert on_ray.os.getcwd() == str(tmp_path / "elsewhere")


def test_machines_that_do_not_see_the_same_folders(tmp_path):
    restore = RestoreConfig(input=str(tmp_path / "in"), output=str(tmp_path / "out"))
    output = Storage(restore.output)
    with pytest.raises(ConfigError, match=r"does not see .*out: several machines need a shared"):
        on_ray._check_seen(restore, output)
    output.write("run.yaml", b"")
    with pytest.raises(ConfigError, match=r"does not see .*in: several machines need a shared"):
        on_ray._check_seen(restore, output)
    (tmp_path / "in").mkdir()
    on_ray._check_seen(restore, output)
    listed = dataclasses.replace(restore, input=str(tmp_path / "of the driver/photos.csv"))
    on_ray._check_seen(listed, output)


def test_a_cluster_that_does_not_answer_is_one_sentence():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{server.getsockname()[1]}"
        for url in (address, f"ray://{address}"):
            with pytest.raises(ConfigError, match="no cluster answers at RAY_ADDRESS"):
                ray_cluster._check_address(url)
        server.listen()
        ray_cluster._check_address(address)
    ray_cluster._check_address("auto")


def node(cpus, gpus=0):
    return {"CPU": float(cpus), **({"GPU": float(gpus)} if gpus else {})}


@pytest.mark.parametrize(
    ("nodes", "asked", "now", "most", "gpus"),
    [
        ([node(8), node(8)], {}, 15, 15, 0),
        ([node(8), node(3)], {"cpus_per_actor": 4}, 2, 2, 0),
        ([node(8), node(8)], {"actors": 4}, 4, 4, 0),
        ([node(8), node(8)], {"actors": 40}, 15, 40, 0),
        ([node(8), node(32, 4), node(32, 4)], {}, 8, 8, 1),
        ([node(32, 4)], {"gpus_per_actor": 0.5}, 8, 8, 0.5),
        ([node(32, 1), node(32, 1)], {"gpus_per_actor": 0.6}, 2, 2, 0.6),
        ([node(32, 4), node(32, 1)], {"gpus_per_actor": 2}, 2, 2, 2),
        ([node(8, 1)], {"gpus_per_actor": 0}, 7, 7, 0),
    ],
)
def test_actors_by_the_machines_of_a_cluster(caplog, nodes, asked, now, most, gpus):
    config = ManyConfig(RestoreConfig(input="i", output="o"), **asked)
    found = find_places(config, nodes, is_here=False)
    assert (found.now, found.most, found.gpus) == (now, most, gpus)
    assert ("when it grows" in caplog.text) == (most > now)


@pytest.mark.parametrize(
    ("nodes", "asked", "said"),
    [
        ([node(8), node(8)], {"gpus_per_actor": 1}, "an actor is to have 1 GPUs"),
        ([node(8, 1), node(8, 1)], {"gpus_per_actor": 2}, "no machine of the cluster has more"),
        ([node(8), node(8)], {"cpus_per_actor": 9}, "no machine of the cluster has place"),
        ([node(1)], {}, "beside a reader"),
        ([node(8), node(4, 1)], {"cpus_per_actor": 6, "gpus_per_actor": 1}, "larger nodes"),
    ],
)
def test_an_actor_has_to_fit_one_machine(nodes, asked, said):
    config = ManyConfig(RestoreConfig(input="i", output="o"), **asked)
    with pytest.raises(ConfigError, match=said):
        find_places(config, nodes, is_here=False)


def test_this_machine_does_not_grow():
    config = ManyConfig(RestoreConfig(input="i", output="o"), actors=2)
    with pytest.raises(ConfigError, match="place for 1 of 2 actors"):
        find_places(config, [node(64, 1)], is_here=True)


def test_the_cost_is_that_of_the_actors_that_were_there():
    """The second one came at half of the time."""
    progress = Progress(total=30, done=0, given_up=[], price=3600.0)
    rows = [Row(str(number), DONE, "", "", 1, {}) for number in range(10)]
    with progress:
        for actor in ("a", "b", "a"):
            progress._start -= 50.0
            for name in progress.since:
                progress.since[name] -= 50.0
            progress.add(Block([], "x", rows=rows, actor=actor, busy_s=40.0))
    said = progress.as_dict()
    assert said["actors"] == 2
    assert said["actors_busy"] == pytest.approx(120 / (140 + 90), abs=0.01)
    assert said["cost_per_1000"] == pytest.approx((140 + 90) / 30 * 1000, rel=0.01)
