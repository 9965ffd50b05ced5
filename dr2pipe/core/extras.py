"""Optional packages: a missing one is reported with the pip command that installs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dr2pipe.core.errors import MissingPackageError


@contextmanager
def needs_extra(name: str) -> Iterator[None]:
    """Import packages of the extra ``name`` (see setup.cfg) inside this block.

    Raises:
        MissingPackageError: one of them is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "a package").partition(".")[0]
        raise MissingPackageError(f"this needs {package}: pip install 'dr2pipe[{name}]'") from None
