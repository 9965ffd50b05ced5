"""How a folder run reads its files and takes up what is there already."""

from __future__ import annotations

from dataclasses import dataclass

from dr2pipe.core import images
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
        png_compression: 0 (none), 1 (fast) .. 9 (small and slow). It changes no pixel, so finished
            results stay.
        quality: 1..100 of JPEG results; None: that of the picture where it is a JPEG file, else 95.
    """

    pages: str = "first"
    merge: bool = False
    verify: bool = False
    format: str = "png"
    png_compression: int = images.DEFAULT_COMPRESSION
    quality: int | None = None

    def all_pages(self) -> bool:
        """Whether every page is taken.

        Raises:
            ConfigError: ``pages`` is neither of its values.
        """
        if self.pages not in ("first", "all"):
            raise ConfigError(f"pages '{self.pages}': choose first or all")
        return self.pages == "all"

    def check_format(self) -> None:
        """See that results can be written as these settings say.

        Raises:
            ConfigError: a format, compression or quality that there is not.
        """
        if self.format not in FORMATS:
            raise ConfigError(f"format '{self.format}': choose {', '.join(FORMATS)}")
        images.check_encoding(self.png_compression, self.quality)
