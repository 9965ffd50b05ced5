"""``restore-many`` on one machine as if on many: the real pipeline, with a sleep for the networks.

    python scripts/research/scale_simulation.py tiny WORK --pictures 200000 --seconds 0.0063
    python scripts/research/scale_simulation.py skip WORK --pictures 200000 --block 512
    python scripts/research/scale_simulation.py cpu WORK --pictures 2000 --block 512
    python scripts/research/scale_simulation.py nodes WORK --pictures 400
    python scripts/research/scale_simulation.py grow WORK --pictures 240 --block 4 --seconds 0.4
    python scripts/research/scale_simulation.py poison WORK --pictures 60
    python scripts/research/scale_simulation.py store WORK --pictures 200
    python scripts/research/scale_simulation.py compare WORK --pictures 2000
    python scripts/research/scale_simulation.py compare_store WORK --pictures 2000

WORK is a new folder. Each prints one line of JSON, and fails where a promise is broken.
"""

import argparse
import contextlib
import json
import logging
import os
import pickle
import resource
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from troubled_store import store_here

from dr2pipe.core import images
from dr2pipe.core.config import load_config
from dr2pipe.core.models import find_file
from dr2pipe.core.storage import Storage
from dr2pipe.runs.batches import BatchResult
from dr2pipe.runs.many import ManyConfig, read_block, restore_block, write_block
from dr2pipe.runs.many_plan import list_pictures, plan
from dr2pipe.runs.restore import RestoreConfig
from dr2pipe.runs.restore_many import restore_many
from dr2pipe.runs.shards import DONE, RECORDS, Row, read_rows, read_shard, write_shard
from dr2pipe.runs.steps import Steps

POISON = 255  # grey of a picture that kills the process that restores it


def simulated_steps(config, device, *, seconds):
    """Steps whose networks sleep, and die of a poison picture."""

    def process(pictures, seeds, decoded):
        pixels = images.to_uint8(pictures)
        time.sleep(seconds * len(pixels))
        if any((one == POISON).all() for one in pixels):
            os._exit(1)
        return BatchResult([{"restored": one} for one in pixels], [{} for _ in pixels])

    return Steps(
        process=process,
        size=16,
        output_size=16,
        settings={"simulated": True},
        outputs=["restored"],
        seed=0,
        batch_size=config.batch_size,
    )


def make_pictures(folder, count, *, side=16):
    """Pictures of 64 kinds, a thousand in each folder."""
    kinds = []
    for kind in range(64):
        rng = np.random.default_rng(kind)
        pixels = rng.integers(0, 250, (side // 4, side // 4, 3), dtype=np.uint8)
        path = Path(folder, "kind.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC).save(path)
        kinds.append(path.read_bytes())
        path.unlink()
    for number in range(count):
        path = Path(folder, f"{number // 1000:05}", f"{number:08}.png")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(kinds[number % len(kinds)])


def config_for(source, output, **spread):
    preset = find_file("configs/restore", "portrait128", what="preset")
    overrides = [f"input={source}", f"output={output}", "faces.mode=aligned", "batch_size=16"]
    return ManyConfig(load_config(RestoreConfig, preset, overrides), beat_s=6.0, **spread)


@contextlib.contextmanager
def ray_here(cpus):
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        num_cpus=cpus,
        include_dashboard=False,
        object_store_memory=400_000_000,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def nodes_here(*nodes):
    """A simulated cluster with a machine for each of the resources, which RAY_ADDRESS names."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    head, *others = nodes
    cluster = Cluster(initialize_head=True, head_node_args={**head, "include_dashboard": False})
    os.environ["RAY_ADDRESS"] = cluster.address
    try:
        for node in others:
            cluster.add_node(**node)
        yield cluster
    finally:
        os.environ.pop("RAY_ADDRESS")
        cluster.shutdown()


def check_records(output, expected):
    """Each picture has one record and one result; returns what was found."""
    storage = Storage(str(output))
    found = storage.find()
    rows = [row for name in found if name.startswith(RECORDS) for row in read_shard(storage, name)]
    latest = {row.path: row for row in rows}
    results = sum(name.startswith("restored/") for name in found)
    partial_files = [name for name in found if ".partial" in name or "lease" in name]
    assert len(latest) == expected, (len(latest), expected)
    assert not partial_files, partial_files
    return {
        "records": len(latest),
        "records_written_twice": len(rows) - len(latest),
        "results": results,
    }


def tiny(work, pictures, seconds, block):
    make_pictures(work / "in", pictures)
    load = partial(simulated_steps, seconds=seconds)
    said = {"pictures": pictures}
    # Two machines with three GPUs each; few cores, since they are all this machine's.
    node = {"num_cpus": 5, "num_gpus": 3, "object_store_memory": 200_000_000}
    with nodes_here(node, node):
        config = config_for(work / "in", work / "out", block_pictures=block)
        start = time.perf_counter()
        summary = restore_many(config, load=load)
        said["seconds"] = round(time.perf_counter() - start, 1)
        assert summary.restored == pictures, summary
        numbers = json.loads((work / "out/summary.json").read_text())
        said |= {name: numbers[name] for name in ("pictures_per_s", "actors", "actors_busy")}
        start = time.perf_counter()
        summary = restore_many(config, load=load)
        said["finished_run_s"] = round(time.perf_counter() - start, 1)
        assert summary.skipped == pictures, summary
    said["driver_peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return said | check_records(work / "out", pictures)


def skip(work, pictures, seconds, block):
    """What the driver does of a finished run: list, read the records, find nothing to do."""
    make_pictures(work / "in", pictures)
    shutil.copytree(work / "in", work / "out/restored")
    config = config_for(work / "in", work / "out").restore
    output, steps = Storage(config.output), simulated_steps(config, "cpu", seconds=0)
    items = list_pictures(config, output)
    for start in range(0, len(items), block):
        rows = []
        for item in items[start : start + block]:
            name = f"restored/{item.output_name}"
            record = {"path": item.path, "sha256": "0" * 64, "settings": steps.settings_hash}
            record |= {"output": name, "files": {name: [item.size, "0" * 64]}, "seed": 1}
            record |= {"seconds": 0.1, "warnings": []}
            rows.append(Row(item.path, DONE, item.version, steps.settings_hash, 1, record))
        write_shard(output, f"{RECORDS}/{start:09}.parquet", rows)
    del items, rows
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    start, cpu = time.perf_counter(), time.process_time()
    items, stored = list_pictures(config, output), output.find()
    found = read_rows(output, stored)
    blocks, done, _ = plan(items, steps, found, stored, block_pictures=block, retries=2)
    assert (len(blocks), done) == (0, pictures)
    return {
        "pictures": pictures,
        "shards": -(-pictures // block),
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "peak_mb_before": before,
    }


def cpu(work, pictures, seconds, block):
    """Seconds of a core that a picture takes beside the networks, without Ray's own."""
    make_pictures(work / "in", pictures)
    config = config_for(work / "in", work / "out").restore
    output, steps = Storage(config.output), simulated_steps(config, "cpu", seconds=0)
    blocks, _, _ = plan(
        list_pictures(config, output), steps, {}, {}, block_pictures=block, retries=2
    )
    said, start = {"pictures": pictures}, time.process_time()
    calls = {
        "read": lambda done: read_block(done, steps, output),
        "restore": lambda done: restore_block(done, steps),
        "write": lambda done: write_block(done, steps, output),
    }
    for block_now in blocks:
        done = block_now
        for name, call in calls.items():
            start = time.process_time()
            done = pickle.loads(pickle.dumps(call(done)))
            said[f"{name}_ms"] = said.get(f"{name}_ms", 0) + time.process_time() - start
    for name in calls:
        said[f"{name}_ms"] = round(said[f"{name}_ms"] / pictures * 1000, 3)
    return said


def drive(work, seconds, block, actors):
    """A driver of its own, on the cluster of RAY_ADDRESS."""
    config = config_for(work / "in", work / "out", actors=actors, block_pictures=block)
    return restore_many(config, load=partial(simulated_steps, seconds=seconds)).exit_code


class Driver:
    """A process that drives a run on the cluster of RAY_ADDRESS."""

    def __init__(self, work, pictures, seconds, block, actors):
        self.work, self.pictures = work, pictures
        command = [sys.executable, __file__, "drive", str(work), "--seconds", str(seconds)]
        command += ["--block", str(block), "--actors", str(actors)]
        self.process = subprocess.Popen(command, start_new_session=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def wait_for(self, share):
        """Wait until a share of the pictures is done; returns how many are."""
        while True:
            done = sum(1 for _ in (self.work / "out/restored").rglob("*.png"))
            if done >= share * self.pictures:
                return done
            assert self.process.poll() is None, "the driver ended too early"
            time.sleep(0.2)


NODE = {"num_cpus": 3, "object_store_memory": 200_000_000}


def nodes(work, pictures, seconds, block):
    make_pictures(work / "in", pictures)
    said, start = {"pictures": pictures}, time.perf_counter()
    with nodes_here(NODE) as cluster:
        second = cluster.add_node(**NODE)
        with Driver(work, pictures, seconds, block, actors=2) as driver:
            said["node_killed_at"] = driver.wait_for(0.2)
            cluster.remove_node(second, allow_graceful=False)
            said["driver_killed_at"] = driver.wait_for(0.5)
        cluster.add_node(**NODE)
        time.sleep(40)  # the lease runs out
        with Driver(work, pictures, seconds, block, actors=2) as driver:
            assert driver.process.wait(timeout=900) == 0
    said["seconds"] = round(time.perf_counter() - start, 1)
    return said | check_records(work / "out", pictures)


def grow(work, pictures, seconds, block):
    make_pictures(work / "in", pictures)
    with nodes_here(NODE) as cluster, Driver(work, pictures, seconds, block, actors=4) as driver:
        grown_at = driver.wait_for(1 / pictures)
        cluster.add_node(**NODE)
        assert driver.process.wait(timeout=900) == 0
    numbers = json.loads((work / "out/summary.json").read_text())
    assert numbers["actors"] > 2, numbers  # so many have place on one node
    said = {"pictures": pictures, "grown_at": grown_at, "actors": numbers["actors"]}
    return said | check_records(work / "out", pictures)


def poison(work, pictures, seconds, block):
    make_pictures(work / "in", pictures)
    Image.new("RGB", (16, 16), (POISON,) * 3).save(work / "in/poison.png")
    with ray_here(3):
        config = config_for(work / "in", work / "out", actors=1, block_pictures=block)
        summary = restore_many(config, load=partial(simulated_steps, seconds=seconds))
    assert (summary.restored, summary.failed, summary.exit_code) == (pictures, 1, 3), summary
    said = json.loads((work / "out/summary.json").read_text())
    assert said["quarantined"] == ["poison.png"], said
    return {"exit_code": 3, "seconds": said["seconds"]} | check_records(work / "out", pictures + 1)


# -- an object store -------------------------------------------------------------------------


def store(work, pictures, seconds, block):
    make_pictures(work / "in", pictures)
    with store_here(refuse_every=20, stall_every=211, stall_s=20) as app, ray_here(3):
        bucket = Storage("s3://photos")
        bucket.fs.mkdir("photos")
        config = config_for(work / "in", "s3://photos/out", actors=1, block_pictures=block)
        summary = restore_many(config, load=partial(simulated_steps, seconds=seconds))
        assert summary.restored == pictures, summary
        second = restore_many(config, load=partial(simulated_steps, seconds=seconds))
        assert second.skipped == pictures, second
        local = config_for(work / "in", work / "out", actors=1, block_pictures=block)
        restore_many(local, load=partial(simulated_steps, seconds=seconds))
        remote = Storage("s3://photos/out")
        names = [name for name in remote.find() if name.startswith("restored/")]
        assert all(remote.read(name) == (work / "out" / name).read_bytes() for name in names)
        said = {
            "refused": app.refused,
            "stalled": app.stalled,
            "requests": next(app.requests) - 1,
            "seconds": json.loads((work / "out/summary.json").read_text())["seconds"],
        }
        return said | check_records("s3://photos/out", pictures)


def compare(work, pictures, settings, block):
    """Both commands with real networks on the same pictures; equal files."""
    make_pictures(work / "in", pictures, side=64)
    return both_commands(work, pictures, block, str(work / "many"), settings)


def compare_store(work, pictures, settings, block):
    """The same with results in an object store that refuses a twentieth of all requests."""
    make_pictures(work / "in", pictures, side=64)
    with store_here(refuse_every=20, stall_every=10**9, stall_s=0) as app:
        Storage("s3://photos").fs.mkdir("photos")
        said = both_commands(work, pictures, block, "s3://photos/many", settings)
        return said | {"requests": next(app.requests) - 1, "refused": app.refused}


def both_commands(work, pictures, block, output, changes):
    root = Path(__file__).resolve().parents[2]
    settings = ["faces.mode=aligned", "batch_size=8", *changes]
    preset = find_file("configs/restore", "portrait128", what="preset")
    said = {"pictures": pictures, "processes": 2}
    places = [f"input={work / 'in'}", f"output={work / 'one'}"]
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2",
         str(root / "scripts/restore.py"), str(preset), *places, *settings],
        check=True,
    )  # fmt: skip
    said["torchrun_s"] = round(time.perf_counter() - start, 1)
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "dr2pipe", "restore-many", str(work / "in"), output,
         "--preset", "portrait128", "--actors", "2", "--block", str(block), "--set", *settings],
        check=True,
    )  # fmt: skip
    said["ray_s"] = round(time.perf_counter() - start, 1)
    many, one = Storage(output), Storage(str(work / "one"))
    said["ray_pipeline_s"] = json.loads(many.read("summary.json"))["seconds"]
    files = [
        {name: storage.read(name) for name in storage.find() if name.startswith("restored/")}
        for storage in (one, many)
    ]
    assert len(files[0]) == pictures
    assert files[0] == files[1], "results differ"
    return said | {"files_equal": True} | check_records(output, pictures)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    studies = (tiny, skip, cpu, nodes, grow, poison, store, compare, compare_store)
    parser.add_argument("study", choices=[study.__name__ for study in studies] + ["drive"])
    parser.add_argument("work", type=Path)
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=0.0, help="of the networks, per picture")
    parser.add_argument("--block", type=int, default=16)
    parser.add_argument("--actors", type=int, default=2, help="of drive")
    parser.add_argument("--set", nargs="+", default=["dr2.num_evaluations=2"], help="of compare*")
    options = parser.parse_args()
    if options.study == "drive":
        return drive(options.work, options.seconds, options.block, options.actors)
    shutil.rmtree(options.work, ignore_errors=True)
    study = globals()[options.study]
    networks = options.set if study in (compare, compare_store) else options.seconds
    said = study(options.work, options.pictures, networks, options.block)
    print(json.dumps({"study": options.study, **said}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
