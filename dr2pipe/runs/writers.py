"""The threads that encode and write the results of a run, and a bound on what waits for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import numpy.typing as npt

from dr2pipe.core.processes import count_cores
from dr2pipe.restoration.placing import PreparedPhoto
from dr2pipe.runs.batches import Result
from dr2pipe.runs.jobs import LoadedPicture

# Half of the time of a thread goes by while a file is flushed to the disk.
_THREADS_PER_CORE, _MOST_THREADS = 2, 32
MOST_WAITING_BYTES = 1 << 27


class Writers:
    """A pool of threads. ``submit`` waits while too much is on its way to the disk.

    Args:
        threads: how many; None for two for each core.
        most_pictures: pictures on their way at most, which is never fewer than there are threads.
        most_bytes: of their pixels; a single picture may have more. None: no bound.
    """

    def __init__(
        self, threads: int | None, *, most_pictures: int, most_bytes: int | None = None
    ) -> None:
        self.threads = threads or min(_MOST_THREADS, _THREADS_PER_CORE * count_cores())
        self.most_pictures = max(most_pictures, self.threads)
        self.most_bytes = most_bytes
        self._pool = ThreadPoolExecutor(self.threads)
        self._waiting: deque[tuple[Future[None], int]] = deque()
        self._bytes = 0

    def __enter__(self) -> Writers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for everything that is on its way; without an error, raise what a thread raised."""
        self._pool.shutdown(wait=True)
        while kind is None and self._waiting:
            self._wait_for_oldest()

    def submit(self, picture_bytes: int, write: Callable[..., None], *arguments: Any) -> None:
        """Let a thread call ``write`` with the arguments, which hold ``picture_bytes`` of pixels.

        Raises:
            Exception: what an earlier ``write`` raised.
        """
        self._waiting.append((self._pool.submit(write, *arguments), picture_bytes))
        self._bytes += picture_bytes
        while len(self._waiting) > 1 and self._is_too_much():
            self._wait_for_oldest()

    def _is_too_much(self) -> bool:
        too_large = self.most_bytes is not None and self._bytes > self.most_bytes
        return too_large or len(self._waiting) > self.most_pictures

    def _wait_for_oldest(self) -> None:
        future, picture_bytes = self._waiting.popleft()
        self._bytes -= picture_bytes
        future.result()


def pixel_bytes(loaded: LoadedPicture, results: Iterable[Result | None]) -> int:
    """Bytes of the pixels that a picture holds until its results are written."""
    arrays: list[npt.NDArray[Any] | None] = [loaded.picture.alpha]
    if isinstance(loaded.ready, PreparedPhoto) and loaded.ready.picture.own is not None:
        arrays += [loaded.ready.picture.pixels, loaded.ready.picture.own.levels]
    for result in results:
        arrays += result.values() if isinstance(result, Mapping) else [result]
    return sum(array.nbytes for array in arrays if array is not None)
