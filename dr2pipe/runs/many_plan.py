"""What a restoration of many pictures has to do: the pictures of its input, in blocks."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path

from dr2pipe.core import files, images
from dr2pipe.core.errors import ConfigError, Dr2pipeError, describe_error
from dr2pipe.core.extras import needs_extra
from dr2pipe.core.markers import MARKER, parse_marker
from dr2pipe.core.storage import Storage, StoredFile, read_url
from dr2pipe.runs.jobs import result_names
from dr2pipe.runs.many import Block, Item
from dr2pipe.runs.restore_config import RestoreConfig
from dr2pipe.runs.result_folders import is_result_folder
from dr2pipe.runs.results import is_complete
from dr2pipe.runs.shards import DONE, Row, shard_name
from dr2pipe.runs.steps import Steps

Listed = Callable[[str], StoredFile | None]

LISTS = (".parquet", ".csv")
_BLOCK_BYTES = 32 << 20  # of files; decoded pictures are some ten times as large


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
    listed_name: Callable[[str], str] = str,
    block_pictures: int,
    retries: int,
) -> tuple[list[Block], int, list[Row]]:
    """What is still to do.

    Args:
        items: all pictures of the input.
        steps: what is done with each.
        rows: the records of earlier runs by relative path.
        stored: a listing of the output.
        listed_name: gives the name by which the listing has a file.
        block_pictures: of a block at most.
        retries: how often a picture that failed is tried again.

    Returns:
        Blocks of the pictures to do, the number of those that are done, and the rows of those
        that failed too often. Two runs with the same input and settings make the same blocks.
    """
    blocks, done, given_up = [], 0, []

    @cache  # needed only where results are made again
    def owners() -> dict[str, str]:
        return {name: item.path for item in items for name in steps.names_of(item.job).values()}

    def listed(name: str) -> StoredFile | None:
        return stored.get(listed_name(name))

    for group in _groups(items, block_pictures):
        pending = []
        for item in group:
            row = rows.get(item.path)
            if row is None:
                pending.append(item)
                continue
            is_about = _is_about(row, item, steps)
            if is_about and _is_done(row, item, steps, listed):
                done += 1
            elif is_about and row.status != DONE and row.attempts > retries:
                given_up.append(row)
            else:
                # A picture whose results are gone did not fail.
                attempts = row.attempts if is_about and row.status != DONE else 0
                former = _former(item, row, owners(), listed)
                pending.append(dataclasses.replace(item, attempts=attempts, former=former))
        if pending:
            blocks.append(block_of(pending, steps, stored))
    return blocks, done, given_up


def block_of(items: list[Item], steps: Steps, stored: Mapping[str, StoredFile]) -> Block:
    """A block of pictures that are to be done, with a listing of the output."""
    known = ((item.path, item.version, item.attempts) for item in items)
    shard = shard_name(known, steps.settings_hash)
    # Other settings came between, or another version of the input, and then these again.
    return Block(items, shard, listed=stored[shard].version if shard in stored else None)


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


def _former(item: Item, row: Row, owners: Mapping[str, str], listed: Listed) -> tuple[str, ...]:
    """Files that are as a run made them of this picture, and belong to no other picture now.

    Args:
        item: the picture.
        row: its record.
        owners: the picture of each result by the path of its file, or of the folder of its faces.
        listed: what the output holds by a name.
    """
    return tuple(
        name
        for name, size in row.files.items()
        if (file := listed(name)) is not None
        and file.size == size
        and is_result_folder(name.partition("/")[0])
        and owners.get(name, item.path) == item.path
        and owners.get(name.rpartition("/")[0], item.path) == item.path
    )


def _is_done(row: Row, item: Item, steps: Steps, listed: Listed) -> bool:
    record, wanted = row.record, steps.names_of(item.job)
    if row.status != DONE or record.get("output") != wanted[steps.outputs[0]]:
        return False
    if steps.lacks is not None and steps.lacks(record):
        return False

    def is_whole(name: str, written: tuple[int, str]) -> bool:
        file = listed(name)
        return file is not None and file.size == written[0]

    return is_complete(record, wanted, is_whole)


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
    found = images.find_images(root, exclude=exclude)
    found.say_what_was_left_out()
    paths = {path.relative_to(root).as_posix(): path for path in found.paths}
    return [
        (name, source.fs.unstrip_protocol(str(paths[name])), source.file(name))
        for name in sorted(paths, key=lambda name: name.split("/"))
    ]


def _listed(url: str) -> list[tuple[str, str, StoredFile]]:
    """The same of a parquet or csv file with a column ``url``, and perhaps ``name``, ``version``."""
    try:
        data = read_url(url)
    except Exception as error:
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
    for number, line in enumerate(lines, start=1):
        try:
            one = _listed_picture(line)
        except (ValueError, Dr2pipeError) as error:
            raise ConfigError(f"the list {url}, picture {number}: {error}") from None
        if one[0] in found:
            raise ConfigError(f"the list {url} names {one[0]} twice; each picture has one result")
        found[one[0]] = one
    return list(found.values())


def _listed_picture(line: Mapping[str, object]) -> tuple[str, str, StoredFile]:
    """Raise ValueError or Dr2pipeError for values that make no sense."""
    url = line.get("url")
    if not isinstance(url, str) or not url.strip():
        raise ValueError("it has no url")
    path = str(line.get("name") or url.split("://")[-1].lstrip("/"))
    files.safe_join("output", path)  # a url such as ../a.png needs a name
    try:
        size = int(float(str(line.get("size") or 0)))
    except (ValueError, OverflowError):
        raise ValueError(f"its size is no number of bytes: {line['size']}") from None
    return path, url, StoredFile(size, str(line.get("version") or ""))
