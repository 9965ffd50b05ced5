"""How a folder run reads its files and takes up what is there already."""

from __future__ import annotations

from dataclasses import dataclass

from dr2pipe.core.errors import ConfigError


@dataclass
class RunOptions:
    """Settings that all folder runs share.

    Attributes:
        pages: ``first`` page or frame of every file, or ``all``.
        merge: let the results of another input join those that are in the output.
        verify: compare the hashes of finished results, not only their sizes.
    """

    pages: str = "first"
    merge: bool = False
    verify: bool = False

    def all_pages(self) -> bool:
        """Whether every page is taken.

        Raises:
            ConfigError: ``pages`` is neither of its values.
        """
        if self.pages not in ("first", "all"):
            raise ConfigError(f"pages '{self.pages}': choose first or all")
        return self.pages == "all"
