"""Which file of one folder belongs to which file of another: by record, else by name."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from dr2pipe.core.errors import PictureError


def normalised(name: str) -> str:
    """A relative path with composed letters: macOS writes ü as u and two dots, others do not."""
    return unicodedata.normalize("NFC", name)


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
