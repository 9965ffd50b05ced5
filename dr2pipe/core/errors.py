"""Errors that a user can correct.

The command line shows these in one line. Any other error is a bug and shows its traceback.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


class Dr2pipeError(ValueError):
    """The base class: the message says what is wrong and what to do about it."""


class ConfigError(Dr2pipeError):
    """A configuration names an unknown key, has a value of the wrong type, or lacks one."""


class PictureError(Dr2pipeError):
    """A picture cannot be read, or does not fit its use."""


class TooManyPixelsError(PictureError):
    """A picture says that it has more pixels than are decoded."""


@contextmanager
def picture_named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Inside the block a PictureError says of which file it speaks."""
    try:
        yield
    except PictureError as error:
        raise PictureError(f"{os.fspath(path)}: {error}") from None


class CheckpointError(Dr2pipeError):
    """A weights file cannot be read, or does not fit its network."""


class FetchError(Dr2pipeError):
    """A download failed, or gave another file than it should."""


class UnreadableFileError(Dr2pipeError):
    """A file cannot be read: ``path`` is the file, ``reason`` says why."""

    def __init__(self, path: str | os.PathLike[str], reason: str):
        super().__init__(f"{os.fspath(path)}: {reason}")
        self.path, self.reason = path, reason


class FolderInUseError(Dr2pipeError):
    """Another run is writing into the same output folder."""


class StorageError(Dr2pipeError):
    """A store gives or takes nothing, in several tries."""


class ClusterError(Dr2pipeError):
    """A cluster loses its workers."""


class NotFiniteError(Dr2pipeError, FloatingPointError):
    """A loss, a gradient or a result is NaN or infinite."""


class MissingPackageError(Dr2pipeError):
    """An optional package is not installed; the message has the pip command."""


def describe_error(error: BaseException) -> str:
    """What an error says, in one line; errors of the disk name the file first."""
    said = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, OSError) or error.strerror is None:
        return said
    names = [
        os.fsdecode(n) for n in (error.filename, error.filename2) if isinstance(n, str | bytes)
    ]
    return f"{' -> '.join(names)}: {error.strerror}" if names else error.strerror


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a smaller batch may do: memory ran out, on a GPU or on the CPU."""
    if isinstance(error, MemoryError):
        return True
    # torch's own kinds are RuntimeErrors with these words.
    messages = (
        "out of memory",
        "not enough memory",
        "can't allocate memory",
        # Some kernels, such as mirrored borders on CUDA, take no more than 2**31 numbers at once.
        "must fit into 32-bit index math",
    )
    return isinstance(error, RuntimeError) and any(m in str(error) for m in messages)
