"""The file by which a folder says that a command of this package filled it, and with what."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from dr2pipe.core import files
from dr2pipe.core.errors import UnreadableFileError

MARKER = "run.yaml"
FORMAT = 1
_KEY, _RESULTS, _RESULT_FILES = "dr2pipe_run", "result_folders", "result_files"
_MAX_BYTES = 1 << 20


def marked(description: dict[str, Any], result_folders: Iterable[str]) -> dict[str, Any]:
    """The content of a marker: its format, the folders that hold results, then ``description``."""
    return {_KEY: FORMAT, _RESULTS: sorted(result_folders), **description}


def read_marker(folder: str | Path) -> dict[str, Any] | None:
    """The marker of a folder; None where there is none, or a file of another program."""
    try:
        text = files.read_regular(Path(folder) / MARKER, max_bytes=_MAX_BYTES)
    except UnreadableFileError:
        return None
    return parse_marker(text)


def parse_marker(text: bytes) -> dict[str, Any] | None:
    """The content of a marker's file; None for a file of another program."""
    if not text.startswith(_KEY.encode()):
        return None
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) and content.get(_KEY) == FORMAT else None


def result_files(folder: str | Path) -> frozenset[str]:
    """Names of the files beside the marker of ``folder`` that a command wrote."""
    return _names(folder, _RESULT_FILES)


def result_folders(folder: str | Path) -> frozenset[str]:
    """Names of the folders below ``folder`` that a command filled with results."""
    return _names(folder, _RESULTS)


def _names(folder: str | Path, key: str) -> frozenset[str]:
    names = (read_marker(folder) or {}).get(key)
    if not isinstance(names, list):
        return frozenset()
    return frozenset(name for name in names if isinstance(name, str))
