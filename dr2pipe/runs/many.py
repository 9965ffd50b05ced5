"""A restoration of many pictures in blocks: what is to do, and the three steps of a block.

Nothing here knows the engine. :mod:`dr2pipe.runs.on_ray` sends blocks through these steps.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dr2pipe.core import images
from dr2pipe.core.errors import ConfigError, describe_error
from dr2pipe.core.extras import needs_extra
from dr2pipe.core.markers import MARKER, parse_marker
from dr2pipe.core.storage import Storage, StoredFile, read_url
from dr2pipe.faces import build_detector
from dr2pipe.restoration.photos import FacePlacer
from dr2pipe.runs.jobs import Job, LoadedPicture, result_names
from dr2pipe.runs.photos import photo_preparation
from dr2pipe.runs.restore_config import RestoreConfig
from dr2pipe.runs.results import is_complete
from dr2pipe.runs.shards import DONE, FAILED, Row, read_shard, shard_name, write_shard
from dr2pipe.runs.steps import FailedPicture, Processed, Steps, takes_nothing

LISTS = (".parquet", ".csv")
_BLOCK_BYTES = 32 << 20  # of files; decoded pictures are some ten times as large
_THREADS = 16  # of a task, for files that are read or written at once


@dataclass
class ManyConfig:
    """How a restoration is spread over a cluster.

    Attributes:
        restore: what is restored, and how; ``input`` and ``output`` are paths or URLs.
        actors: copies of the networks; None: one for each GPU, or for each ``cpus_per_actor``.
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
    """

    path: str
    url: str
    output_name: str
    version: str = ""
    size: int = 0
    attempts: int = 0

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
        again: records of this name are there already, and no longer hold.
        loaded: those that were read and decoded.
        processed: those that were restored.
        rows: those that are settled.
        busy_s: seconds that the networks took.
        error: of a task that failed as a whole, which ends the run.
    """

    items: list[Item]
    shard: str
    again: bool = False
    loaded: list[LoadedPicture] = field(default_factory=list)
    processed: list[Processed] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    busy_s: float = 0.0
    error: Exception | None = None


# -- what is to do ---------------------------------------------------------------------------


def list_pictures(config: RestoreConfig, output: Storage) -> list[Item]:
    """The pictures of the input: all below a folder, or those that a list names.

    Raises:
        ConfigError: there are none, a list names one twice, or the store cannot be reached.
    """
    if config.input.lower().endswith(LISTS):
        found = _listed(config.input)
    else:
        found = _below(Storage(config.input), output)
    if not found:
        raise ConfigError(f"no pictures in {config.input}")
    names = result_names([path for path, _, _ in found], config.format)
    return [
        Item(path, url, name, file.version, file.size)
        for (path, url, file), name in zip(found, names, strict=True)
    ]


def plan(
    items: list[Item],
    steps: Steps,
    rows: Mapping[str, Row],
    stored: Mapping[str, StoredFile],
    *,
    block_pictures: int,
    retries: int,
) -> tuple[list[Block], int, list[Row]]:
    """What is still to do.

    Args:
        items: all pictures of the input.
        steps: what is done with each.
        rows: the records of earlier runs by relative path.
        stored: a listing of the output.
        block_pictures: of a block at most.
        retries: how often a picture that failed is tried again.

    Returns:
        Blocks of the pictures to do, the number of those that are done, and the rows of those
        that failed too often. Two runs with the same input and settings make the same blocks.
    """
    blocks, done, given_up = [], 0, []
    for group in _groups(items, block_pictures):
        pending = []
        for item in group:
            row = rows.get(item.path)
            if row is None or not _is_about(row, item, steps):
                pending.append(item)
            elif _is_done(row, item, steps, stored):
                done += 1
            elif row.status != DONE and row.attempts > retries:
                given_up.append(row)
            else:
                pending.append(dataclasses.replace(item, attempts=row.attempts))
        if pending:
            blocks.append(block_of(pending, steps, stored))
    return blocks, done, given_up


def block_of(items: list[Item], steps: Steps, stored: Mapping[str, StoredFile]) -> Block:
    """A block of pictures that are to be done, with a listing of the output."""
    known = ((item.path, item.version, item.attempts) for item in items)
    shard = shard_name(known, steps.settings_hash)
    # Other settings came between, or another version of the input, and then these again.
    return Block(items, shard, again=shard in stored)


def _groups(items: Iterable[Item], most: int) -> Iterable[list[Item]]:
    group: list[Item] = []
    size = 0
    for item in items:
        if group and (len(group) == most or size + item.size > _BLOCK_BYTES):
            yield group
            group, size = [], 0
        group.append(item)
        size += item.size
    if group:
        yield group


def _is_about(row: Row, item: Item, steps: Steps) -> bool:
    same_version = "" in (row.version, item.version) or row.version == item.version
    return same_version and row.settings == steps.settings_hash


def _is_done(row: Row, item: Item, steps: Steps, stored: Mapping[str, StoredFile]) -> bool:
    record, wanted = row.record, steps.names_of(item.job)
    if row.status != DONE or record.get("output") != wanted[steps.outputs[0]]:
        return False
    if steps.lacks is not None and steps.lacks(record):
        return False
    return is_complete(
        record, wanted, lambda name, file: name in stored and stored[name].size == file[0]
    )


def _below(source: Storage, output: Storage) -> list[tuple[str, str, StoredFile]]:
    """(relative path, URL, file) of the pictures below a folder, without results of runs."""
    if source.is_local and Path(source.root).is_dir():
        return _below_on_disk(source, output)
    listing = source.find()
    if not listing:
        raise ConfigError(f"no files in {source.url}; is the name right?")
    excluded = [f"{output.root}/"] if output.root != source.root else []
    for name in listing:
        if name == MARKER or name.endswith(f"/{MARKER}"):
            folders = (parse_marker(source.read(name)) or {}).get("result_folders") or []
            parent = f"{source.root}/{name}".removesuffix(MARKER)
            excluded += [f"{parent}{folder}/" for folder in folders]
    paths = sorted(filter(images.is_picture_path, listing), key=lambda path: path.split("/"))
    return [
        (path, source.fs.unstrip_protocol(f"{source.root}/{path}"), listing[path])
        for path in paths
        if not f"{source.root}/{path}".startswith(tuple(excluded))
        and not path.rpartition("/")[2].startswith("._")  # macOS's companions of files
    ]


def _below_on_disk(source: Storage, output: Storage) -> list[tuple[str, str, StoredFile]]:
    """The same as ``restore`` finds, links too."""
    root = Path(source.root)
    exclude = (Path(output.root),) if output.is_local and output.root != source.root else ()
    paths = {
        path.relative_to(root).as_posix(): path
        for path in images.find_images(root, exclude=exclude).paths
    }
    return [
        (name, source.fs.unstrip_protocol(str(paths[name])), source.file(name))
        for name in sorted(paths, key=lambda name: name.split("/"))
    ]


def _listed(url: str) -> list[tuple[str, str, StoredFile]]:
    """The same of a parquet or csv file with a column ``url``, and perhaps ``name``, ``version``."""
    try:
        data = read_url(url)
    except OSError as error:
        raise ConfigError(f"the list {url} cannot be read: {describe_error(error)}") from None
    if url.lower().endswith(".csv"):
        lines = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig", "replace"))))
    else:
        with needs_extra("ray"):
            import pyarrow as pa
            import pyarrow.parquet as pq
        try:
            lines = pq.read_table(io.BytesIO(data)).to_pylist()
        except pa.ArrowInvalid as error:
            raise ConfigError(f"{url} is no parquet file: {error}") from None
    if lines and "url" not in lines[0]:
        raise ConfigError(f"the list {url} has no column 'url'")
    found: dict[str, tuple[str, str, StoredFile]] = {}
    for line in lines:
        path = str(line.get("name") or line["url"].split("://")[-1].lstrip("/"))
        if path in found:
            raise ConfigError(f"the list {url} names {path} twice; each picture has one result")
        version = str(line.get("version") or "")
        found[path] = (path, line["url"], StoredFile(int(line.get("size") or 0), version))
    return list(found.values())


# -- the three steps of a block --------------------------------------------------------------


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
    )
    return dataclasses.replace(described, prepare=photo_preparation(config, placer))


def described_steps(steps: Steps) -> Steps:
    """The steps without the networks, which other processes can be sent."""
    return dataclasses.replace(steps, process=_no_networks, begin=None, prepare=None)


def _no_networks(*_: Any, **__: Any) -> Any:
    raise AssertionError("these steps have no networks")


def read_block(block: Block, steps: Steps, output: Storage) -> Block:
    """Read and decode the pictures; those that another run has just done are not read."""
    if not block.again:
        try:
            return dataclasses.replace(block, rows=read_shard(output, block.shard))
        except FileNotFoundError:
            pass
    with ThreadPoolExecutor(_THREADS) as readers:
        contents = list(readers.map(_tried(lambda item: read_url(item.url)), block.items))
    loaded, rows = [], []
    for item, data in zip(block.items, contents, strict=True):
        try:
            if isinstance(data, Exception):
                raise data
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
    """
    by_path = {item.path: item for item in block.items}

    def write(done: Processed) -> Row:
        item = by_path[done.loaded.job.relative]
        try:
            contents = steps.encode(done, lambda: read_url(item.url))
            for name, data in contents.items():
                output.write(name, data)
        except Exception as error:  # such as a name too long: recorded; the next one goes on
            if takes_nothing(error):
                raise
            return failed_row(item, error, steps)
        record = steps.record_of(done, contents)
        return Row(item.path, DONE, item.version, steps.settings_hash, item.attempts + 1, record)

    with ThreadPoolExecutor(_THREADS) as writers:
        rows = [*block.rows, *writers.map(write, block.processed)]
    if any(row.written == 0 for row in rows):  # else they come from the shard
        write_shard(output, block.shard, rows)
    return dataclasses.replace(block, processed=[], rows=rows)


def failed_row(item: Item, error: BaseException, steps: Steps, status: str = FAILED) -> Row:
    """What is recorded of a picture that could not be restored."""
    record = {"path": item.path, "kind": type(error).__name__, "message": describe_error(error)}
    return Row(item.path, status, item.version, steps.settings_hash, item.attempts + 1, record)


def _tried(read: Callable[[Item], bytes]) -> Callable[[Item], bytes | Exception]:
    def call(item: Item) -> bytes | Exception:
        try:
            return read(item)
        except Exception as error:  # recorded with its picture
            return error

    return call
