"""Aligned faces from a folder of pictures or one ``.npz`` file."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dr2pipe.core import images
from dr2pipe.core.config import stable_seed
from dr2pipe.core.errors import PictureError
from dr2pipe.data.showings import Item, ShowingDataset

logger = logging.getLogger(__name__)


class FaceDataset(ShowingDataset):
    """Square faces; the showing decides which are mirrored.

    Args:
        path: a folder (searched recursively) or an ``.npz`` with ``images`` (N,S,S,3) uint8
            RGB and ``files`` (N,), optionally ``source`` (N,) integers.
        size: side in pixels of every face.
        sources: keep only these values of ``source``; ``.npz`` only.
        flip: mirror half of the showings.
        seed: base seed.

    Raises:
        ValueError: nothing found, files that are no whole pictures, a size other than that of
            the ``.npz`` or above that of a file, or ``sources`` where there are none.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        size: int,
        sources: Sequence[int] | None = None,
        flip: bool = True,
        seed: int = 0,
    ):
        self.size, self.flip, self.seed, self.root = size, flip, seed, Path(path)
        self.pixels: np.ndarray | None = None
        path = Path(path)
        if path.suffix == ".npz":
            self.pixels, self.names = _read_npz(path, sources)
            if self.pixels.shape[1:] != (size, size, 3):
                side = "x".join(map(str, self.pixels.shape[1:]))
                raise ValueError(
                    f"{path} holds {side} pictures, the config asks for {size}x{size}x3"
                )
        else:
            if not path.is_dir():
                raise ValueError(f"no folder of pictures at {path}")
            if sources is not None:
                raise ValueError(
                    "data.sources selects inside an .npz file; a folder has no sources"
                )
            self.names = [str(p) for p in images.find_images(path)]
            _check_files(self.names, size)
        if not self.names:
            raise ValueError(f"no training pictures in {path}")

    def __len__(self) -> int:
        return len(self.names)

    def relative(self, name: str) -> str:
        """One of ``names`` as a path below the folder; as it is for an ``.npz``."""
        return name if self.pixels is not None else str(Path(name).relative_to(self.root))

    def __getitem__(self, key: tuple[int, int]) -> Item:
        """``image`` (3,S,S) float32 RGB in [-1,1], ``name``, ``flipped``, ``seed`` of this showing."""
        index, position = key
        seed = stable_seed(self.seed, "showing", position)
        if self.pixels is not None:
            image = images.to_tensor(self.pixels[index])[0]
        else:
            try:
                image = images.read_image(self.names[index]).resized(self.size)[0]
            except PictureError as error:
                raise PictureError(f"{self.names[index]}: {error}") from None
        flipped = bool(self.flip and seed % 2)
        if flipped:
            image = image.flip(-1)
        return {"image": image, "name": self.names[index], "seed": seed, "flipped": flipped}


def _check_files(paths: list[str], size: int) -> None:
    """Raise ValueError for files that cannot be used, before hours of training meet them."""
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
        raise ValueError(
            f"{len(broken)} of {len(paths)} files cannot be used; remove or replace them\n"
            + "\n".join(broken[:20])
        )
    if squeezed:
        logger.warning(
            "%d of %d pictures are no squares and are squeezed to one, the first: %s",
            len(squeezed),
            len(paths),
            squeezed[0],
        )


def write_pictures(
    npz: str | Path, folder: str | Path, *, sources: Sequence[int] | None = None
) -> None:
    """Write the faces of an ``.npz`` as ``<name>.png``; those that are there already stay.

    Raises:
        ValueError: two faces of one name, or ``folder`` holds other pictures than these.
    """
    pixels, names = _read_npz(Path(npz), sources)
    paths = [Path(folder) / f"{Path(name).stem}.png" for name in names]
    if len(set(paths)) < len(paths):
        raise ValueError(f"{npz} has faces of the same name; they would overwrite each other")
    known = set(paths)
    for path in images.find_images(folder) if Path(folder).is_dir() else ():
        if path not in known:
            raise ValueError(
                f"{path} is not of {npz} and its chosen sources; choose another output"
            )
    for face, path in zip(pixels, paths, strict=True):
        if not path.exists():
            images.write_png(path, face)
        elif not np.array_equal(images.read_image(path).pixels, face):
            raise ValueError(f"{path} is another picture than in {npz}; choose another output")


def _read_npz(path: Path, sources: Sequence[int] | None) -> tuple[np.ndarray, list[str]]:
    if not path.is_file():
        raise ValueError(f"no training data at {path}")
    try:
        archive = np.load(path, allow_pickle=False)
        pixels, names = archive["images"], archive["files"]
    # Other files make the reader fail in any way, and its advice is to read them unsafely.
    except Exception:
        raise ValueError(f"{path} is no .npz file with the arrays images and files") from None
    with archive:
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or len(names) != len(pixels):
            raise ValueError(
                f"{path} holds {len(names)} files and images of {pixels.dtype} "
                f"{pixels.shape}, not a file for each of uint8 (N,S,S,3)"
            )
        if sources is not None:
            if "source" not in archive:
                raise ValueError(f"{path} has no 'source' array to select data.sources from")
            known = sorted(int(s) for s in np.unique(archive["source"]))
            unknown = sorted(set(sources) - set(known))
            if unknown:
                raise ValueError(f"{path} has sources {known}, not {unknown}")
            keep = np.isin(archive["source"], list(sources))
            pixels, names = pixels[keep], names[keep]
    return pixels, [str(name) for name in names]
