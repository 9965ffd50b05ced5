"""The pictures of a folder run: their paths, the names of their results, and paired files."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from dr2pipe.core import images
from dr2pipe.core.errors import ConfigError, PictureError
from dr2pipe.runs.result_folders import RESTORED, is_result_folder


@dataclass(frozen=True)
class Job:
    """One picture to process.

    Attributes:
        path: the file.
        relative: its path below the input folder; seeds and shards depend on it.
        output_name: path of its result below each result folder.
    """

    path: Path
    relative: str
    output_name: str


class PairedFiles:
    """Files that belong to the pictures of a run, such as masks: one for all, or one by name.

    Args:
        path: a picture for all, or a folder that holds a file for each picture, at the same
            relative path; only the extension may differ.
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
        self._by_name: dict[str, list[Path]] | None = None
        if self.path.is_dir():
            self._by_name = defaultdict(list)
            for found in images.find_images(self.path, with_results=True):
                relative = found.relative_to(self.path)
                self._by_name[relative.with_suffix("").as_posix()].append(found)
        elif not os.path.lexists(self.path):
            raise ConfigError(f"no file or folder at {path}")

    def path_for(self, job: Job) -> Path:
        """The file that belongs to a picture.

        Raises:
            PictureError: there is none, or there are several.
        """
        if self._by_name is None:
            return self.path
        found = self._by_name.get(Path(job.relative).with_suffix("").as_posix(), [])
        same = [path for path in found if path.relative_to(self.path).as_posix() == job.relative]
        found = same or found
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or "none"
            raise PictureError(
                f"exactly one file of its name must be in {self.path}: found {names}"
            )
        return found[0]


def find_jobs(
    source: str | Path,
    output: str | Path,
    outputs: Sequence[str] = (RESTORED,),
    paired: Iterable[PairedFiles] = (),
) -> list[Job]:
    """The pictures of a file or folder with the names of their results.

    A result is named after its picture with ``.png``. Where two would collide, the input's
    extension stays inside the name.

    Args:
        source: picture, or folder that is searched recursively.
        output: folder for the results.
        outputs: result folders that the run fills.
        paired: files that belong to the pictures; they are no inputs.

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
        kinds = ", ".join(images.EXTENSIONS)
        raise ConfigError(f"no pictures ({kinds}) in {source}")
    names = _result_names(relatives)
    jobs = [Job(*parts) for parts in zip(paths, relatives, names, strict=True)]
    inputs = {os.path.realpath(path) for path in (*paths, *(files.path for files in paired))}
    for job in jobs:
        for name in outputs:
            if os.path.realpath(output / name / job.output_name) in inputs:
                raise ConfigError(
                    f"the result of {job.path} would replace {output / name / job.output_name}, "
                    f"which is an input; choose another output"
                )
    return jobs


def _pictures_in(source: Path, output: Path, paired: list[Path]) -> list[Path]:
    """The pictures below ``source``, without results and paired files that lie inside."""
    # The output may be inside the input, or be the same folder.
    exclude = [] if output.resolve() == source.resolve() else [output]
    folders = [folder for folder in output.glob("*/") if is_result_folder(folder.name)]
    exclude += [path for path in (*folders, *paired) if path.resolve() != source.resolve()]
    return list(images.find_images(source, exclude=tuple(exclude)))


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


def is_foreign(path: Path) -> bool:
    """Whether a file is there that no run wrote. Results of runs carry a text of theirs."""
    if not path.exists():
        return False
    try:
        with Image.open(path) as picture:
            return "dr2pipe" not in getattr(picture, "text", {})
    except OSError:
        return True


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


def read_paired(paired: Mapping[str, PairedFiles], job: Job) -> dict[str, bytes]:
    """The files that belong to a picture, by name.

    Raises:
        PictureError: one of them is missing, or cannot be opened.
    """
    found = {}
    for name, files in paired.items():
        try:
            found[name] = images.read_file(files.path_for(job))
        except PictureError as error:
            raise PictureError(f"its {name}: {error}") from None
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
