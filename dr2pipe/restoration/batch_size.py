"""How many faces at once: a number, or the largest batch that is worth its memory."""

from __future__ import annotations

import logging
import time

import torch

from dr2pipe.core.errors import ConfigError, is_out_of_memory
from dr2pipe.restoration.restorer import Restorer

logger = logging.getLogger(__name__)

AUTO = "auto"
_LARGEST = 256
_WORTH_IT = 1.05  # a batch of twice the size must be so many times as fast


def resolve_batch_size(batch_size: int | str, restorer: Restorer) -> int:
    """The number of faces in a batch; ``auto`` is measured here, which takes some seconds.

    Batches are doubled until memory runs out, or until that makes a face no faster.

    Args:
        batch_size: a number, or ``auto``.
        restorer: both stages, on their device.

    Raises:
        ConfigError: something else.
    """
    if isinstance(batch_size, int):
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size} must be at least 1")
        return batch_size
    if batch_size != AUTO:
        raise ConfigError(f"batch_size '{batch_size}': choose a number or {AUTO}")
    best, best_rate, size = 1, 0.0, 1
    # Every size would be compiled, and only the last one is used.
    with torch.compiler.set_stance("force_eager"):
        while size <= _LARGEST:
            try:
                rate = size / _seconds(restorer, size)
            except Exception as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
                break
            if rate < best_rate * _WORTH_IT:
                break
            best, best_rate, size = size, rate, 2 * size
    restorer.padded_to = 0  # it has seen larger batches than it will
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    logger.info("batch_size=auto is %d here: %.1f faces per second", best, best_rate)
    return best


def _seconds(restorer: Restorer, size: int) -> float:
    """Seconds for a batch of grey faces, without what only a first batch takes."""
    side, seconds = restorer.input_size, 0.0
    for _ in range(2):
        start = time.perf_counter()
        restorer(torch.zeros(size, 3, side, side), list(range(size))).restored.cpu()
        seconds = time.perf_counter() - start
    return seconds
