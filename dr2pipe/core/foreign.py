"""Small files that other people or programs wrote: JSON, YAML, csv and npz, read with limits.

Every reader opens regular files alone, bounds what it reads and what that may grow to, and runs
no code of the file.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import yaml

from dr2pipe.core import files
from dr2pipe.core.errors import UnreadableFileError

_MAX_TEXT_BYTES = 1 << 24
_MAX_YAML_BYTES = 1 << 20
_MAX_NODES, _MAX_DEPTH = 100_000, 50  # of a YAML file, with what its aliases stand for
_MAX_NPZ_BYTES = 1 << 36
# An archive of pictures that grows by more than this was made to fill the memory.
_MOST_GROWTH, _FREE_BYTES = 20, 1 << 26


def read_text(path: str | Path, *, max_bytes: int = _MAX_TEXT_BYTES) -> str:
    """The text of a file; a byte order mark is left out. Bytes that are no UTF-8 are kept.

    Raises:
        UnreadableFileError: see :func:`dr2pipe.core.files.read_regular`.
    """
    content = files.read_regular(path, max_bytes=max_bytes)
    return content.decode("utf-8", "surrogateescape").removeprefix("\ufeff")


def read_json(path: str | Path, *, max_bytes: int = _MAX_TEXT_BYTES) -> Any:
    """The content of a JSON file.

    Raises:
        UnreadableFileError: see :func:`read_text`; or a file that is no JSON. NaN, Infinity and
            other bytes than UTF-8 are none.
    """
    try:
        text = read_text(path, max_bytes=max_bytes)
        text.encode()
        return json.loads(text, parse_constant=_refuse_constant)
    except UnreadableFileError:
        raise
    except RecursionError:
        raise UnreadableFileError(path, "its JSON is nested too deeply") from None
    except ValueError as error:
        raise UnreadableFileError(path, f"is no JSON: {error}") from None


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")


def read_object(path: str | Path, *, max_bytes: int = _MAX_TEXT_BYTES) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        UnreadableFileError: see :func:`read_json`; or another value.
    """
    content = read_json(path, max_bytes=max_bytes)
    if not isinstance(content, dict):
        raise UnreadableFileError(path, f"holds a {type(content).__name__}, not a JSON object")
    return content


def read_yaml_text(path: str | Path) -> str:
    """The text of a YAML file that can be loaded without danger.

    Raises:
        UnreadableFileError: see :func:`read_text`; or a file that is no YAML, is nested too
            deeply, grows by its aliases, or has an interpolation (``${...}``), which could put
            secrets of this machine into results.
    """
    text = read_text(path, max_bytes=_MAX_YAML_BYTES)
    try:
        text.encode()
        _check_events(path, text)
    except UnicodeEncodeError:
        raise UnreadableFileError(path, "cannot be read as YAML: it is no UTF-8") from None
    except yaml.YAMLError as error:
        said = " ".join(str(error).split())
        raise UnreadableFileError(path, f"cannot be read as YAML: {said}") from None
    return text


def _check_events(path: str | Path, text: str) -> None:
    """Count nodes with what aliases stand for, before anything is built from them."""
    total, open_nodes = 0, list[tuple[str | None, int]]()
    sizes: dict[str, int] = {}
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        grown = 1
        if isinstance(event, yaml.AliasEvent):
            grown = sizes.get(
                event.anchor or "", _MAX_NODES
            )  # an alias of what contains it has no end
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, total))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor is not None:
                sizes[anchor] = total - before
        elif isinstance(event, yaml.ScalarEvent):
            if event.anchor is not None:
                sizes[event.anchor] = 1
            if "${" in event.value:
                line = "" if event.start_mark is None else f"line {event.start_mark.line + 1}: "
                raise UnreadableFileError(
                    path, f"{line}'${{' is refused: files cannot ask for other values"
                )
        total += grown
        if len(open_nodes) > _MAX_DEPTH or total >= _MAX_NODES:
            raise UnreadableFileError(path, "its YAML is nested too deeply or grows too large")


def read_csv(path: str | Path, columns: Sequence[str] = ()) -> list[dict[str, str]]:
    """The lines of a table, by the names in its first line.

    A byte order mark, as spreadsheets write it, is left out. Missing cells are empty, and cells
    without a column are left out.

    Args:
        path: comma-separated values.
        columns: that it must have.

    Raises:
        UnreadableFileError: see :func:`read_text`; no table, or one without these columns.
    """
    return [line for _, line in read_numbered_csv(path, columns)]


def read_numbered_csv(
    path: str | Path, columns: Sequence[str] = ()
) -> list[tuple[int, dict[str, str]]]:
    """As :func:`read_csv`, each line with its number in the file, from 1, for messages.

    Raises:
        UnreadableFileError: see :func:`read_csv`.
    """
    try:
        reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
        names = [name.strip() for name in next(reader, [])]
        lines = [(reader.line_num, line) for line in reader if line]
    except csv.Error as error:
        raise UnreadableFileError(path, f"is no table: {error}") from None
    missing = [column for column in columns if column not in names]
    if missing:
        known = ", ".join(names[:20]) or "no line"
        raise UnreadableFileError(path, f"has no column '{missing[0]}'; it has {known}")
    return [
        (number, {name: line[i] if i < len(line) else "" for i, name in enumerate(names)})
        for number, line in lines
    ]


def to_csv(lines: Iterable[Iterable[Any]]) -> bytes:
    """The bytes of a table; names that are no UTF-8 keep their bytes."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue().encode("utf-8", "surrogateescape")


def read_npz(path: str | Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an ``.npz``, by name.

    Raises:
        UnreadableFileError: see :func:`dr2pipe.core.files.check_regular`; a file of another
            kind, a damaged one, one with objects of Python, or arrays that are larger than what
            the file holds.
    """
    size = files.check_regular(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            total = sum(member.file_size for member in members)
            if total > min(_MOST_GROWTH * size + _FREE_BYTES, _MAX_NPZ_BYTES):
                raise ValueError(f"its {size} bytes would grow to {total}")
            names = [member.filename.removesuffix(".npy") for member in members]
            if len(set(names)) < len(names):
                raise ValueError("it holds two arrays of one name")
        with np.load(path, allow_pickle=False) as loaded:
            arrays = dict(loaded)
        for name, array in arrays.items():
            if not isinstance(array, np.ndarray) or array.dtype.fields is not None:
                raise ValueError(f"{name} holds no numbers or texts")
        return arrays
    # The reader fails with many kinds of errors on files that are not its own.
    except Exception as error:
        said = str(error) or type(error).__name__
        raise UnreadableFileError(path, f"is no readable .npz file: {said}") from None
