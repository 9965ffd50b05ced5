"""Send mutated files through every reader and count what should never happen.

    python scripts/research/hostile_files.py [--files 1000] [--seed 0] [--keep FOLDER]

Every file is a seeded mutation of a small valid one. A reader may refuse it with a Dr2pipeError,
and a folder run may record it as failed. Anything else is a traceback. Exits with 1 if there is a
traceback or a hang.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import hostile_corpus as corpus
import numpy as np
from PIL import Image

from dr2pipe.convert import CONVERTERS, convert_checkpoint
from dr2pipe.core import images
from dr2pipe.core.config import load_config, to_yaml
from dr2pipe.core.errors import CheckpointError, ConfigError, Dr2pipeError, PictureError
from dr2pipe.core.markers import marked, read_marker
from dr2pipe.data.folders import FaceDataset, write_pictures
from dr2pipe.degradations import check_degradation
from dr2pipe.diffusion.auto import load_auto
from dr2pipe.diffusion.networks import load_ddpm
from dr2pipe.diffusion.pipeline import DR2Pipeline
from dr2pipe.runs.degrade import DegradeConfig, degrade_folder
from dr2pipe.runs.embed import read_parameters
from dr2pipe.runs.restore import RestoreConfig, describe_notes

LIMIT_S = 10


class Hang(BaseException):
    """A reader took longer than the limit."""


@dataclass
class Reader:
    """A kind of file: valid ones, what reads them, and the errors that may come of it."""

    corpus: corpus.Corpus
    read: Callable[[Path], object]
    errors: type[Dr2pipeError] | tuple[type[Dr2pipeError], ...] = Dr2pipeError
    share: float = 0.1


def read_picture(path: Path) -> None:
    """Decode a picture, with its own samples too, and write it with its metadata."""
    data = images.read_file(path)
    images.count_pages(data)
    with suppress(PictureError):
        images.check_file(path)
    picture = images.decode_image(data, keep_own=True)
    own = picture.own
    assert own is not None
    kept = own.changed(picture.pixels, np.ones(picture.pixels.shape[:2], bool))
    for pixels, profile, chunks in (
        (picture.pixels, picture.profile, ()),
        (kept, own.profile, own.chunks),
    ):
        images.encode_png(
            pixels,
            alpha=picture.alpha,
            profile=profile,
            colour_chunks=chunks,
            metadata=picture.metadata,
        )
    picture.set_tint_aside()


def read_config(path: Path) -> None:
    """Take a YAML file for the settings of a command, for a degradation, and for a marker."""
    shutil.copy(path, path.parent / "run.yaml")
    read_marker(path.parent)
    with suppress(Dr2pipeError):
        check_degradation(str(path))
    load_config(RestoreConfig, path, ["input=a", "output=b"])


def read_records(path: Path) -> None:
    """Go on with a folder run whose records were changed."""
    source, output = path.parent / "in", path.parent / "out"
    source.mkdir()
    output.mkdir()
    Image.new("RGB", (16, 16), "red").save(source / "a.png")
    (output / "run.yaml").write_text(to_yaml(marked({}, ["degraded"])))
    shutil.copy(path, output / path.name)
    summary = degrade_folder(DegradeConfig(str(source), str(output), "mild"))
    describe_notes(output)
    if summary.exit_code != 0:
        raise AssertionError((output / "failures.jsonl").read_text())


def read_faces(path: Path) -> None:
    """Take faces for training, and write them as pictures."""
    dataset = FaceDataset(path, size=corpus.SIDE)
    dataset[0, 0]
    write_pictures(path, path.parent / "written")


def read_weights(path: Path) -> None:
    """Convert a checkpoint, as each kind in turn."""
    kinds = sorted(CONVERTERS)
    convert_checkpoint(path, kinds[path.stat().st_size % len(kinds)])


def read_model(path: Path) -> None:
    """Load a pipeline folder of which one file is another, by both ways into the package."""
    folder = path.parent / "model"
    corpus.save_pipeline(folder)
    shutil.copy(path, folder / path.name.replace("+", "/"))
    refused = []
    for load in (load_ddpm, DR2Pipeline.from_pretrained):
        try:
            load(folder)
        except (CheckpointError, ConfigError) as error:
            refused.append(error)
    if refused:
        raise refused[0]


def readers() -> dict[str, Reader]:
    """Every kind of file, with its share of all files."""
    return {
        "picture": Reader(corpus.pictures(), read_picture, PictureError, 0.4),
        "records": Reader(corpus.records(), read_records),
        "config": Reader(corpus.configs(), read_config, ConfigError),
        "table": Reader(corpus.tables(), lambda path: read_parameters(path.parent)),
        "faces": Reader(corpus.arrays(), read_faces),
        "model": Reader(corpus.models(), read_model, (CheckpointError, ConfigError), 0.05),
        "automatic": Reader(
            corpus.automatic(), lambda path: load_auto(str(path)), ConfigError, 0.05
        ),
        "weights": Reader(corpus.weights(), read_weights, (CheckpointError, ConfigError)),
    }


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise :class:`Hang` in the block after so many seconds."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def hostile_file(reader: Reader, rng: random.Random, folder: Path) -> Path:
    """Write a mutation of one of the reader's files into an empty folder."""
    name = rng.choice(sorted(reader.corpus))
    everything = list(reader.corpus.values())
    path = folder / name
    path.write_bytes(corpus.mutate(reader.corpus[name], rng, everything))
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the files that were not refused well")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    os.environ["TQDM_DISABLE"] = "1"
    before = peak_mb()
    counts: dict[str, dict[str, int]] = {}
    for kind, reader in readers().items():
        count = counts.setdefault(
            kind, dict.fromkeys(("files", "refused", "tracebacks", "hangs"), 0)
        )
        for number in range(round(options.files * reader.share)):
            rng = random.Random(f"{options.seed} {kind} {number}")
            with tempfile.TemporaryDirectory() as folder:
                path = hostile_file(reader, rng, Path(folder))
                verdict = send(reader, path)
                count["files"] += 1
                if verdict in count:
                    count[verdict] += 1
                if verdict in ("tracebacks", "hangs"):
                    print(f"{verdict}: {kind} {number} ({path.name})", file=sys.stderr)
                    if options.keep:
                        options.keep.mkdir(parents=True, exist_ok=True)
                        shutil.copy(path, options.keep / f"{kind}_{number}_{path.name}")
        print(kind, json.dumps(count), flush=True)
    total = {name: sum(count[name] for count in counts.values()) for name in counts["picture"]}
    print("all", json.dumps(total | {"peak_mb": peak_mb(), "peak_mb_before": before}))
    return int(total["tracebacks"] + total["hangs"] > 0)


def send(reader: Reader, path: Path) -> str:
    """Read a file; returns ``read``, ``refused``, ``tracebacks`` or ``hangs``."""
    start = time.monotonic()
    verdict = "read"
    try:
        with time_limit(LIMIT_S):
            reader.read(path)
    except reader.errors:
        verdict = "refused"
    except Hang:
        verdict = "hangs"
    except Exception:
        traceback.print_exc()
        verdict = "tracebacks"
    return "hangs" if time.monotonic() - start > LIMIT_S else verdict


def peak_mb() -> int:
    """The most memory that this process has used."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    sys.exit(main())
