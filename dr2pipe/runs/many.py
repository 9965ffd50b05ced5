"""A restoration of many pictures in blocks: the three steps of a block.

Nothing here knows the engine. :mod:`dr2pipe.runs.on_ray` sends blocks through these steps.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dr2pipe.core import images
from dr2pipe.core.errors import StorageError, describe_error
from dr2pipe.core.storage import Storage, is_final, read_url
from dr2pipe.faces import build_detector
from dr2pipe.restoration.placing import FacePlacer
from dr2pipe.runs.jobs import Job, LoadedPicture
from dr2pipe.runs.photos import photo_preparation
from dr2pipe.runs.restore_config import RestoreConfig
from dr2pipe.runs.shards import BEGUN, DONE, FAILED, Row, read_shard, write_shard
from dr2pipe.runs.steps import FailedPicture, Processed, Steps, takes_nothing

_THREADS = 16  # of a task, for files that are read or written at once


@dataclass
class ManyConfig:
    """How a restoration is spread over a cluster.

    Attributes:
        restore: what is restored, and how; ``input`` and ``output`` are paths or URLs.
        actors: copies of the networks, at most; None: one for each GPU that the cluster has now, or
            for each ``cpus_per_actor``.
        gpus_per_actor: may be a part of one; None: 1 where the cluster has GPUs, else 0.
        cpus_per_actor: cores of each actor.
        block_pictures: that go through the steps together, at most.
        retries: how often a picture that failed is tried again, by later runs.
        join: help another run that is writing into the same output.
        price: of one actor for an hour, in any currency.
        beat_s: seconds between the signs of life of the run.
    """

    restore: RestoreConfig
    actors: int | None = None
    gpus_per_actor: float | None = None
    cpus_per_actor: int = 1
    block_pictures: int = 16
    retries: int = 2
    join: bool = False
    price: float | None = None
    beat_s: float = 10.0


@dataclass(frozen=True)
class Item:
    """A picture to restore.

    Attributes:
        path: relative path, on which the seed and the result's name depend.
        url: where it is read.
        output_name: path of its result below a result folder.
        version: as the listing says; empty: unknown.
        size: of its file in bytes; 0: unknown.
        attempts: how often this version was tried with these settings.
        former: files that earlier runs made of it; what is not made again is removed.
    """

    path: str
    url: str
    output_name: str
    version: str = ""
    size: int = 0
    attempts: int = 0
    former: tuple[str, ...] = ()

    @property
    def job(self) -> Job:
        """As the steps know a picture."""
        return Job(Path(self.path), self.path, self.output_name)


@dataclass
class Block:
    """Pictures on their way through one task after another.

    Attributes:
        items: the pictures.
        shard: the name of their records.
        listed: version of records of this name that are there already and no longer hold.
        loaded: those that were read and decoded.
        processed: those that were restored.
        rows: those that are settled.
        is_theirs: another run has settled them.
        actor: the one that restored it.
        busy_s: seconds that the networks took.
        error: of a task that failed as a whole, which ends the run.
    """

    items: list[Item]
    shard: str
    listed: str | None = None
    loaded: list[LoadedPicture] = field(default_factory=list)
    processed: list[Processed] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    is_theirs: bool = False
    actor: str = ""
    busy_s: float = 0.0
    error: Exception | None = None


def reading_steps(config: RestoreConfig, described: Steps) -> Steps:
    """Steps that can load pictures without the networks.

    Args:
        config: the settings.
        described: as :func:`described_steps` returns them.
    """
    if described.face_sizes is None:
        return described
    input_size, output_size = described.face_sizes
    placer = FacePlacer(
        build_detector(config.faces),
        config.faces,
        input_size=input_size,
        output_size=output_size,
        scale=config.scale,
        keep_tint=config.colour == "keep",
    )
    return dataclasses.replace(described, prepare=photo_preparation(config, placer))


def described_steps(steps: Steps) -> Steps:
    """The steps without the networks, which other processes can be sent."""
    return dataclasses.replace(steps, process=_no_networks, begin=None, prepare=None)


def _no_networks(*_: Any, **__: Any) -> Any:
    raise AssertionError("these steps have no networks")


def read_block(block: Block, steps: Steps, output: Storage) -> Block:
    """Read and decode the pictures; those that another run has just done are not read."""
    try:
        if block.listed is None or output.file(block.shard).version != block.listed:
            return dataclasses.replace(block, rows=read_shard(output, block.shard), is_theirs=True)
    except FileNotFoundError:
        pass
    except Exception as error:
        raise _store_error(block.shard, error) from error
    with ThreadPoolExecutor(_THREADS) as readers:
        contents = list(readers.map(_tried(lambda item: read_url(item.url)), block.items))
    loaded, rows = [], []
    for item, data in zip(block.items, contents, strict=True):
        if isinstance(data, Exception):
            # A store or credentials in trouble say nothing of the picture.
            is_gone = isinstance(data, FileNotFoundError)
            rows.append(failed_row(item, data, steps, is_attempt=is_gone))
            continue
        try:
            loaded.append(steps.load(item.job, data, images.hash_bytes(data)))
        except Exception as error:  # recorded; the next picture goes on
            rows.append(failed_row(item, error, steps))
    return dataclasses.replace(block, loaded=loaded, rows=rows)


def restore_block(block: Block, steps: Steps) -> Block:
    """Restore the pictures in batches."""
    by_path = {item.path: item for item in block.items}
    processed, rows = [], list(block.rows)
    start = time.perf_counter()
    batches = ((batch, None) for batch in steps.in_batches(block.loaded))
    for done in steps.process_batches(batches):
        if isinstance(done, FailedPicture):
            rows.append(failed_row(by_path[done.job.relative], done.error, steps))
        else:
            # Its file and its faces are not needed any more.
            rest = dataclasses.replace(done.loaded, ready=torch.empty(0), paired={})
            processed.append(dataclasses.replace(done, loaded=rest))
    busy_s = time.perf_counter() - start if block.loaded else 0.0
    return dataclasses.replace(block, loaded=[], processed=processed, rows=rows, busy_s=busy_s)


def write_block(block: Block, steps: Steps, output: Storage) -> Block:
    """Encode and write the results, then the records of the block as one shard.

    Raises:
        OSError: the output takes nothing any more.
        StorageError: it did not take the records, in several tries.
    """
    if block.is_theirs:
        return block
    by_path = {item.path: item for item in block.items}

    def write(done: Processed) -> Row:
        item = by_path[done.loaded.job.relative]
        try:
            contents = steps.encode(done, lambda: read_url(item.url))
        except Exception as error:
            return failed_row(item, error, steps)
        try:
            for name, data in contents.items():
                output.write(name, data)
            # Results of former settings, such as coarse/, would be taken for results of these.
            for name in set(item.former) - contents.keys():
                output.remove(name)
        except Exception as error:  # such as a name too long: recorded; the next one goes on
            if takes_nothing(error):
                raise
            return failed_row(item, error, steps, is_attempt=is_final(error))
        record = steps.record_of(done, contents)
        return Row(item.path, DONE, item.version, steps.settings_hash, item.attempts + 1, record)

    replaced = [by_path[done.loaded.job.relative] for done in block.processed]
    replaced = [item for item in replaced if item.former]
    if replaced:
        # A kill from here on must not leave new files beside records of the old ones.
        begun = [
            Row(one.path, BEGUN, one.version, steps.settings_hash, one.attempts, {"path": one.path})
            for one in replaced
        ]
        _write_records(output, begun_name(block.shard), begun)
    with ThreadPoolExecutor(_THREADS) as writers:
        rows = [*block.rows, *writers.map(write, block.processed)]
    _write_records(output, block.shard, rows)
    return dataclasses.replace(block, processed=[], rows=rows)


def begun_name(shard: str) -> str:
    """The name of the records that a block has begun to replace results of other settings."""
    return shard.replace(".parquet", f"-{BEGUN}.parquet")


def failed_row(
    item: Item,
    error: BaseException,
    steps: Steps,
    status: str = FAILED,
    *,
    is_attempt: bool = True,
) -> Row:
    """What is recorded of a picture that could not be restored.

    Args:
        item: the picture.
        error: why.
        steps: what was to be done with it.
        status: failed or quarantined.
        is_attempt: counts among those after which it is given up.
    """
    record = {"path": item.path, "kind": type(error).__name__, "message": describe_error(error)}
    attempts = item.attempts + is_attempt
    return Row(item.path, status, item.version, steps.settings_hash, attempts, record)


def _write_records(output: Storage, name: str, rows: list[Row]) -> None:
    try:
        write_shard(output, name, rows)
    except Exception as error:
        if takes_nothing(error):
            raise
        raise _store_error(name, error) from error


def _store_error(name: str, error: Exception) -> StorageError:
    return StorageError(f"{name}: {describe_error(error)}")


def _tried(read: Callable[[Item], bytes]) -> Callable[[Item], bytes | Exception]:
    def call(item: Item) -> bytes | Exception:
        try:
            return read(item)
        except Exception as error:  # recorded with its picture
            return error

    return call
