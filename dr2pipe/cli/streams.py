"""Standard output and error that never stop the work.

A terminal that was closed, a full disk behind ``> log``, a pipe whose reader has ended, or a
console without the letters of a file name must neither end a run nor change its exit code.
"""

from __future__ import annotations

import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_CONSOLE = getattr(io, "_WindowsConsoleIO", io.FileIO)


@contextmanager
def safe_streams() -> Iterator[None]:
    """Make ``sys.stdout`` and ``sys.stderr`` safe for the length of a block.

    Text that cannot be written is dropped. Letters that the stream's encoding lacks are written
    by their numbers.
    """
    _open_closed_descriptors()
    previous = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_made_safe(stream) for stream in previous)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = previous


def _open_closed_descriptors() -> None:
    """Point closed standard descriptors to nothing.

    Otherwise the next file that is opened gets their number, and a library's messages with it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)


def _made_safe(stream: TextIO | None) -> TextIO:
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    binary = getattr(stream, "buffer", None)
    raw = getattr(binary, "raw", binary)  # python -u has no buffer in between
    if not isinstance(raw, io.FileIO | _CONSOLE):
        return stream  # of a notebook, an editor or a test; it takes any text
    with suppress(OSError, ValueError):
        stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_DroppingWriter(raw)),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=bool(stream.line_buffering) or stream is sys.stderr or binary is raw,
    )


class _DroppingWriter(io.RawIOBase):
    """Writes into another raw stream; what that one does not take is dropped."""

    def __init__(self, raw: io.RawIOBase):
        super().__init__()
        self._raw = raw

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._raw.fileno()

    def isatty(self) -> bool:
        return self._raw.isatty()

    def write(self, data: ReadableBuffer) -> int:
        try:
            # None: a pipe that does not block is full.
            while (written := self._raw.write(data)) is None:
                select.select([], [self._raw], [])
        except (OSError, ValueError):  # ValueError: the stream was closed
            return memoryview(data).nbytes
        return written
