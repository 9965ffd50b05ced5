"""``dr2pipe restore``: a configuration, a folder run, both stages."""

from __future__ import annotations

from dr2pipe.runs.aligned import restore_aligned
from dr2pipe.runs.batches import RunSummary
from dr2pipe.runs.photos import restore_photos
from dr2pipe.runs.restore_config import RestoreConfig, check_config
from dr2pipe.runs.restore_notes import describe_notes

__all__ = ["RestoreConfig", "describe_notes", "restore_folder"]


def restore_folder(config: RestoreConfig) -> RunSummary:
    """Restore ``config.input`` into ``config.output``; see docs/restore.md for what it leaves.

    Raises:
        Dr2pipeError: an invalid setting, or missing weights; nothing has been written then.
    """
    check_config(config)
    if config.faces.mode == "aligned":
        return restore_aligned(config)
    return restore_photos(config)
