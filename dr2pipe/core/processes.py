"""The processes of a run: rank and device of each, and how they are stopped."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType

import torch
from accelerate import PartialState

logger = logging.getLogger(__name__)

# A launcher sets all of these; processes find each other at the meeting place.
_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_MEETING_PLACE = ("MASTER_ADDR", "MASTER_PORT")
_MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
# A process that has finished waits for the others, however long they take.
WAIT_FOR_OTHERS = timedelta(days=30)


def use_cpu() -> bool:
    """Whether to run on the CPU: no accelerator here, or ACCELERATE_USE_CPU is set.

    accelerate must be told: otherwise it treats several CPU processes as separate runs.
    """
    forced = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return forced or not torch.accelerator.is_available()


def count_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def forget_stray_ranks() -> None:
    """Remove ranks from the environment that no launcher of this process has set.

    A batch system, a container or a shell that was started by another run leaves ``LOCAL_RANK``
    and the like behind. accelerate would wait for processes that do not exist.
    """
    ranks = {name: os.environ[name] for name in _RANKS if name in os.environ}
    if not ranks or any(_as_number(os.environ.get(name)) > 1 for name in _MPI_SIZES):
        return
    rank, world_size, local_rank = (_as_number(ranks.get(name)) for name in _RANKS)
    if 0 <= rank < world_size and local_rank >= 0 and all(map(os.environ.get, _MEETING_PLACE)):
        return
    for name in ranks:
        del os.environ[name]
    logger.warning(
        "ignoring %s: no launcher such as accelerate or torchrun started this process",
        " ".join(f"{name}={value}" for name, value in ranks.items()),
    )


def _as_number(text: str | None) -> int:
    """-1 for what is no number."""
    return int(text) if text and text.isascii() and text.isdigit() else -1


def process_state() -> PartialState:
    """Rank, number of processes and device of this process."""
    forget_stray_ranks()
    return PartialState(cpu=use_cpu(), timeout=WAIT_FOR_OTHERS)


def leave_other_processes(code: int) -> None:
    """End this process now with ``code`` where a launcher started it with others.

    torch's threads may wait forever for an interpreter that is ending
    (https://github.com/pytorch/pytorch/issues/190489), and the launcher waits with them. Files
    must be closed before; what the standard streams hold is written.
    """
    if _as_number(os.environ.get("WORLD_SIZE")) <= 1:
        return
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def ignore_stop_signals(worker: int) -> None:
    """Make a loader worker ignore SIGINT and SIGTERM.

    A terminal sends them to the whole group of processes. The trainer needs its workers until
    it has saved, and ends them itself.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def stop_signals_caught(on_stop: Callable[[], None]) -> Iterator[None]:
    """SIGINT and SIGTERM call ``on_stop``; a second one ends the process at once.

    Outside the main thread, where signals cannot be caught, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        on_stop()
        signal.signal(number, signal.SIG_DFL)

    previous = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
