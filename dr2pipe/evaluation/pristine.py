"""``dr2pipe fit-niqe``: the statistics of clean pictures, which the metric ``niqe`` compares with."""

from __future__ import annotations

import os
from pathlib import Path

from dr2pipe.core import images
from dr2pipe.core.errors import ConfigError
from dr2pipe.evaluation.protocol import CleanConfig, CleanSet
from dr2pipe.metrics.niqe import fit_niqe, save_pristine


def fit_pristine(source: str, output: str | Path, *, size: int, block_px: int) -> str:
    """Fit NIQE on a folder of clean pictures, or an ``.npz``, and write its parameters.

    Args:
        source: the pictures; the largest square in the middle of each is taken.
        output: ``.npz`` file.
        size: side in pixels that the squares are brought to.
        block_px: side of NIQE's blocks in pixels.

    Returns:
        What was fitted, in one line.

    Raises:
        Dr2pipeError: unusable pictures, or sizes that do not fit each other.
    """
    if os.path.realpath(source) == os.path.realpath(output):
        raise ConfigError(
            f"the parameters would replace {source}, the input; choose another output"
        )
    if size < block_px:
        raise ConfigError(f"pictures of {size} pixels are smaller than blocks of {block_px}")
    faces = CleanSet(CleanConfig(path=source, crop="center"), size)
    pictures = (images.to_tensor(faces.face(i))[0] for i in range(len(faces)))
    save_pristine(fit_niqe(pictures, block_px), output)
    return f"{len(faces)} pictures of {size} pixels, blocks of {block_px} -> {output}"
