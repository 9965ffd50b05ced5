"""Optional packages: a missing one is reported with the pip command that installs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

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


def find_in_package(module: str, name: str) -> Path | None:
    """The file ``name`` below the folder of an installed package; None where there is none.

    The package is not imported: it may want others that are not needed for its file.
    """
    spec = find_spec(module)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / name
        if path.is_file():
            return path
    return None
