"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path


def write_bytes(path: str | Path, data: bytes, *, partial_folder: str | Path | None = None) -> None:
    """Write a file under a temporary name, flush it to the disk, and rename it.

    ``partial_folder`` (same file system) holds the temporary file, so that whatever a killed
    process left lies in one known place; by default it lies beside ``path``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(partial_folder or path.parent) / f".{uuid.uuid4().hex}.partial"
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_folder(path: str | Path, save: Callable[[Path], object]) -> None:
    """Let ``save`` fill a temporary folder, then put it in the place of ``path``."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        save(partial)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
