"""What a folder run leaves behind: manifest, failures, and the state to resume from."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from dr2pipe.core import files
from dr2pipe.core.config import to_yaml

_PARTIAL = ".partial"


class RunRecords:
    """The records of one output folder, shared by all processes of a run.

    ``manifest.jsonl`` has a line per finished picture, ``failures.jsonl`` one per picture
    that failed in the latest run. Lines are appended by single writes, so processes may
    share the files and a killed one leaves at most its last line unfinished.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.partial_folder = self.folder / _PARTIAL
        self._lock: int | None = None
        self._prepared = False

    def prepare(self, run_description: dict[str, Any]) -> None:
        """Called by one process before any works: lock, clean up, write ``run.yaml``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = files.lock_folder(self.folder)
        self._prepared = True
        shutil.rmtree(self.partial_folder, ignore_errors=True)
        self.partial_folder.mkdir()
        self._write("run.yaml", to_yaml(run_description))
        # The last line about a picture counts; unfinished lines of a killed run go.
        lines = [json.dumps(record) + "\n" for record in self.finished().values()]
        self._write("manifest.jsonl", "".join(lines))
        self._write("failures.jsonl", "")

    def finished(self) -> dict[str, dict[str, Any]]:
        """The manifest by relative path."""
        try:
            text = (self.folder / "manifest.jsonl").read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        records = {}
        for line in text.splitlines():
            try:
                record = json.loads(line)
                records[record["path"]] = record
            except (json.JSONDecodeError, KeyError, TypeError):
                continue  # cut off when its process was killed; the picture is done again
        return records

    def add_finished(self, record: dict[str, Any]) -> None:
        self._append("manifest.jsonl", record)

    def add_failure(self, path: str, error: BaseException) -> None:
        record = {"path": path, "kind": type(error).__name__, "message": str(error)}
        self._append("failures.jsonl", record)

    def close(self) -> None:
        """Called when all processes have finished; does nothing where none was prepared."""
        if not self._prepared:
            return
        self._prepared = False
        shutil.rmtree(self.partial_folder, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _append(self, name: str, record: dict[str, Any]) -> None:
        line = (json.dumps(record) + "\n").encode()
        handle = os.open(self.folder / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            if os.write(handle, line) != len(line):
                raise OSError(f"{self.folder / name}: a line could not be written whole")
        finally:
            os.close(handle)

    def _write(self, name: str, text: str) -> None:
        files.write_bytes(self.folder / name, text.encode(), partial_folder=self.partial_folder)
