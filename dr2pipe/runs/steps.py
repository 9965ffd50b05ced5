"""The steps of a picture through a run: load, process in batches, encode.

Every engine takes them from here: :class:`dr2pipe.runs.folder_run.FolderRun` on one machine, and
:mod:`dr2pipe.runs.on_ray` on many. Nothing here knows where pictures and results lie.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch

from dr2pipe.core import images
from dr2pipe.core.config import stable_hash, stable_seed
from dr2pipe.core.errors import is_out_of_memory
from dr2pipe.restoration.placing import PreparedPhoto
from dr2pipe.runs.batches import BatchResult, BeginBatch, ProcessBatch, Result
from dr2pipe.runs.encode import encode_results
from dr2pipe.runs.jobs import Job, LoadedPicture, PairedFiles, prepare_paired
from dr2pipe.runs.options import RunOptions

logger = logging.getLogger(__name__)


_Answer = TypeVar("_Answer")
Ready = torch.Tensor | list[torch.Tensor | PreparedPhoto]  # a batch, as ``process`` takes it


Batch = tuple[list[LoadedPicture], Ready | None]  # pictures, and ``Steps.together`` of them


@dataclass
class BegunBatch:
    """A batch that a GPU was given.

    Attributes:
        finish: waits for it and fetches its results.
        start: when it was given, by ``time.perf_counter``.
    """

    finish: Callable[[], BatchResult]
    start: float


@dataclass
class Processed:
    """A picture's results, not yet encoded.

    Attributes:
        loaded: the picture.
        pixels: by result folder; None: the picture is unchanged.
        record: what its record says besides.
        in_own_space: result folders whose pixels are in the colour space of the input file.
    """

    loaded: LoadedPicture
    pixels: Mapping[str, Result | None]
    record: dict[str, Any]
    in_own_space: frozenset[str]


@dataclass
class FailedPicture:
    """A picture that could not be processed."""

    job: Job
    error: Exception


@dataclass
class Steps:
    """What a run does with every picture.

    Attributes:
        process: computes the results of a batch.
        size: side in pixels that ``process`` takes; None leaves every picture as it is, which
            needs ``batch_size`` 1, or ``prepare``.
        output_size: side in pixels of its results, to which an alpha channel is resized; None
            leaves the alpha channel as it is.
        settings: everything that decides a result besides the picture. Pictures that were done
            with other settings are done again.
        outputs: result folders written for every picture, the main one first.
        seed: each picture's seed is derived from this one and its relative path.
        batch_size: pictures (or faces of photos) per call of ``process``; it becomes smaller
            where memory runs out.
        max_pixels: larger pictures are failures.
        keep_tint: show the process the luma of monochrome pictures, see ``Picture.tint``.
        stretch_contrast: mend dark, hazy and faded pictures first, see ``Picture.stretch_contrast``.
        keep_own: keep the pictures in their own colour space, see ``Picture.own``.
        prepare: makes of a photo of any shape, and its relative path, what ``process`` takes a
            list of; called in several threads. The photo's pixels are its own to keep.
        face_sizes: sides in pixels of the faces that the networks take and give, for photos.
        lacks: whether a finished picture's record lacks what this run wants, and has to be done
            again; None: none does.
        png_text: written into every result, besides its seed.
        paired: files that belong to each picture, by the name that ``process`` has for them.
        options: how files are read and results are encoded.
        on_gpu: whether ``process`` takes pictures of one size to a GPU.
        picture_seed: the seed of every picture, instead of the derived ones: to make one result
            again.
        begin: ``process`` in two parts, so that a GPU has the next batch before the results of
            one are fetched; None: there is nothing to gain.
    """

    process: ProcessBatch
    size: int | None
    output_size: int | None
    settings: dict[str, Any]
    outputs: Sequence[str]
    seed: int
    batch_size: int
    max_pixels: int = images.MAX_PIXELS
    keep_tint: bool = False
    stretch_contrast: bool = False
    keep_own: bool = False
    prepare: Callable[[images.Picture, str], PreparedPhoto] | None = None
    face_sizes: tuple[int, int] | None = None
    lacks: Callable[[dict[str, Any]], bool] | None = None
    png_text: dict[str, Any] = field(default_factory=dict)
    paired: Mapping[str, PairedFiles] = field(default_factory=dict)
    options: RunOptions = field(default_factory=RunOptions)
    on_gpu: bool = False
    picture_seed: int | None = None
    begin: BeginBatch | None = None
    _last_done: float = field(default=0.0, init=False, repr=False)  # when results were fetched

    @cached_property
    def settings_hash(self) -> str:
        """What a record says of the settings."""
        return stable_hash(self.settings)

    def seed_of(self, job: Job) -> int:
        """The seed of a picture; its relative path decides, not the engine."""
        if self.picture_seed is not None:
            return self.picture_seed
        return stable_seed(self.seed, job.relative)

    # -- load --------------------------------------------------------------------------------

    def load(
        self, job: Job, data: bytes, sha256: str, paired: Mapping[str, bytes] | None = None
    ) -> LoadedPicture:
        """Decode a picture and make it ready for ``process``.

        Args:
            job: the picture.
            data: the bytes of its file.
            sha256: their hash.
            paired: the bytes of its paired files by name.

        Raises:
            PictureError: the file is no picture, or does not fit its use.
        """
        picture = images.decode_image(
            data,
            max_pixels=self.max_pixels,
            page=job.page,
            keep_own=self.keep_own,
            whole_photo=self.prepare is not None,
            sha256=sha256,
        )
        if self.stretch_contrast:
            picture.stretch_contrast()
        if self.keep_tint:
            picture.set_tint_aside()
        paired = paired or {}
        prepared = prepare_paired(self.paired, paired, picture, self.max_pixels)
        if self.prepare is not None:
            ready: torch.Tensor | PreparedPhoto = self.prepare(picture, job.relative)
        else:
            ready = self._resized(picture)
        # The full-size pixels are not needed any more, and many pictures wait in memory.
        picture = dataclasses.replace(picture, pixels=np.empty((0, 0, 3), np.uint8))
        hashes = {name: images.hash_bytes(found) for name, found in paired.items()}
        return LoadedPicture(job, ready, picture, prepared, hashes)

    def _resized(self, picture: images.Picture) -> torch.Tensor:
        """(1,3,S,S) in [-1,1]; the alpha channel becomes as large as the result."""
        height, width = picture.pixels.shape[:2]
        if picture.alpha is not None and self.output_size is not None:
            side = (self.output_size, self.output_size)
            picture.alpha = images.resize_pixels(images.reduced(picture.alpha), side)
        if self.output_size is not None and min(height, width) > self.output_size:
            picture.warnings.append(
                f"{width}x{height} reduced: the result has {self.output_size} pixels a side"
            )
        if self.size is None:
            return images.to_tensor(picture.pixels)
        if height != width:
            picture.warnings.append(f"{width}x{height} squeezed to a square")
        return picture.resized(self.size)

    # -- process -----------------------------------------------------------------------------

    def in_batches(self, pictures: Iterable[LoadedPicture]) -> Iterator[list[LoadedPicture]]:
        """Pictures in batches of ``batch_size``, or photos with so many faces together."""
        batch: list[LoadedPicture] = []
        filled = 0.0
        for loaded in pictures:
            batch.append(loaded)
            filled += loaded.share_of_batch(self.batch_size)
            if filled >= 1 - 1e-9:
                yield batch
                batch, filled = [], 0.0
        if batch:
            yield batch

    def process_batches(self, batches: Iterable[Batch]) -> Iterator[Processed | FailedPicture]:
        """Results of all batches in order. A GPU has the next batch before those of one are fetched."""
        if self.begin is None:
            for batch, ready in batches:
                yield from self.process_batch(batch, ready)
            return
        before: Iterator[Processed | FailedPicture] = iter(())
        remaining = iter(batches)
        while True:
            try:
                batch, ready = next(remaining)
            except StopIteration:
                yield from before
                return
            except Exception:
                yield from before  # what the GPU has is not lost
                raise
            following = self.process_batch(batch, ready, self._begun(self.begin, batch, ready))
            yield from before
            before = following

    def _begun(
        self, begin: BeginBatch, batch: list[LoadedPicture], ready: Ready | None
    ) -> BegunBatch | None:
        """A batch that a GPU was given; None where it was not."""
        if len(batch) > self.batch_size:  # memory has run out
            return None
        start = time.perf_counter()
        try:
            return BegunBatch(self._call(begin, batch, ready), start)
        except Exception:  # process_batch tries again, and says why it fails
            return None

    def process_batch(
        self,
        batch: list[LoadedPicture],
        ready: Ready | None = None,
        begun: BegunBatch | None = None,
    ) -> Iterator[Processed | FailedPicture]:
        """Results of a batch; where it fails, smaller parts are tried, down to one picture.

        ``ready`` is what ``together`` gives for the batch, if that is done already, and ``begun``
        says that a GPU has it already.
        """
        size = len(batch)
        while batch:
            if self.size is not None and begun is None:  # memory may have run out meanwhile
                size = min(size, self.batch_size)
            part = batch[:size]
            start = time.perf_counter()
            is_begun = begun is not None
            try:
                if begun is not None:
                    finish, start = begun.finish, max(begun.start, self._last_done)
                    begun = None
                    result = finish()
                else:
                    result = self._call(self.process, part, None if ready is None else ready[:size])
            # The one place that carries on: the picture that failed is recorded.
            except Exception as error:
                if torch.cuda.is_available() and is_out_of_memory(error):
                    torch.cuda.empty_cache()
                if is_begun:  # by itself it may go well, or it fails again
                    continue
                if len(part) == 1:
                    yield FailedPicture(part[0].job, error)
                    batch, ready = batch[1:], None if ready is None else ready[1:]
                    continue
                size = len(part) // 2
                if is_out_of_memory(error):
                    self.batch_size = size
                    logger.warning("out of memory: going on with batches of %d", size)
                continue
            self._last_done = time.perf_counter()
            seconds = round((self._last_done - start) / len(part), 4)
            for i, loaded in enumerate(part):
                warnings = loaded.picture.warnings + (result.warnings[i] if result.warnings else [])
                record: dict[str, Any] = {"seconds": seconds, "warnings": warnings}
                if result.notes[i]:
                    record["notes"] = result.notes[i]
                if loaded.picture.stretch is not None:
                    record["contrast"] = dataclasses.asdict(loaded.picture.stretch)
                if result.records is not None:
                    record |= result.records[i]
                yield Processed(loaded, result.pixels[i], record, result.in_own_space)
            batch = batch[len(part) :]
            ready = None if ready is None else ready[len(part) :]

    def _call(
        self, call: Callable[..., _Answer], batch: list[LoadedPicture], ready: Ready | None
    ) -> _Answer:
        return call(
            self.together(batch) if ready is None else ready,
            [self.seed_of(loaded.job) for loaded in batch],
            [loaded.picture for loaded in batch],
            **{name: [loaded.paired[name] for loaded in batch] for name in self.paired},
        )

    def together(self, batch: list[LoadedPicture]) -> Ready:
        """A batch as ``process`` takes it: pictures of one size stacked, photos in a list."""
        ready = [loaded.ready for loaded in batch]
        tensors = [one for one in ready if isinstance(one, torch.Tensor)]
        if not tensors:
            return ready
        if not self.on_gpu:
            return torch.cat(tensors)
        pinned = torch.empty((len(tensors), *tensors[0].shape[1:]), pin_memory=True)
        return torch.cat(tensors, out=pinned)  # copied to a GPU without a wait

    # -- encode ------------------------------------------------------------------------------

    def encode(self, done: Processed, read_again: Callable[[], bytes]) -> dict[str, bytes]:
        """The files of a picture's results: {path below the output: content}.

        Args:
            done: the results.
            read_again: the bytes of the picture's file, which are copied where it is unchanged.
        """
        text = self.png_text | {"seed": self.seed_of(done.loaded.job)}
        return encode_results(
            done.loaded,
            done.pixels,
            self.names_of(done.loaded.job),
            text=text,
            in_own_space=done.in_own_space,
            options=self.options,
            read_again=read_again,
        )

    def names_of(self, job: Job) -> dict[str, str]:
        """{result folder: path of the picture's file in it}, the main one first."""
        return {
            folder: job.name_in(folder, is_main=folder == self.outputs[0])
            for folder in self.outputs
        }

    def record_of(self, done: Processed, files: Mapping[str, bytes]) -> dict[str, Any]:
        """The record of a finished picture, whose files are on the disk."""
        loaded = done.loaded
        return {
            "path": loaded.job.relative,
            "sha256": loaded.picture.sha256,
            "settings": self.settings_hash,
            "output": self.names_of(loaded.job)[self.outputs[0]],
            "files": {name: [len(data), images.hash_bytes(data)] for name, data in files.items()},
            **({"paired_sha256": loaded.paired_sha256} if loaded.paired_sha256 else {}),
            "seed": self.seed_of(loaded.job),
            **done.record,
        }


def takes_nothing(error: Exception) -> bool:
    """Whether no further result could be written either: a full or a read-only disk."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
