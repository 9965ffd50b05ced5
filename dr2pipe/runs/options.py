"""How a folder run reads its files and takes up what is there already."""

from __future__ import annotations

from dataclasses import dataclass

from dr2pipe.core.errors import ConfigError

FORMATS = ("png", "jpg", "webp", "keep")


@dataclass
class RunOptions:
    """Settings that all folder runs share.

    Attributes:
        pages: ``first`` page or frame of every file, or ``all``.
        merge: let the results of another input join those that are in the output.
        verify: compare the hashes of finished results, not only their sizes.
        format: of the results: png, jpg, webp (lossless), or keep: that of the picture where it
            is one of these, else png.
    """

    pages: str = "first"
    merge: bool = False
    verify: bool = False
    format: str = "png"

    def all_pages(self) -> bool:
        """Whether every page is taken.

        Raises:
            ConfigError: ``pages`` is neither of its values.
        """
        if self.pages not in ("first", "all"):
            raise ConfigError(f"pages '{self.pages}': choose first or all")
        return self.pages == "all"

    def check_format(self) -> None:
        """See that the format is one of those that can be written.

        Raises:
            ConfigError: it is not.
        """
        if self.format not in FORMATS:
            raise ConfigError(f"format '{self.format}': choose {', '.join(FORMATS)}")
