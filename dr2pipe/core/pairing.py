"""Which file of one folder belongs to which file of another: by record, else by name."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from dr2pipe.core import files
from dr2pipe.core.errors import PictureError
from dr2pipe.core.markers import read_marker, result_folders
from dr2pipe.core.records import RunRecords


def normalised(name: str) -> str:
    """A relative path with composed letters: macOS writes ü as u and two dots, others do not."""
    return unicodedata.normalize("NFC", name)


class MadeFiles:
    """What a run made of its inputs, by its manifest.

    Args:
        folder: the output of a run, one of its result folders, or a folder in there. Where no
            run filled it, nothing is found.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._made: dict[str, tuple[str, str]] = {}  # source: its sha256, file below the folder
        real = Path(os.path.realpath(folder))
        for output in (real, *real.parents):
            inside = real.relative_to(output).parts
            if not inside or inside[0] in result_folders(output):
                marker = read_marker(output)
                if marker is not None:
                    self._read(output, "/".join(inside), marker)
                    break

    def partner(self, source: str | Path, sha256: str | None = None) -> Path | None:
        """The file that was made of ``source``; None where the run did not make one.

        Args:
            source: the path of a file, followed by ``#`` and a number for a further page.
            sha256: hex digest of the file as it is now; None: read here.

        Raises:
            PictureError: the source has changed since, or what was made of it is gone.
            UnreadableFileError: the source cannot be read.
        """
        known, name = self._made.get(os.path.realpath(source), ("", ""))
        if not name:
            return None
        path = files.safe_join(self.folder, name)
        if known != (sha256 or files.sha256(source)):
            raise PictureError(
                f"{source} has changed since {path} was made of it; make it again from the picture "
                "as it is now"
            )
        if not path.is_file():
            raise PictureError(f"{path}, which was made of {source}, is not there any more")
        return path

    def _read(self, output: Path, inside: str, marker: dict[str, Any]) -> None:
        inputs = [name for name in marker.get("inputs") or [] if isinstance(name, str)]
        for path, record in RunRecords(output).finished().items() if inputs else ():
            names = [record.get("output"), *record.get("files", {})]
            start = f"{inside}/" if inside else ""
            made = next((n for n in names if isinstance(n, str) and n.startswith(start)), None)
            for root in inputs if made is not None else ():
                source = os.path.realpath(os.path.join(root, path))
                self._made[source] = record.get("sha256", ""), str(made).removeprefix(start)


class Pairing:
    """Pairs files by their relative paths.

    The same path including its extension comes first. Where there is none, the same path with
    another extension is taken, if only one file on each side has it. Letters are compared in
    their composed form (NFC).

    Args:
        wanted: relative paths (with ``/``) of the files that look for a partner.
        offered: relative paths of the files that may be partners.
        folder: where ``offered`` are, for messages.
    """

    def __init__(self, wanted: Iterable[str], offered: Iterable[str], folder: str | Path):
        self.folder = Path(folder)
        self._exact: dict[str, list[str]] = defaultdict(list)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        self._wanted_by_stem: dict[str, list[str]] = defaultdict(list)
        for name in offered:
            self._exact[normalised(name)].append(name)
            self._by_stem[_stem(name)].append(name)
        for name in wanted:
            self._wanted_by_stem[_stem(name)].append(name)

    def partner(self, name: str) -> str:
        """The relative path of the file that belongs to ``name``.

        Raises:
            PictureError: there is none, or more than one; both candidates are named.
        """
        exact = self._exact.get(normalised(name), [])
        if len(exact) == 1:
            return exact[0]
        found = exact or self._by_stem.get(_stem(name), [])
        if not found:
            raise PictureError(f"no file of its name in {self.folder}")
        if len(found) > 1:
            raise PictureError(f"several files of its name in {self.folder}: {' and '.join(found)}")
        rivals = [other for other in self._wanted_by_stem.get(_stem(name), []) if other != name]
        if rivals:
            raise PictureError(
                f"{found[0]} in {self.folder} may belong to {name} or to {rivals[0]}; "
                "give it the whole name with its extension"
            )
        return found[0]

    def has_partner(self, name: str) -> bool:
        """Whether :meth:`partner` finds one."""
        try:
            self.partner(name)
        except PictureError:
            return False
        return True


def _stem(name: str) -> str:
    return str(PurePosixPath(normalised(name)).with_suffix(""))
