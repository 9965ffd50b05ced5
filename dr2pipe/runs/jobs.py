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
from dr2pipe.restoration.placing import PreparedPhoto
from dr2pipe.runs.options import RunOptions
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
        return f"{self.relative}{Path(self.output_name).suffix}"

    def name_in(self, folder: str, *, is_main: bool) -> str:
        """Path of its file in a result folder; all but the main one hold PNG files."""
        is_png = is_main or self.output_name.lower().endswith(".png")
        return f"{folder}/{self.output_name}" + ("" if is_png else ".png")


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
    options: RunOptions | None = None,
) -> list[Job]:
    """The pictures of a file or folder with the names of their results.

    A result is named after its picture, with the ending of the results' format. Where two would
    collide, the input's extension stays inside the name.

    Args:
        source: picture, or folder that is searched recursively.
        output: folder for the results.
        outputs: result folders that the run fills.
        paired: files that belong to the pictures; they are no inputs.
        options: the results' format, and whether every page or frame of a file is taken. Those
            after the first are called ``name#2`` and so on, their results ``name.page2.png``.

    Raises:
        ConfigError: no such file or folder, no picture in it, or a result that would replace an
            input.
    """
    source, output, paired = Path(source), Path(output), list(paired)
    options = options or RunOptions()
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
    names = result_names(relatives, options.format)
    for files in paired:
        files.pair_with(relatives)
    jobs = [Job(*parts) for parts in zip(paths, relatives, names, strict=True)]
    if options.all_pages():
        taken = Counter(job.output_name for job in jobs)
        jobs = [
            page if page.page in (None, 0) or not taken[page.output_name] else _long_named(page)
            for job in jobs
            for page in _pages_of(job)
        ]
    inputs = {os.path.realpath(path) for path in (*paths, *(files.path for files in paired))}
    for job in jobs:
        for name in outputs:
            result = output / job.name_in(name, is_main=name == outputs[0])
            if os.path.realpath(result) in inputs:
                raise ConfigError(
                    f"the result of {job.path} would replace {result}, which is an input; "
                    f"choose another output"
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
        first = Path(job.output_name)
        name = f"{first.with_suffix('')}.page{number}{first.suffix}"
        yield Job(job.path, f"{job.relative}#{number}", name, page)


def _pictures_in(source: Path, output: Path, paired: list[Path]) -> list[Path]:
    """The pictures below ``source``, without results and paired files that lie inside."""
    # The output may be inside the input, or be the same folder, whose marker tells the results.
    exclude = [output] if output.resolve() != source.resolve() else []
    exclude += [path for path in paired if path.resolve() != source.resolve()]
    found = images.find_images(source, exclude=tuple(exclude))
    found.say_what_was_left_out()
    return found.paths


def result_names(relatives: list[str], format: str) -> list[str]:
    """Names with the ending of the format, each of them once."""
    endings = [ending_of(relative, format) for relative in relatives]
    named = list(zip(relatives, endings, strict=True))
    short = [str(Path(relative).with_suffix(ending)) for relative, ending in named]
    long = [relative + ending for relative, ending in named]
    uses = Counter(short)
    taken = set(long)
    return [
        long_name if uses[short_name] > 1 or short_name in taken else short_name
        for short_name, long_name in zip(short, long, strict=True)
    ]


def ending_of(relative: str, format: str) -> str:
    """The ending of a picture's result, as ``RunOptions.format`` says."""
    ending = Path(relative).suffix
    if format != "keep":
        return f".{format}"
    return ending if ending.lower() in (".png", *images.KINDS) else ".png"


# -- loaded pictures -------------------------------------------------------------------------


@dataclass
class LoadedPicture:
    """A decoded picture on its way through the network.

    Attributes:
        job: the picture.
        ready: what the process takes: (1,3,S,S) float32 RGB in [-1,1], or a photo and its faces.
        picture: what its result keeps of it; without the pixels.
        paired: what was prepared from each paired file, by name.
        paired_sha256: hex digest of each paired file, by name.
    """

    job: Job
    ready: torch.Tensor | PreparedPhoto
    picture: images.Picture
    paired: dict[str, torch.Tensor]
    paired_sha256: dict[str, str]

    def share_of_batch(self, batch_size: int) -> float:
        """How much of a batch of ``batch_size`` faces it fills, from 0 to 1 or more."""
        if isinstance(self.ready, PreparedPhoto):
            return self.ready.share_of_batch(batch_size)
        return 1 / batch_size


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
            decoded = images.decode_image(data, max_pixels=max_pixels, whole_photo=True)
            prepared[name] = paired[name].prepare(decoded, picture)
        except PictureError as error:
            raise PictureError(f"its {name}: {error}") from None
    return prepared
