"""Several pictures combined into one, for people to look at."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from dr2pipe.core import files
from dr2pipe.core.errors import ConfigError
from dr2pipe.core.images import OWN_TEXT, encode_png, read_mark, resize_pixels

_SHEET = "sheet"  # what the files of write_sheet say of themselves


def check_sheet(path: str | Path, source: str | Path) -> None:
    """See that a sheet of ``source`` can be written to ``path`` and replaces nothing of the user's.

    Raises:
        ConfigError: it is the source, no PNG, a folder, or a file that is no sheet.
    """
    if os.path.realpath(path) == os.path.realpath(source):
        raise ConfigError(f"the sheet would replace {source}, which is the input; choose another")
    if Path(path).is_dir():
        raise ConfigError(f"{path} is a folder; name the file of the sheet")
    if Path(path).suffix.lower() != ".png":
        raise ConfigError(f"the sheet {path} has to end in .png")
    if os.path.lexists(path) and read_mark(path) != _SHEET:
        raise ConfigError(f"{path} is there, and is no sheet; choose another place for the sheet")


def write_sheet(path: str | Path, pixels: np.ndarray) -> None:
    """Write (H,W,3) uint8 as a PNG file that a later sheet may replace."""
    files.write_bytes(Path(path), encode_png(pixels, text={OWN_TEXT: _SHEET}))


def side_by_side(columns: list[np.ndarray]) -> np.ndarray:
    """Pictures (H,W,3) uint8 in one row, each brought to the largest height and width."""
    height, width = (max(c.shape[i] for c in columns) for i in (0, 1))
    return np.concatenate([resize_pixels(c, (height, width)) for c in columns], axis=1)


def contact_sheet(rows: list[list[np.ndarray]], *, gap: int = 2) -> np.ndarray:
    """Rows of equally large pictures (H,W,3) uint8 on white, ``gap`` pixels between them."""
    height, width = rows[0][0].shape[:2]
    columns = max(len(row) for row in rows)
    shape = (len(rows) * (height + gap) - gap, columns * (width + gap) - gap, 3)
    sheet = np.full(shape, 255, np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            top, left = i * (height + gap), j * (width + gap)
            sheet[top : top + height, left : left + width] = picture
    return sheet
