"""Aligned faces from a folder of pictures, one ``.npz`` file, or tar files."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dr2pipe.core import files, images
from dr2pipe.core.config import stable_seed
from dr2pipe.core.errors import ConfigError, Dr2pipeError, PictureError
from dr2pipe.core.foreign import read_npz
from dr2pipe.data.shards import Shards, are_shards
from dr2pipe.data.showings import Item, ShowingDataset

logger = logging.getLogger(__name__)


class FaceDataset(ShowingDataset):
    """Square faces; the showing decides which are mirrored.

    Args:
        path: a folder (searched recursively); an ``.npz`` with ``images`` (N,S,S,3) uint8
            RGB and ``files`` (N,), optionally ``source`` (N,) integers; or tar files on a disk or
            in a store, see :class:`dr2pipe.data.shards.Shards`.
        size: side in pixels of every face.
        sources: keep only these values of ``source``; ``.npz`` only.
        flip: mirror half of the showings.
        seed: base seed.
        squeeze: faces that are not square are squeezed, which is said once; False: whoever reads
            them cuts them.

    Raises:
        ConfigError: nothing found, a size that is not that of the ``.npz``, or ``sources`` that
            it does not have.
        PictureError: files that are not whole pictures, or smaller than ``size``.
        Dr2pipeError: an ``.npz`` without the right arrays, or a damaged tar file.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        size: int,
        sources: Sequence[int] | None = None,
        flip: bool = True,
        seed: int = 0,
        squeeze: bool = True,
    ):
        self.size, self.flip, self.seed, self.root = size, flip, seed, Path(path)
        self.pixels: npt.NDArray[np.uint8] | None = None
        self._shards: Shards | None = None
        if are_shards(str(path)):
            if sources is not None:
                raise ConfigError("data.sources selects inside an .npz file; tar files have none")
            self._shards = Shards(str(path))
            self.names = self._shards.names
            return
        path = Path(path)
        if path.suffix == ".npz":
            self.pixels, self.names = _read_npz(path, sources)
            if self.pixels.shape[1:] != (size, size, 3):
                side = "x".join(map(str, self.pixels.shape[1:]))
                raise ConfigError(
                    f"{path} holds {side} pictures, the config asks for {size}x{size}x3"
                )
        else:
            if not path.is_dir():
                raise ConfigError(f"no folder of pictures at {path}")
            if sources is not None:
                raise ConfigError(
                    "data.sources selects inside an .npz file; for a folder set data.sources=null"
                )
            found = images.find_images(path)
            found.say_what_was_left_out()
            self.names = [str(p) for p in found.paths]
            _check_files(self.names, size, squeeze)
        if not self.names:
            raise ConfigError(f"no training pictures in {path}")

    def __len__(self) -> int:
        return len(self.names)

    def relative(self, name: str) -> str:
        """The path of a face below the folder; for an ``.npz`` or tar files, its name.

        Args:
            name: one of ``names``.
        """
        if self.pixels is not None or self._shards is not None:
            return name
        return Path(name).relative_to(self.root).as_posix()

    def __getitem__(self, key: tuple[int, int]) -> Item:
        """One showing: ``image``, ``name``, ``flipped`` and ``seed``.

        ``image`` is (3,S,S) float32 RGB in [-1,1]; ``flipped`` says whether it is mirrored.

        Raises:
            PictureError: the file cannot be read.
        """
        index, position = key
        seed = stable_seed(self.seed, "showing", position)
        if self.pixels is not None:
            image = images.to_tensor(self.pixels[index])[0]
        elif self._shards is not None:
            picture = self._shards.read(index)
            if min(picture.pixels.shape[:2]) < self.size:
                raise PictureError(f"{self.names[index]} is smaller than data.size={self.size}")
            image = picture.resized(self.size)[0]
        else:
            try:
                image = images.read_image(self.names[index]).resized(self.size)[0]
            except PictureError as error:
                raise PictureError(f"{self.names[index]}: {error}") from None
        flipped = bool(self.flip and seed % 2)
        if flipped:
            image = image.flip(-1)
        return {"image": image, "name": self.names[index], "seed": seed, "flipped": flipped}


def _check_files(paths: list[str], size: int, squeeze: bool) -> None:
    """Raise PictureError for files that cannot be used, before training comes to them."""
    broken, squeezed = [], []
    for path in paths:
        try:
            width, height = images.check_file(path)
            if width != height:
                squeezed.append(path)
            if min(width, height) < size:
                raise PictureError(f"{width}x{height} pixels are fewer than data.size={size}")
        except PictureError as error:
            broken.append(f"{path}: {error}")
    if broken:
        raise PictureError(
            f"{len(broken)} of {len(paths)} files cannot be used; remove or replace them\n"
            + "\n".join(broken[:20])
        )
    if squeezed and squeeze:
        logger.warning(
            "%d of %d pictures are not square and are squeezed to squares, the first: %s",
            len(squeezed),
            len(paths),
            squeezed[0],
        )


def write_pictures(
    npz: str | Path, folder: str | Path, *, sources: Sequence[int] | None = None
) -> None:
    """Write the faces of an ``.npz`` as ``<name>.png``; existing files are kept.

    Args:
        npz: as :class:`FaceDataset` reads it.
        folder: made if it does not exist.
        sources: write only the faces with these values of ``source``.

    Raises:
        Dr2pipeError: two faces have the same name, a name is none of a file, or ``folder`` holds
            other pictures.
    """
    pixels, names = _read_npz(Path(npz), sources)
    paths = [files.safe_join(folder, written_name(name)) for name in names]
    _check_different(npz, [path.name for path in paths])
    known = set(paths)
    for path in images.find_images(folder).paths if Path(folder).is_dir() else ():
        if path not in known:
            raise Dr2pipeError(
                f"{path} is not of {npz} and its chosen sources; choose another output"
            )
    for face, path in zip(pixels, paths, strict=True):
        if not os.path.lexists(path):
            images.write_png(path, face)
        elif not np.array_equal(_read_face(path), face):
            raise Dr2pipeError(f"{path} is another picture than in {npz}; choose another output")


def written_name(name: str) -> str:
    """The file name under which :func:`write_pictures` writes a face."""
    return f"{Path(name).stem}.png"


def _read_face(path: Path) -> npt.NDArray[np.uint8]:
    try:
        return images.read_image(path).pixels
    except PictureError as error:
        raise PictureError(f"{path}: {error}; remove it, and it is made again") from None


def _check_different(npz: str | Path, names: Sequence[str]) -> None:
    """Raise Dr2pipeError where two faces have one name."""
    first: dict[str, int] = {}
    for place, name in enumerate(names):
        if name in first:
            raise Dr2pipeError(
                f"{npz} has two faces of the name {name!r}, number {first[name]} and {place}; "
                "give each a name of its own"
            )
        first[name] = place


def _read_npz(path: Path, sources: Sequence[int] | None) -> tuple[npt.NDArray[np.uint8], list[str]]:
    if not os.path.lexists(path):
        raise ConfigError(f"no training data at {path}")
    archive = read_npz(path)
    missing = [name for name in ("images", "files") if name not in archive]
    if missing:
        raise Dr2pipeError(f"{path} is no .npz file with the arrays images and files")
    pixels, names = archive["images"], archive["files"]
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or names.shape != (len(pixels),):
        raise Dr2pipeError(
            f"{path} holds files {names.shape} and images of {pixels.dtype} "
            f"{pixels.shape}; it must hold N files and images of uint8 (N,S,S,3)"
        )
    if sources is not None:
        if "source" not in archive:
            raise ConfigError(f"{path} has no 'source' array to select data.sources from")
        source = archive["source"]
        if source.shape != (len(pixels),) or source.dtype.kind not in "iu":
            raise Dr2pipeError(f"{path} holds source {source.dtype} {source.shape}, not N integers")
        known = sorted(int(s) for s in np.unique(source))
        unknown = sorted(set(sources) - set(known))
        if unknown:
            raise ConfigError(f"{path} has sources {known}, not {unknown}")
        keep = np.isin(source, list(sources))
        pixels, names = pixels[keep], names[keep]
    try:
        texts = [str(name) for name in names]
    except ValueError:  # numbers that are no letters
        raise Dr2pipeError(f"{path}: the array files holds no texts") from None
    _check_different(path, texts)
    return pixels, texts
