"""The pictures of a folder run, the names of their results, and the files that belong to them."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from dr2pipe.core import images
from dr2pipe.core.errors import ConfigError, PictureError

# Folders that the commands fill below their output.
_RESULTS = re.compile(r"restored|coarse|compare|spread|repaired|degraded|mixtures|inpainted(_\d+)?")


@dataclass(frozen=True)
class Job:
    """One picture to do; ``output_name`` is its path below each output subfolder."""

    path: Path
    relative: str
    output_name: str


class Partners:
    """Files that belong to the pictures of a run, such as masks: one for all, or one by name.

    Args:
        path: a picture for all, or a folder in which each picture has a partner with its own
            relative path; only the extension may differ.
        prepare: makes what the process needs of a partner and of its picture; a PictureError
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

    def of(self, job: Job) -> Path:
        """The partner of a picture.

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
            raise PictureError(f"one of its name is needed in {self.path}, and there is {names}")
        return found[0]


def find_jobs(
    source: str | Path,
    output: str | Path,
    outputs: Sequence[str] = ("restored",),
    partners: Iterable[Partners] = (),
) -> list[Job]:
    """The pictures of a file or folder with the names of their results.

    A result is named after its picture with ``.png``; where two would collide, the input's
    extension stays inside the name.

    Raises:
        ConfigError: no such file or folder, or no picture in it.
    """
    source, output = Path(source), Path(output)
    if source.is_dir():
        # The output may lie inside the input, or be the same folder; results are no inputs, of
        # this command or another.
        inside = () if output.resolve() == source.resolve() else (output,)
        # Nor are masks and the like that lie inside.
        inside += tuple(p.path for p in partners if p.path.resolve() != source.resolve())
        folders = output.glob("*/") if output.is_dir() else ()
        results = tuple(
            path
            for path in folders
            if (path.name in outputs or _RESULTS.fullmatch(path.name))
            and path.resolve() != source.resolve()
        )
        paths = list(images.find_images(source, exclude=inside + results))
        relatives = [path.relative_to(source).as_posix() for path in paths]
    elif os.path.lexists(source):
        paths, relatives = [source], [source.name]
    else:
        raise ConfigError(f"no file or folder at {source}")
    if not paths:
        kinds = ", ".join(images.EXTENSIONS)
        raise ConfigError(f"no pictures ({kinds}) in {source}")
    short = [str(Path(relative).with_suffix(".png")) for relative in relatives]
    long = [f"{relative}.png" for relative in relatives]
    uses = Counter(short)
    taken = set(long)
    names = [
        long_name if uses[short_name] > 1 or short_name in taken else short_name
        for short_name, long_name in zip(short, long, strict=True)
    ]
    jobs = [Job(*parts) for parts in zip(paths, relatives, names, strict=True)]
    inputs = {os.path.realpath(path) for path in (*paths, *(p.path for p in partners))}
    for job in jobs:
        for name in outputs:
            if os.path.realpath(output / name / job.output_name) in inputs:
                raise ConfigError(
                    f"the result of {job.path} would replace {output / name / job.output_name}, "
                    f"which is an input; choose another output"
                )
    return jobs


def is_foreign(path: Path) -> bool:
    """Whether a file is there that no run wrote; its results carry a text."""
    if not path.exists():
        return False
    try:
        with Image.open(path) as picture:
            return "dr2pipe" not in getattr(picture, "text", {})
    except OSError:
        return True
