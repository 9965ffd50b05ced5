"""Protocols: files that fix a study, so that its numbers can be compared.

A protocol fixes the clean faces, the sizes, the degradations and their seed, the methods and
the metrics. Its hash covers everything that decides a value, including the content of pictures
and weights. Results of different hashes are never mixed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from omegaconf import MISSING

from dr2pipe.core import files, images
from dr2pipe.core.errors import ConfigError, Dr2pipeError, PictureError, UnreadableFileError
from dr2pipe.core.foreign import read_csv, read_text
from dr2pipe.core.pairing import MadeFiles, Pairing, normalised
from dr2pipe.data.folders import FaceDataset
from dr2pipe.data.shards import are_shards
from dr2pipe.degradations import check_degradation
from dr2pipe.diffusion.stage1 import DR2Config
from dr2pipe.restoration.restorer import EnhancerConfig

Pixels = npt.NDArray[np.uint8]

CROPS = ("none", "center")
GIVEN = "given"  # name of the degradation of pictures that another tool degraded


@dataclass
class CleanConfig:
    """The clean faces of a study."""

    path: str = MISSING  # folder of aligned faces, or .npz with images and files
    sources: list[int] | None = None  # of an .npz
    limit: int | None = None  # only the first faces
    sha256: str | None = None  # file as sha256sum prints it; the pictures must be exactly these
    crop: str = "none"  # center: the largest square in the middle; none: must be square
    degraded: str | None = None  # folder of degraded partners, the degradation "given"
    groups_csv: str | None = None  # has a column `file`
    groups: list[str] = field(default_factory=list)  # columns by which results are grouped


@dataclass
class MethodConfig:
    """How a degraded face becomes a result. With nothing set, it is the enlarged input."""

    preset: str | None = None  # a file of configs/restore, or its name: takes its dr2 and enhancer
    dr2: DR2Config | None = None
    enhancer: EnhancerConfig | None = None
    folder: str | None = None  # results of another tool, see Protocol
    contrast: str | None = None  # keep | stretch; null: as the preset has it, else keep


@dataclass
class Protocol:
    """Settings of a study.

    ``degradations`` are chains by name or YAML file, and unseen families as ``name:severity``.

    With ``save_pictures``, every result is saved in ``pictures/<method>/<degradation>/`` of the
    output, and the inputs of the methods, at ``degraded_size``, in
    ``pictures/degraded/<degradation>/``. The folder of a degradation is its name, for an unseen
    family ``rain-3``. A picture has the relative path of its face, with ``.png`` added unless it
    ends so. To compare another tool, run it on ``pictures/degraded``, save its results with side
    ``size`` in folders of the same names, and name their parent by ``methods.NAME.folder``.
    """

    name: str = MISSING
    output: str = MISSING
    clean: CleanConfig = field(default_factory=CleanConfig)
    size: int = MISSING  # side in pixels at which faces are compared
    degraded_size: int = MISSING  # side in pixels at which they are degraded
    degradations: list[str] = MISSING
    seed: int = 0
    methods: dict[str, MethodConfig] = MISSING
    main: str | None = None  # the method that examples are chosen by; null: the last one
    baseline: str | None = None  # differences are taken to it; null: the first one
    metrics: list[str] | None = None  # null: all that can be computed
    metric_files: dict[str, str] = field(default_factory=dict)  # weights of metrics by name
    uncertainty_samples: int | None = None  # results of the main method per face, for calibration
    precision: str = "fp32"
    batch_size: int = 16
    save_pictures: bool = False
    merge: list[str] = field(default_factory=list)  # folders with results of the same protocol


@dataclass(frozen=True)
class Degradation:
    """A degradation of a study; ``severity`` is 1 to 5 for unseen families and None for chains."""

    name: str
    severity: int | None = None

    @property
    def label(self) -> str:
        """Its name in tables: ``severe``, ``rain 3``."""
        return Path(self.name).stem + (f" {self.severity}" if self.severity else "")

    @property
    def folder(self) -> str:
        """Its name as a folder: the label without spaces, ``rain-3``."""
        return self.label.replace(" ", "-")


def parse_degradation(text: str) -> Degradation:
    """Read ``name`` or ``name:severity``; ValueError for an unknown degradation."""
    name, colon, severity = text.rpartition(":")
    if not colon or not severity.isdigit():
        name, severity = text, ""
    degradation = Degradation(name, int(severity) if severity else None)
    if name != GIVEN:
        check_degradation(degradation.name, degradation.severity)
    return degradation


def parse_degradations(protocol: Protocol) -> list[Degradation]:
    """Return the degradations of a protocol; ConfigError for none, equal names or a missing folder."""
    degradations = [parse_degradation(text) for text in protocol.degradations]
    labels = [degradation.label for degradation in degradations]
    if not labels:
        raise ConfigError("degradations must name at least one")
    if len({degradation.folder for degradation in degradations}) < len(labels):
        raise ConfigError(f"degradations must differ in their names: {', '.join(labels)}")
    if (GIVEN in labels) != (protocol.clean.degraded is not None):
        raise ConfigError(f"the degradation '{GIVEN}' and clean.degraded go together")
    return degradations


class CleanSet:
    """The clean faces of a protocol. All are checked before any work starts.

    Args:
        config: where they are.
        size: side in pixels of :meth:`face`.

    Raises:
        Dr2pipeError: no pictures, or some that cannot be read, are not square, are too small or
            differ from the sha256 list; the message names them.
    """

    def __init__(self, config: CleanConfig, size: int):
        if config.crop not in CROPS:
            raise ConfigError(f"clean.crop '{config.crop}': choose {', '.join(CROPS)}")
        if config.limit is not None and config.limit < 1:
            raise ConfigError(f"clean.limit={config.limit} must be at least 1")
        self.config, self.size = config, size
        if are_shards(str(config.path)):
            raise ConfigError(
                f"clean.path={config.path}: a study takes a folder or an .npz, no tar"
            )
        self._faces = FaceDataset(
            config.path, size=size, sources=config.sources, flip=False, squeeze=False
        )
        self.paths = self._faces.names[: config.limit]
        self.names = [self._faces.relative(name) for name in self.paths]
        if self._faces.pixels is None and config.crop == "none":
            self._check_square()
        self.sha256 = {name: self._hash(i) for i, name in enumerate(self.names)}
        if config.sha256 is not None:
            check_hashes(self.sha256, read_hashes(config.sha256), config.sha256)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def files(self) -> dict[str, Path]:
        """The files of the faces, by name; empty for those of an .npz."""
        if self._faces.pixels is not None:
            return {}
        return {name: Path(path) for name, path in zip(self.names, self.paths, strict=True)}

    def face(self, index: int) -> Pixels:
        """Return (S,S,3) uint8 RGB with S = ``size``."""
        if self._faces.pixels is not None:
            stored: Pixels = self._faces.pixels[index]
            return stored
        pixels = images.read_image(self.paths[index]).pixels
        height, width = pixels.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        pixels = pixels[top : top + side, left : left + side]
        return images.resize_pixels(pixels, (self.size, self.size))

    def _hash(self, index: int) -> str:
        """Return the hash of a file's bytes, or of the pixels in an .npz."""
        if self._faces.pixels is not None:
            return images.hash_bytes(self._faces.pixels[index].tobytes())
        return images.hash_bytes(images.read_file(self.paths[index]))

    def _check_square(self) -> None:
        sizes = {path: images.check_file(path) for path in self.paths}
        wrong = [f"{p}: {w}x{h}" for p, (w, h) in sizes.items() if w != h]
        if wrong:
            raise ConfigError(
                f"{len(wrong)} pictures are not square; align them, or set clean.crop=center\n"
                + "\n".join(wrong[:20])
            )


def read_hashes(path: str | Path) -> dict[str, str]:
    """Read a file with lines ``sha256  name``; return hashes by name.

    Raises:
        ConfigError: no such file, or a line of another form.
    """
    try:
        lines = read_text(path).replace("\r\n", "\n").split("\n")
    except UnreadableFileError as error:
        raise ConfigError(f"cannot read the list of hashes {error}") from None
    hashes = {}
    for number, line in enumerate(lines if lines[-1] else lines[:-1], 1):
        # sha256sum marks files that it read as binary by a star; the hash is the same.
        digest, name, mark = line[:64], line[66:], line[64:66]
        if mark not in ("  ", " *") or len(digest) != 64 or not name:
            raise ConfigError(f"{path}, line {number}: not 'sha256  name' as sha256sum prints it")
        hashes[name.removeprefix("./")] = digest.lower()
    return hashes


def write_hashes(hashes: dict[str, str]) -> bytes:
    """Return the bytes of a file that :func:`read_hashes` reads."""
    text = "".join(f"{digest}  {name}\n" for name, digest in hashes.items())
    return text.encode("utf-8", "surrogateescape")


def check_hashes(found: dict[str, str], listed: dict[str, str], source: str) -> None:
    """Raise ConfigError unless names and content of the pictures equal those of the list."""
    problems = [f"{n}: changed" for n in found if n in listed and found[n] != listed[n]]
    problems += [f"{n}: missing" for n in listed if n not in found]
    problems += [f"{n}: not in the list" for n in found if n not in listed]
    if problems:
        raise ConfigError(
            f"{len(problems)} pictures are not those of {source}\n" + "\n".join(problems[:20])
        )


def png_name(name: str) -> str:
    """Return the name of a face's PNG file: a.png for a.png, a.jpg.png for a.jpg."""
    return name if name.lower().endswith(".png") else f"{name}.png"


class PartnerFolder:
    """Pictures that another tool made of faces, or that belong to them.

    A picture is one that a run made of the face, by its manifest. Else it has the relative path
    under which the study keeps the face (``a.jpg.png``), or the face's own, each with any ending
    where that leaves no doubt; see :mod:`dr2pipe.core.pairing`.

    Args:
        folder: of the pictures.
        names: of all faces.
        sources: the files of which the pictures were made, by the names of the faces.
    """

    def __init__(
        self,
        folder: str | Path,
        names: Sequence[str],
        sources: Mapping[str, Path] | None = None,
    ):
        self.folder, self._sources = Path(folder), sources or {}
        self._made = MadeFiles(folder)
        found = images.find_images(folder, with_results=True).paths if self.folder.is_dir() else []
        offered = [path.relative_to(folder).as_posix() for path in found]
        self._kept_names = {name: kept_name(name) for name in names}
        self._by_kept_name = Pairing(self._kept_names.values(), offered, folder)
        self._by_name = Pairing(names, offered, folder)

    def path(self, name: str) -> Path:
        """The file that belongs to a face.

        Raises:
            ConfigError: there is none, or more than one, or the face has changed since.
        """
        kept, source = self._kept_names[name], self._sources.get(name)
        try:
            if source is not None and os.path.lexists(source):
                made = self._made.partner(source)
                if made is not None:
                    return made
            if kept != name and self._by_kept_name.has_partner(kept):
                return self.folder / self._by_kept_name.partner(kept)
            return self.folder / self._by_name.partner(name)
        except PictureError as error:
            raise ConfigError(f"{name}: {error}") from None

    def read(self, name: str, size: int) -> Pixels:
        """The picture that belongs to a face, (size,size,3) uint8 RGB.

        Raises:
            ConfigError: see :meth:`path`; or it cannot be read, or has another size.
        """
        path = self.path(name)
        try:
            pixels = images.read_image(path).pixels
        except PictureError as error:
            raise ConfigError(f"{path}: {error}") from None
        if pixels.shape[:2] != (size, size):
            height, width = pixels.shape[:2]
            raise ConfigError(
                f"{path} has {width}x{height} pixels; the study compares {size}x{size}"
            )
        return pixels


def kept_name(name: str) -> str:
    """Where a study keeps the picture of a face, from the folder of a degradation."""
    try:
        return files.safe_join(".", png_name(name)).as_posix()
    except Dr2pipeError:  # said where pictures are kept
        return png_name(name)


def read_groups(config: CleanConfig, names: list[str]) -> dict[str, dict[str, list[int]]]:
    """Return the indices of faces by column and group.

    Raises:
        ConfigError: no such file or column, a face without a line or without a group, or fewer
            than two groups.
    """
    if not config.groups:
        return {}
    if config.groups_csv is None:
        raise ConfigError("clean.groups needs clean.groups_csv")
    try:
        table = read_csv(config.groups_csv, ["file", *config.groups])
    except UnreadableFileError as error:
        raise ConfigError(f"cannot use {error}") from None
    lines = {normalised(line["file"]): line for line in table}
    groups: dict[str, dict[str, list[int]]] = {}
    for column in config.groups:
        found: dict[str, list[int]] = {}
        for place, name in enumerate(names):
            # The column may hold relative paths, or file names alone.
            line = lines.get(normalised(name)) or lines.get(normalised(Path(name).name))
            if line is None:
                raise ConfigError(f"{config.groups_csv} has no line for {name}")
            if not line[column]:
                raise ConfigError(f"{config.groups_csv}: '{column}' of {name} is empty")
            found.setdefault(line[column], []).append(place)
        if len(found) < 2:
            raise ConfigError(f"'{column}' puts all faces into one group, '{next(iter(found))}'")
        groups[column] = dict(sorted(found.items()))
    return groups
