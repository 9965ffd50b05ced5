"""``dr2pipe restore``: a configuration, a folder run, both stages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dr2pipe.core.config import to_dict
from dr2pipe.core.processes import process_state
from dr2pipe.core.records import versions
from dr2pipe.restoration.photos import PhotoEngine
from dr2pipe.runs.aligned import aligned_steps
from dr2pipe.runs.batches import RunSummary
from dr2pipe.runs.folder_run import FolderRun
from dr2pipe.runs.photos import check_listed, photo_steps
from dr2pipe.runs.restore_config import RestoreConfig, check_config
from dr2pipe.runs.restore_notes import describe_notes
from dr2pipe.runs.steps import Steps

__all__ = ["RestoreConfig", "describe_notes", "describe_run", "load_steps", "restore_folder"]


def restore_folder(
    config: RestoreConfig,
    *,
    loaded: tuple[PhotoEngine, dict[str, str]] | None = None,
    watch: Callable[[str], None] | None = None,
) -> RunSummary:
    """Restore ``config.input`` into ``config.output``; see docs/restore.md for what it leaves.

    Args:
        config: the settings.
        loaded: what ``load_photo_engine`` gave for the same settings, where it is loaded already.
        watch: called with the name of each stage of whole photos, from several threads.

    Raises:
        Dr2pipeError: an invalid setting, or missing weights; nothing has been written then.
    """
    check_config(config)
    steps = load_steps(config, process_state().device, loaded=loaded, watch=watch)
    run = FolderRun(
        config.input,
        config.output,
        steps,
        loader_threads=config.loader_threads,
        writer_threads=config.writer_threads,
        run_description=describe_run(config, steps),
    )
    check_listed(config, [job.relative for job in run.jobs])
    return run.run()


def load_steps(
    config: RestoreConfig,
    device: torch.device | str,
    *,
    loaded: tuple[PhotoEngine, dict[str, str]] | None = None,
    watch: Callable[[str], None] | None = None,
) -> Steps:
    """What a restoration does with every picture, whichever engine runs it.

    The arguments are those of :func:`restore_folder`.

    Raises:
        Dr2pipeError: an invalid setting, or missing weights.
    """
    if config.faces.mode == "aligned":
        return aligned_steps(config, device)
    return photo_steps(config, device, loaded=loaded, watch=watch)


def describe_run(config: RestoreConfig, steps: Steps) -> dict[str, Any]:
    """What ``run.yaml`` says of a restoration."""
    return {"config": to_dict(config), "settings": steps.settings, "versions": versions()}
