"""Several pictures combined into one, for people to look at."""

from __future__ import annotations

import numpy as np

from dr2pipe.core.images import resize_pixels


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
