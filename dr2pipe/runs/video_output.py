"""Where ``dr2pipe video`` leaves its result, its record, and what it has done so far."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from dr2pipe.core import files
from dr2pipe.core.errors import ConfigError, UnreadableFileError
from dr2pipe.core.records import finite

_KEY, _FORMAT = "dr2pipe_video", 1
_MAX_RECORD_BYTES = 1 << 28


class VideoOutput:
    """The files of one result.

    Args:
        path: of the video.

    Attributes:
        record: a JSON file beside it.
        work: hidden folder of a run that is not finished.
        joined: the video, until its record is written too.
    """

    def __init__(self, path: Path):
        self.path = path
        self.record = path.with_name(f"{path.name}.json")
        self.work = path.with_name(f".{path.name}.work")
        self.joined = self.work / f"joined{path.suffix}"
        self._new_record = self.work / "record.json"

    def finished(self, key: str) -> dict[str, Any] | None:
        """The record if the video is there, and was made with the settings of a key."""
        record = self._read_record()
        if record is None or record.get("key") != key or not self.path.is_file():
            return None
        return record if record.get("bytes") == self.path.stat().st_size else None

    def check(self) -> None:
        """Refuse to write over what no run of this command wrote, or somebody changed since."""
        record = self._read_record()
        for path in (self.path, self.record):
            if os.path.lexists(path):
                files.check_regular(path)
                if record is None:
                    raise ConfigError(
                        f"{path} is there, and no run of this command wrote it; choose another "
                        "output, or delete it"
                    )
        if self.path.is_file() and record is not None:
            is_same = record.get("bytes") == self.path.stat().st_size
            if not is_same or record.get("sha256") != files.sha256(self.path):
                raise ConfigError(
                    f"{self.path} was changed since this command wrote it; choose another "
                    "output, or delete it"
                )

    def keep_work_of(self, key: str) -> None:
        """Delete what a run with other settings left."""
        mark = self.work / "key"
        if mark.is_file() and mark.read_bytes() == key.encode():
            return
        for path in self.work.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != files.LOCK_NAME:
                path.unlink()
        files.write_bytes(mark, key.encode())

    def finish(self, key: str, content: dict[str, Any]) -> None:
        """Give the joined video and its record their names."""
        about = {"bytes": self.joined.stat().st_size, "sha256": files.sha256(self.joined)}
        record = {_KEY: _FORMAT, "key": key, **about, **content}
        files.write_bytes(self._new_record, json.dumps(finite(record), indent=1).encode())
        self.place()

    def place(self) -> None:
        """Give both their names, if both are whole; a run may have been killed before it could."""
        if not self._new_record.is_file():
            return
        if self.joined.is_file():
            self.check()
            os.replace(self.joined, self.path)
        os.replace(self._new_record, self.record)
        files.sync_folder(self.path.parent)

    def _read_record(self) -> dict[str, Any] | None:
        try:
            content = json.loads(files.read_regular(self.record, max_bytes=_MAX_RECORD_BYTES))
        except (UnreadableFileError, ValueError, RecursionError):
            return None
        is_own = isinstance(content, dict) and content.get(_KEY) == _FORMAT
        return content if is_own else None
