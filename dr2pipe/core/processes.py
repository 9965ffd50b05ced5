"""The processes of a run: rank and device of each, and how they are stopped."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType

import torch
from accelerate import PartialState

# A process that has finished waits for the others, however long they take.
WAIT_FOR_OTHERS = timedelta(days=30)


def use_cpu() -> bool:
    """Whether to run on the CPU: no accelerator here, or ACCELERATE_USE_CPU is set.

    accelerate must be told: otherwise it treats several CPU processes as separate runs.
    """
    forced = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return forced or not torch.accelerator.is_available()


def process_state() -> PartialState:
    """Rank, number of processes and device of this process."""
    return PartialState(cpu=use_cpu(), timeout=WAIT_FOR_OTHERS)


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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    messages = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, RuntimeError) and any(m in str(error) for m in messages)
