"""``restore-many`` on one machine as if on many: the real pipeline, with a sleep for the networks.

    python scripts/research/scale_simulation.py tiny WORK --pictures 200000
    python scripts/research/scale_simulation.py skip WORK --pictures 200000 --block 512
    python scripts/research/scale_simulation.py cpu WORK --pictures 2000 --block 512
    python scripts/research/scale_simulation.py nodes WORK --pictures 400
    python scripts/research/scale_simulation.py poison WORK --pictures 60
    python scripts/research/scale_simulation.py store WORK --pictures 200
    python scripts/research/scale_simulation.py compare WORK --pictures 2000

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
import signal
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
from dr2pipe.runs.many import (
    ManyConfig,
    list_pictures,
    plan,
    read_block,
    restore_block,
    write_block,
)
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
    with ray_here(4):
        config = config_for(work / "in", work / "out", actors=1, block_pictures=block)
        start = time.perf_counter()
        summary = restore_many(config, load=load)
        said["seconds"] = round(time.perf_counter() - start, 1)
        assert summary.restored == pictures, summary
        rate = json.loads((work / "out/summary.json").read_text())["pictures_per_s"]
        said["pictures_per_s"] = rate
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


def drive(work, seconds, block):
    """A driver of its own, on the cluster of RAY_ADDRESS."""
    config = config_for(work / "in", work / "out", actors=2, block_pictures=block)
    return restore_many(config, load=partial(simulated_steps, seconds=seconds)).exit_code


def nodes(work, pictures, seconds, block):
    from ray.cluster_utils import Cluster

    make_pictures(work / "in", pictures)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    node = {"num_cpus": 3, "object_store_memory": 200_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    driver = None
    try:
        second = cluster.add_node(**node)
        environment = {**os.environ, "RAY_ADDRESS": cluster.address}
        command = [sys.executable, __file__, "drive", str(work)]
        command += ["--seconds", str(seconds), "--block", str(block)]
        start = time.perf_counter()

        def begin():
            return subprocess.Popen(command, env=environment, start_new_session=True)

        def results():
            return sum(1 for _ in (work / "out/restored").rglob("*.png"))

        def wait_for(share):
            while results() < share * pictures:
                assert driver.poll() is None, "the driver ended too early"
                time.sleep(0.2)

        driver = begin()
        wait_for(0.2)
        at_node = results()
        cluster.remove_node(second, allow_graceful=False)
        wait_for(0.5)
        at_driver = results()
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        cluster.add_node(**node)
        time.sleep(40)  # the lease runs out
        driver = begin()
        assert driver.wait(timeout=900) == 0
        said = {
            "pictures": pictures,
            "node_killed_at": at_node,
            "driver_killed_at": at_driver,
            "seconds": round(time.perf_counter() - start, 1),
        }
    finally:
        if driver is not None and driver.poll() is None:
            driver.kill()
        cluster.shutdown()
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


def compare(work, pictures, seconds, block):
    """Both commands with real networks on the same pictures; equal files."""
    make_pictures(work / "in", pictures, side=64)
    root = Path(__file__).resolve().parents[2]
    settings = ["faces.mode=aligned", "dr2.num_evaluations=2", "batch_size=8"]
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
        [sys.executable, "-m", "dr2pipe", "restore-many", str(work / "in"), str(work / "many"),
         "--preset", "portrait128", "--actors", "2", "--block", str(block), "--set", *settings],
        check=True,
    )  # fmt: skip
    said["ray_s"] = round(time.perf_counter() - start, 1)
    said["ray_pipeline_s"] = json.loads((work / "many/summary.json").read_text())["seconds"]
    files = [
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.png")}
        for folder in (work / "one/restored", work / "many/restored")
    ]
    assert len(files[0]) == pictures
    assert files[0] == files[1], "results differ"
    return said | {"files_equal": True}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    studies = (tiny, skip, cpu, nodes, poison, store, compare)
    parser.add_argument("study", choices=[study.__name__ for study in studies] + ["drive"])
    parser.add_argument("work", type=Path)
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=0.0, help="of the networks, per picture")
    parser.add_argument("--block", type=int, default=16)
    options = parser.parse_args()
    if options.study == "drive":
        return drive(options.work, options.seconds, options.block)
    shutil.rmtree(options.work, ignore_errors=True)
    study = globals()[options.study]
    said = study(options.work, options.pictures, options.seconds, options.block)
    print(json.dumps({"study": options.study, **said}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
