"""The pictures of a folder run: their paths, the names of their results, and paired files."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dr2pipe.core import images
from dr2pipe.core.errors import ConfigError, PictureError
from dr2pipe.core.pairing import MadeFiles, Pairing
from dr2pipe.runs.result_folders import RESTORED


@dataclass(frozen=True)
class Job:
    """One picture to process.

    Attributes:
        path: the file.
        relative: its path below the input folder; seeds and shards depend on it.
        output_name: path of its result below each result folder.
        page: page or frame of the file, from 0; None takes the first and warns of others.
    """

    path: Path
    relative: str
    output_name: str
    page: int | None = None

    @property
    def long_name(self) -> str:
        """An output name that no other picture has."""
        return f"{self.relative}.png"


class PairedFiles:
    """Files that belong to the pictures of a run, such as masks: one for all, or one for each.

    Args:
        path: a picture for all, or a folder that holds a file for each picture: one that a run
            made of the picture, by its manifest, or else one at the same relative path; see
            :mod:`dr2pipe.core.pairing`.
        prepare: turns such a file and its picture into what the process needs. A PictureError
            that it raises is the picture's failure.

    Raises:
        ConfigError: no such file or folder.
    """

    def __init__(
        self,
        path: str | Path,
        prepare: Callable[[images.Picture, images.Picture], torch.Tensor],
    ):
        self.path, self.prepare = Path(path), prepare
        self._pairing: Pairing | None = None
        self._made: MadeFiles | None = None
        if not os.path.lexists(self.path):
            raise ConfigError(f"no file or folder at {path}")

    def pair_with(self, relatives: Iterable[str]) -> None:
        """Look at what the folder holds for the pictures of a run (their relative paths)."""
        if self.path.is_dir():
            found = images.find_images(self.path, with_results=True).paths
            offered = [path.relative_to(self.path).as_posix() for path in found]
            self._pairing = Pairing(relatives, offered, self.path)
            self._made = MadeFiles(self.path)

    def path_for(self, job: Job, sha256: str) -> Path:
        """The file that belongs to a picture, whose bytes have this hash.

        Raises:
            PictureError: there is none, it is not certain which it is, or the picture has changed
                since it was made.
        """
        if self._pairing is None or self._made is None:
            return self.path
        page = f"#{job.page + 1}" if job.page else ""
        made = self._made.partner(f"{job.path}{page}", sha256)
        return made or self.path / self._pairing.partner(job.relative)


def find_jobs(
    source: str | Path,
    output: str | Path,
    outputs: Sequence[str] = (RESTORED,),
    paired: Iterable[PairedFiles] = (),
    *,
    all_pages: bool = False,
) -> list[Job]:
    """The pictures of a file or folder with the names of their results.

    A result is named after its picture with ``.png``. Where two would collide, the input's
    extension stays inside the name.

    Args:
        source: picture, or folder that is searched recursively.
        output: folder for the results.
        outputs: result folders that the run fills.
        paired: files that belong to the pictures; they are no inputs.
        all_pages: take every page or frame of a file, not only the first. Those after the first
            are called ``name#2`` and so on, their results ``name.page2.png``.

    Raises:
        ConfigError: no such file or folder, no picture in it, or a result that would replace an
            input.
    """
    source, output, paired = Path(source), Path(output), list(paired)
    if source.is_dir():
        paths = _pictures_in(source, output, [files.path for files in paired])
        relatives = [path.relative_to(source).as_posix() for path in paths]
    elif os.path.lexists(source):
        paths, relatives = [source], [source.name]
    else:
        raise ConfigError(f"no file or folder at {source}")
    if not paths:
        kinds = ", ".join(ending.removeprefix(".") for ending in images.readable_endings())
        raise ConfigError(f"no pictures ({kinds}) in {source}")
    names = _result_names(relatives)
    for files in paired:
        files.pair_with(relatives)
    jobs = [Job(*parts) for parts in zip(paths, relatives, names, strict=True)]
    if all_pages:
        taken = Counter(job.output_name for job in jobs)
        jobs = [
            page if page.page in (None, 0) or not taken[page.output_name] else _long_named(page)
            for job in jobs
            for page in _pages_of(job)
        ]
    inputs = {os.path.realpath(path) for path in (*paths, *(files.path for files in paired))}
    for job in jobs:
        for name in outputs:
            if os.path.realpath(output / name / job.output_name) in inputs:
                raise ConfigError(
                    f"the result of {job.path} would replace {output / name / job.output_name}, "
                    f"which is an input; choose another output"
                )
    return jobs


def _long_named(job: Job) -> Job:
    return dataclasses.replace(job, output_name=job.long_name)


def _pages_of(job: Job) -> Iterator[Job]:
    """A job for every page of a file."""
    try:
        pages = images.count_pages(images.read_file(job.path))
    except PictureError:  # said when the picture is read
        pages = 1
    yield dataclasses.replace(job, page=0 if pages > 1 else None)
    for page in range(1, pages):
        number = page + 1
        name = str(Path(job.output_name).with_suffix("")) + f".page{number}.png"
        yield Job(job.path, f"{job.relative}#{number}", name, page)


def _pictures_in(source: Path, output: Path, paired: list[Path]) -> list[Path]:
    """The pictures below ``source``, without results and paired files that lie inside."""
    # The output may be inside the input, or be the same folder, whose marker tells the results.
    exclude = [output] if output.resolve() != source.resolve() else []
    exclude += [path for path in paired if path.resolve() != source.resolve()]
    found = images.find_images(source, exclude=tuple(exclude))
    found.say_what_was_left_out()
    return found.paths


def _result_names(relatives: list[str]) -> list[str]:
    """Names with ``.png``, each of them once."""
    short = [str(Path(relative).with_suffix(".png")) for relative in relatives]
    long = [f"{relative}.png" for relative in relatives]
    uses = Counter(short)
    taken = set(long)
    return [
        long_name if uses[short_name] > 1 or short_name in taken else short_name
        for short_name, long_name in zip(short, long, strict=True)
    ]


# -- loaded pictures -------------------------------------------------------------------------


@dataclass
class LoadedPicture:
    """A decoded picture on its way through the network.

    Attributes:
        job: the picture.
        image: (1,3,S,S) float32 RGB in [-1,1].
        picture: what its result keeps of it; without the pixels.
        paired: what was prepared from each paired file, by name.
        paired_sha256: hex digest of each paired file, by name.
    """

    job: Job
    image: torch.Tensor
    picture: images.Picture
    paired: dict[str, torch.Tensor]
    paired_sha256: dict[str, str]


def read_paired(paired: Mapping[str, PairedFiles], job: Job, sha256: str) -> dict[str, bytes]:
    """The files that belong to a picture, whose bytes have this hash, by name.

    Raises:
        PictureError: one of them is missing, or cannot be opened.
    """
    found = {}
    for name, files in paired.items():
        what = f"its {name}"
        try:
            path = files.path_for(job, sha256)
            what += f", {path}"
            found[name] = images.read_file(path)
        except PictureError as error:
            raise PictureError(f"{what}: {error}") from None
    return found


def prepare_paired(
    paired: Mapping[str, PairedFiles],
    found: Mapping[str, bytes],
    picture: images.Picture,
    max_pixels: int,
) -> dict[str, torch.Tensor]:
    """What the process needs of the files that :func:`read_paired` found.

    Raises:
        PictureError: one of them is not a picture, or does not fit ``picture``.
    """
    prepared = {}
    for name, data in found.items():
        try:
            decoded = images.decode_image(data, max_pixels=max_pixels)
            prepared[name] = paired[name].prepare(decoded, picture)
        except PictureError as error:
            raise PictureError(f"its {name}: {error}") from None
    return prepared
