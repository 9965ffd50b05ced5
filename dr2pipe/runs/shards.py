"""The records of a run on many machines: parquet files, one for each task."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from dr2pipe.core.extras import needs_extra
from dr2pipe.core.records import finite
from dr2pipe.core.storage import Storage

RECORDS = "records"
DONE, FAILED, QUARANTINED = "done", "failed", "quarantined"
BEGUN = "begun"  # results of other settings are about to be replaced
_REASON_CHARS = 200
_READERS = 32
_COLUMNS = ("path", "status", "version", "settings", "attempts", "written", "record")


@dataclass
class Row:
    """What became of a picture.

    Attributes:
        path: its relative path.
        status: done, failed, quarantined or begun.
        version: of its file, as the listing said; empty: unknown.
        settings: hash of what decides the result.
        attempts: how often it was tried with this version and these settings.
        written: seconds since 1970; the latest row about a picture counts.
        record: as a line of ``manifest.jsonl`` or ``failures.jsonl``.
        former: bytes of the files that earlier rows about the picture name, by their path.
    """

    path: str
    status: str
    version: str
    settings: str
    attempts: int
    record: dict[str, Any]
    written: float = 0.0
    former: dict[str, int] = field(default_factory=dict)

    @property
    def files(self) -> dict[str, int]:
        """Bytes of all files that runs made of the picture, by their path."""
        own = self.record.get("files") or {}
        return {**self.former, **{name: size for name, (size, _) in own.items()}}


def shard_name(pictures: Iterable[tuple[str, str, int]], settings: str) -> str:
    """The name of the shard about pictures, by what it is about: a task that runs twice writes once.

    Args:
        pictures: path, version and number of the attempt of each.
        settings: hash of what decides the results.
    """
    said = json.dumps([settings, sorted(pictures)])
    return f"{RECORDS}/{hashlib.sha256(said.encode()).hexdigest()[:32]}.parquet"


def write_shard(storage: Storage, name: str, rows: list[Row]) -> None:
    """Write the rows as one file, whole or not at all."""
    with needs_extra("ray"):
        import pyarrow as pa
        import pyarrow.parquet as pq
    written = time.time()
    columns = {name: [getattr(row, name) for row in rows] for name in _COLUMNS}
    columns["written"] = [written] * len(rows)
    # Names of files may be no UTF-8; the record, which is JSON, has them as they are.
    columns["path"] = [row.path.encode("utf-8", "replace").decode() for row in rows]
    columns["record"] = [json.dumps(finite(row.record), allow_nan=False) for row in rows]
    data = io.BytesIO()
    pq.write_table(pa.table(columns), data, compression="zstd")
    storage.write(name, data.getvalue())


def read_shard(storage: Storage, name: str) -> list[Row]:
    """The rows of a shard.

    Raises:
        FileNotFoundError: there is none.
    """
    with needs_extra("ray"):
        import pyarrow.parquet as pq
    content = pq.read_table(io.BytesIO(storage.read(name)))
    rows = [Row(**{**row, "record": json.loads(row["record"])}) for row in content.to_pylist()]
    for row in rows:
        row.path = row.record.get("path", row.path)
    return rows


def read_rows(storage: Storage, names: Iterable[str]) -> dict[str, Row]:
    """{relative path: latest row} of all shards among the names of a listing."""
    shards = [
        name for name in names if name.startswith(f"{RECORDS}/") and name.endswith(".parquet")
    ]
    latest: dict[str, Row] = {}
    several: dict[str, list[Row]] = {}
    with ThreadPoolExecutor(_READERS) as readers:
        for rows in readers.map(lambda name: read_shard(storage, name), shards):
            for row in rows:
                row.record = _kept(row)
                known = latest.setdefault(row.path, row)
                if known is not row:
                    several.setdefault(row.path, [known]).append(row)
    for path, found in several.items():
        *former, latest[path] = sorted(found, key=lambda one: one.written)
        for row in former:
            latest[path].former |= row.files
    return latest


def _kept(row: Row) -> dict[str, Any]:
    """What decides whether a picture is done; the rest would fill the memory of a long list."""
    record = row.record
    if row.status != DONE:
        reason = {name: str(record[name]) for name in ("kind", "message") if name in record}
        return {name: text[:_REASON_CHARS] for name, text in reason.items()}
    kept = {name: record[name] for name in ("output", "files", "saved") if name in record}
    return kept | ({"faces": [{}]} if record.get("faces") else {})
