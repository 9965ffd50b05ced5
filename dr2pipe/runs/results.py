"""The results of a folder run: which are whole and valid, and how new ones are written."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dr2pipe.core import files, images
from dr2pipe.core.errors import PictureError
from dr2pipe.core.markers import read_marker
from dr2pipe.core.records import RunRecords
from dr2pipe.runs.jobs import Job
from dr2pipe.runs.result_folders import FACES
from dr2pipe.runs.steps import Steps

Record = dict[str, Any]


class Results:
    """The result folders of a run, and what its manifest says of them.

    A record of the manifest names every file of its picture with its size in bytes and its
    sha256. A picture is done when all of them are there with their sizes.

    Args:
        records: the records of the output folder.
        steps: what the run does with a picture.
    """

    def __init__(self, records: RunRecords, steps: Steps):
        self.records, self.steps = records, steps
        self.settings_hash = steps.settings_hash
        self.finished: dict[str, Record] = {}
        self._owners: dict[str, set[str]] = {}
        self._inputs, self._input = [""], 0  # of all runs with this output; the place of this one

    def read(self, source: str | Path) -> None:
        """Read the manifest; to be called once the records are prepared with this source."""
        inputs = (read_marker(self.records.folder) or {}).get("inputs") or []
        if os.path.realpath(source) in inputs:
            self._inputs, self._input = inputs, inputs.index(os.path.realpath(source))
        self.finished = self.records.finished()
        for path, record in self.finished.items():
            self._owners.setdefault(str(record.get("output", "")), set()).add(path)

    def name_of(self, job: Job) -> str:
        """The job's output name; its long one if an earlier run gave the short one away."""
        result = self._main(job.output_name)
        is_own = self.finished.get(job.relative, {}).get("output") == result
        if is_own or self._owners.get(result, set()) <= {job.relative}:
            return job.output_name
        return job.long_name

    def is_done(self, job: Job, sha256: str, paired_sha256: dict[str, str]) -> bool:
        """Whether the picture with this hash was done with these settings, and is still whole.

        Raises:
            PictureError: the output holds the result of another input's picture of this name.
        """
        record = self.finished.get(job.relative)
        self._check_input(job, record or {}, sha256)
        if (
            record is None
            or record.get("sha256") != sha256
            or record.get("paired_sha256", {}) != paired_sha256
            or record.get("settings") != self.settings_hash
            or record.get("output") != self._main(job.output_name)
            or (self.steps.lacks is not None and self.steps.lacks(record))
        ):
            return False
        return is_complete(record, self.steps.names_of(job), self._is_whole)

    def write(self, job: Job, contents: Mapping[str, bytes], record: Record) -> None:
        """Write a picture's results, then its line of the manifest.

        Several threads may do so at once, each with another picture. The line comes when all files
        are on the disk under their names, so a line that can be read is true.

        Args:
            job: the picture.
            contents: of each file by its path below the output.
            record: what the manifest says of the picture.

        Raises:
            FileExistsError: a file that no run wrote is in the place of a result.
            OSError: a result could not be written.
        """
        known = _files_of(self.finished.get(job.relative, {}))
        for relative, data in contents.items():
            self._check_foreign(self.records.folder / relative, data, is_known=relative in known)
        for relative, data in contents.items():
            path = self.records.folder / relative
            files.write_bytes(path, data, partial_folder=self.records.partial_folder)
        self.records.add_finished(record | ({"input": self._input} if self._input else {}))
        # Results of former settings, such as coarse/, would be taken for results of these.
        for relative in known.keys() - contents.keys():
            self._remove_stale(relative, known[relative][1])

    def _check_input(self, job: Job, record: Record, sha256: str) -> None:
        place = record.get("input", 0)
        if not record or place == self._input or record.get("sha256") == sha256:
            return
        other = self._inputs[place] if 0 <= place < len(self._inputs) else ""
        name = job.relative.rpartition("#")[0] if job.page else job.relative
        path = os.path.join(other, name)
        if other and os.path.lexists(path):  # else it was moved here
            raise PictureError(
                f"the output holds what was made of {path}, another picture of this name; "
                "choose another output"
            )

    def _main(self, output_name: str) -> str:
        return f"{self.steps.outputs[0]}/{output_name}"

    def _is_whole(self, relative: str, written: tuple[int, str]) -> bool:
        path = self.records.folder / relative
        try:
            if not path.is_file() or path.stat().st_size != written[0]:
                return False
            return not self.steps.options.verify or files.sha256(path) == written[1]
        except OSError:
            return False

    def _check_foreign(self, path: Path, data: bytes, *, is_known: bool) -> None:
        if not os.path.lexists(path) or is_known or not is_foreign(path):
            return
        # A copy of an unchanged photo has no mark; a killed run may have left it without a record.
        if not path.is_file() or files.sha256(path) != images.hash_bytes(data):
            raise FileExistsError(f"{path} exists, and no run wrote it; it was left unchanged")

    def _remove_stale(self, relative: str, sha256: str) -> None:
        """Remove a file of former settings, and its folder if that is empty then.

        A file that is none of ours any more stays.
        """
        path = self.records.folder / relative
        if path.is_file() and (files.sha256(path) == sha256 or not is_foreign(path)):
            path.unlink(missing_ok=True)
            if relative.startswith(f"{FACES}/"):
                with suppress(OSError):  # other faces are still in it
                    path.parent.rmdir()


def is_complete(
    record: Record, wanted: Mapping[str, str], is_whole: Callable[[str, tuple[int, str]], bool]
) -> bool:
    """Whether all files of a finished picture are there.

    Args:
        record: of the picture.
        wanted: path of its file by result folder.
        is_whole: says of a path below the output whether a file of (bytes, sha256) is there.
    """
    written = _files_of(record)
    # A result that is a folder holds any number of files, all of those in the record.
    single = {name for folder, name in wanted.items() if folder != FACES}
    return single <= written.keys() and all(
        is_whole(name, entry)
        for name, entry in written.items()
        if name in single or name.split("/")[0] in wanted
    )


def is_foreign(path: Path) -> bool:
    """Whether a file exists that no run wrote.

    Runs mark their results: see :func:`dr2pipe.core.images.is_marked`.
    """
    if not path.is_file():
        return os.path.lexists(path)
    return not images.is_marked(path)


def _files_of(record: Record) -> dict[str, tuple[int, str]]:
    """{relative path: (bytes, sha256)} of a record; entries that make no sense are left out."""
    entries = record.get("files")
    if not isinstance(entries, dict):
        return {}
    return {
        name: (entry[0], entry[1])
        for name, entry in entries.items()
        if isinstance(entry, list) and len(entry) == 2 and not _leaves_folder(name)
    }


def _leaves_folder(relative: str) -> bool:
    parts = Path(relative).parts
    return Path(relative).is_absolute() or ".." in parts or "\0" in relative
