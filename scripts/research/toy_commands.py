"""Every command that writes, on small pictures: what the programs that disturb commands run.

Each command runs in a child of the calling process, which has loaded everything already, so that
a run takes a second. What a run leaves can be compared with what an undisturbed one left.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
import yaml
from PIL import Image

from dr2pipe import cli
from dr2pipe.core.config import resource
from dr2pipe.core.official import FILES
from dr2pipe.faces.align import TEMPLATE

# Lines of records that differ from run to run.
_UNSTEADY = ("seconds", "time", "images_per_second", "data_wait_share")
# What is about the run, not its results.
_IGNORED = ("run.yaml", "config.yaml", "log.jsonl", "report.html", ".lock")
_IGNORED_FOLDERS = ("tensorboard", "checkpoints", "previews")
_LOADED_FIRST = (
    "dr2pipe.runs.restore",
    "dr2pipe.runs.inpaint",
    "dr2pipe.runs.cut_faces",
    "dr2pipe.runs.degrade",
    "dr2pipe.runs.embed",
    "dr2pipe.runs.video",
    "dr2pipe.runs.coarse",
    "dr2pipe.convert.write",
    "dr2pipe.evaluation.evaluate",
    "dr2pipe.evaluation.sweep",
    "dr2pipe.evaluation.fit_auto",
    "dr2pipe.evaluation.pristine",
    "dr2pipe.training.recipes",
)
_FETCHED = "gfpgan14"

Arguments = Callable[[Path], list[str]]


@dataclass
class Command:
    """A command, and the arguments by which it writes below a folder."""

    name: str
    arguments: Arguments


def load_everything() -> None:
    """Import what the commands need, before children are made."""
    torch.set_num_threads(1)  # children of a process with running threads may hang
    for name in _LOADED_FIRST:
        importlib.import_module(name)
    with suppress(ImportError):
        importlib.import_module("av")


def make_commands(folder: Path) -> dict[str, Command]:
    """The commands by name, on small files written into ``folder``.

    ``fit-auto`` reads the folder ``sweep`` inside, which :func:`make_sweep` fills; ``fetch`` reads
    ``mirror`` at the address in ``DR2PIPE_TOY_MIRROR``.
    """
    faces, masks = _write_pictures(folder)
    exemplar = str(faces / "group_0" / "face_0.png")
    protocol = _write_protocol(folder, faces)
    sweep = _write_sweep(folder, faces)
    checkpoint = write_checkpoint(folder / "face_part.pth")
    _write_download(folder / "mirror")
    coarse = str(resource("configs") / "coarse" / "portrait128.yaml")
    recipe = str(resource("configs") / "train" / "ddpm_portrait128.yaml")
    train = [
        f"data.path={faces}", "data.size=64", "total_steps=12", "batch_size=2",
        "save_every_steps=2", "preview_every_steps=100", "log_every_steps=4", "precision=fp32",
        "unet.channels=[32,32]", "unet.attention_sizes=[]", "schedule=constant",
    ]  # fmt: skip
    photos = folder / "photos"
    listed = str(_write_photos(photos))
    few_steps = [
        "batch_size=2", "dr2.num_evaluations=2", "faces.skip_good=false", "save_faces=true",
        "format=keep", "faces.name=file", f"faces.file={listed}",
    ]  # fmt: skip
    film = _write_film(folder / "film.mp4")
    cheap = [
        "dr2.enabled=false", "enhancer.name=bicubic", "enhancer.weights=null",
        "enhancer.options={size: 64}", "faces.skip_good=false", "identity.measure=false",
        "look_every=20", "faces.min_px=16",
    ]  # fmt: skip
    few = ["variants=2", "precision=fp32", "dr2.num_evaluations=2", "batch_size=2"]
    made: dict[str, Arguments] = {
        "restore": lambda out: [
            "restore", str(faces), str(out), "--aligned", "--set", "batch_size=2"
        ],
        "photos": lambda out: ["restore", str(photos), str(out), "--set", *few_steps],
        "inpaint": lambda out: [
            "inpaint", str(faces), str(masks), str(out), "--exemplar", exemplar
        ],
        "video": lambda out: [
            "video", str(film), str(out / "film.mp4"), "--set", *cheap
        ],
        "cut-faces": lambda out: [
            "cut-faces", str(photos), str(out), "--size", "32", "--min-px", "16", "--faces", listed
        ],
        "degrade": lambda out: ["degrade", str(faces), str(out), "--with", "severe"],
        "evaluate": lambda out: ["evaluate", str(protocol), f"output={out}"],
        "train": lambda out: ["train", recipe, f"output={out}", *train],
        "embed": lambda out: ["embed", str(faces), str(out)],
        "sweep": lambda out: ["sweep", str(sweep), f"output={out}"],
        "make-coarse": lambda out: [
            "make-coarse", coarse, f"input={faces}", f"output={out}", *few
        ],
        "fit-auto": lambda out: ["fit-auto", str(folder / "sweep"), str(out / "auto.json")],
        "fit-niqe": lambda out: [
            "fit-niqe", str(faces), str(out / "niqe.npz"), "--size", "64", "--block", "16"
        ],
        "convert": lambda out: [
            "convert", str(checkpoint), str(out / "model"), "--kind", "face_part_discriminator"
        ],
        "fetch": lambda out: [
            "fetch", _FETCHED, "--dir", str(out), "--mirror", os.environ["DR2PIPE_TOY_MIRROR"]
        ],
    }  # fmt: skip
    return {name: Command(name, arguments) for name, arguments in made.items()}


def make_sweep(folder: Path, commands: dict[str, Command]) -> None:
    """The sweep that ``fit-auto`` reads."""
    if run_child(commands["sweep"].arguments(folder / "sweep")) != 0:
        raise SystemExit("the sweep for fit-auto failed")


def _write_photos(folder: Path) -> Path:
    """60 photos of no face, one or two, and the list of the faces."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    listed = {}
    for i in range(60):
        coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        photo = Image.fromarray(coarse).resize((160, 120), Image.Resampling.BICUBIC)
        photo.save(folder / f"photo_{i}.png")
        centres = rng.uniform(30, 90, (i % 3, 2))
        sizes = rng.uniform(30, 70, (len(centres), 1, 1))
        landmarks = (TEMPLATE - 0.5) * sizes + centres[:, None]
        listed[f"photo_{i}.png"] = [{"landmarks": face.round(2).tolist()} for face in landmarks]
    path = folder.parent / "faces.json"
    path.write_text(json.dumps(listed))
    return path


def _write_film(path: Path) -> Path:
    """120 frames, three segments, of a portrait that moves; nothing where PyAV is not there."""
    with suppress(ImportError):
        import av

        with Image.open(Path(__file__).parents[2] / "docs" / "demo_photo.jpg") as photo:
            portrait = photo.convert("RGB").crop((300, 0, 620, 240)).resize((160, 120))
        with av.open(str(path), "w") as out:
            stream = out.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
            for i in range(120):
                frame = portrait.crop((i // 4, i // 6, i // 4 + 128, i // 6 + 96))
                out.mux(stream.encode(av.VideoFrame.from_image(frame)))
            out.mux(stream.encode(None))
    return path


def _write_pictures(folder: Path) -> tuple[Path, Path]:
    rng = np.random.default_rng(0)
    faces, masks = folder / "faces", folder / "masks"
    for i in range(8):
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        face = Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC)
        hole = np.zeros((64, 64), np.uint8)
        hole[20:40, 10 + i : 40] = 255
        for target, picture in ((faces, face), (masks, Image.fromarray(hole))):
            path = target / f"group_{i % 2}" / f"face_{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
    return faces, masks


def _write_protocol(folder: Path, faces: Path) -> Path:
    methods = {
        "input": {},
        "bicubic": {"enhancer": {"name": "bicubic", "options": {"size": 64}}},
    }
    content = _study(faces) | {"name": "toy", "methods": methods}
    return _write_yaml(folder / "protocol.yaml", content)


def _write_sweep(folder: Path, faces: Path) -> Path:
    content = _study(faces) | {
        "name": "toy",
        "dr2": {"model": "portrait128", "scheduler": "ddim", "num_evaluations": 2},
        "enhancer": {"name": "bicubic", "options": {"size": 64}},
        "grid": {"factor": [2], "tau": [4, 8], "omega": [12]},
        "with_off": True,
        "degradations": ["severe"],
    }
    return _write_yaml(folder / "sweep.yaml", content)


def _study(faces: Path) -> dict[str, object]:
    return {
        "clean": {"path": str(faces)},
        "size": 64,
        "degraded_size": 64,
        "degradations": ["mild", "severe", "speckle:3"],
        "metrics": ["psnr", "ssim"],
        "batch_size": 2,
    }


def _write_yaml(path: Path, content: dict[str, object]) -> Path:
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def write_checkpoint(path: Path) -> Path:
    """GFP-GAN's discriminator of an eye, by its official names, with random weights."""
    shapes: dict[str, tuple[int, ...]] = {}
    widths = [3, 64, 128, 128, 256, 256]
    for i, (width_in, width_out) in enumerate(itertools.pairwise(widths)):
        place = i % 2  # layers that halve the picture have their filter first
        shapes[f"conv{i + 1}.{place}.weight"] = (width_out, width_in, 3, 3)
        shapes[f"conv{i + 1}.{place + 1}.bias"] = (width_out,)
    shapes |= {"final_conv.0.weight": (1, 256, 3, 3), "final_conv.0.bias": (1,)}
    generator = torch.Generator().manual_seed(0)
    torch.save({k: torch.randn(s, generator=generator) for k, s in shapes.items()}, path)
    return path


def _write_download(mirror: Path) -> None:
    """What looks like a file of PyTorch."""
    mirror.mkdir()
    data = np.random.default_rng(0).bytes(300_000)
    (mirror / FILES[_FETCHED].name).write_bytes(b"PK\x03\x04" + data)


# -- running -----------------------------------------------------------------------------------


def run_child(
    arguments: list[str],
    *,
    kill_after: float | None = None,
    prepare: Callable[[], object] = lambda: None,
    output: Path | None = None,
) -> int | None:
    """Exit code of a command in a child process; None where it was killed.

    Args:
        arguments: of ``dr2pipe``.
        kill_after: seconds after which SIGKILL ends it.
        prepare: called in the child before the command.
        output: file for what it prints.
    """
    # Through a pipe: a limit of the file size must not cut off what the command says.
    reading, writing = os.pipe() if output is not None else (-1, os.open(os.devnull, os.O_WRONLY))
    child = os.fork()
    if child == 0:
        _run(arguments, prepare, writing)
    os.close(writing)
    if output is None:
        return _wait(child, kill_after)
    with open(reading, "rb") as source, open(output, "wb") as target:
        copying = threading.Thread(target=shutil.copyfileobj, args=(source, target))
        copying.start()
        code = _wait(child, kill_after)
        copying.join()
    return code


def _run(arguments: list[str], prepare: Callable[[], object], writing: int) -> NoReturn:
    """The child."""
    code = 1
    try:
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        # torch renews its pool of threads once after a fork; two threads that ask for it first at
        # the same time find none ("Invalid thread pool").
        torch.set_num_threads(1)
        prepare()
        code = cli.main(arguments)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _wait(child: int, kill_after: float | None) -> int | None:
    end = None if kill_after is None else time.monotonic() + kill_after
    while True:
        done, status = os.waitpid(child, 0 if end is None else os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if end is not None and time.monotonic() >= end:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            return None if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)
        time.sleep(0.001)


# -- comparing ---------------------------------------------------------------------------------


def content(folder: Path) -> dict[str, object]:
    """Every result below a folder: bytes of files, sorted records of JSONL files."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_dir() or path.name in _IGNORED or set(relative.parts) & {*_IGNORED_FOLDERS}:
            continue
        if path.suffix == ".jsonl":
            records = [json.loads(line) for line in path.read_text().splitlines()]
            steady = [{k: v for k, v in r.items() if k not in _UNSTEADY} for r in records]
            found[str(relative)] = sorted(json.dumps(r, sort_keys=True) for r in steady)
        else:
            found[str(relative)] = path.read_bytes()
    return found


def compare(result: dict[str, object], expected: dict[str, object]) -> Counter[str]:
    """What of ``expected`` is lost, doubled or damaged in ``result``."""
    faults: Counter[str] = Counter()
    faults["lost"] += len(expected.keys() - result.keys())
    faults["damaged"] += len(result.keys() - expected.keys())
    for name in expected.keys() & result.keys():
        records, wanted = result[name], expected[name]
        if isinstance(records, list) and isinstance(wanted, list):
            faults["doubled"] += sum(n > 1 for n in Counter(records).values())
            faults["lost"] += len(Counter(wanted) - Counter(records))
            faults["damaged"] += len(Counter(records) - Counter(wanted))
        elif records != wanted:
            faults["damaged"] += 1
    return faults
