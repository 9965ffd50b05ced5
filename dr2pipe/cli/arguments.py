"""The arguments of every command; each sets ``run``, a function of the parsed options."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dr2pipe import __version__
from dr2pipe.cli import commands
from dr2pipe.cli.models import add_models
from dr2pipe.cli.options import add_config, add_set, whole_number
from dr2pipe.cli.people import add_people
from dr2pipe.cli.studies import add_studies
from dr2pipe.cli.videos import add_video

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_SCRIPTS = {
    "restore": "Restore a picture or a folder of pictures with the settings of a YAML file.",
    "train": "Train the recipe of a YAML file.",
    "make_coarse": "Make coarse faces for training an enhancer.",
    "evaluate": "Compare methods on degraded clean faces by the protocol of a YAML file.",
    "sweep": "Try the settings of stage 1 that a YAML file lists on degraded clean faces.",
}


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``dr2pipe``."""
    parser = argparse.ArgumentParser(
        prog="dr2pipe",
        description="Restore badly degraded faces: a diffusion model removes the degradation, "
        "an enhancer adds the detail.",
    )
    parser.add_argument("--version", action="version", version=f"dr2pipe {__version__}")
    to = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    groups = (
        *(_add_restore, _add_restore_many, add_video, add_people, _add_report, _add_verify),
        *(add_models, _add_inpaint, _add_cut_faces),
        *(_add_degrade, add_studies),
    )
    for add in groups:
        add(to)
    command = to.add_parser("doctor", help="versions, devices, and what will be used")
    command.set_defaults(run=commands.doctor)
    return parser


def parse_script_arguments(
    command: str, arguments: Sequence[str] | None = None
) -> tuple[str, list[str]]:
    """CONFIG and the overrides of a script that does what ``command`` says."""
    parser = argparse.ArgumentParser(description=_SCRIPTS[command])
    add_config(parser)
    options = parser.parse_args(arguments)
    return options.config, options.overrides


def _add_run_options(command: argparse.ArgumentParser) -> None:
    """What all commands take that turn a folder of pictures into a folder of results."""
    command.add_argument(
        "--pages",
        choices=("first", "all"),
        default="first",
        help="first or all of the pages or frames of a file (first)",
    )
    command.add_argument(
        "--merge", action="store_true", help="add to an output that holds results of another input"
    )
    command.add_argument(
        "--verify", action="store_true", help="compare hashes of finished results, not only sizes"
    )


def _add_restore(to: Commands) -> None:
    command = to.add_parser("restore", help="restore the faces of a photo or a folder of photos")
    command.add_argument("input", help="photo or folder of photos (recursive)")
    command.add_argument("output", help="folder for the results")
    choice = command.add_mutually_exclusive_group()
    choice.add_argument("--preset", default="default", help="name in configs/restore (default)")
    choice.add_argument("--config", help="YAML file of your own")
    command.add_argument(
        "--aligned", action="store_true", help="the inputs are aligned faces, one in each"
    )
    command.add_argument(
        "--scale", type=int, choices=(1, 2, 4), help="enlarge the photos so much (1)"
    )
    command.add_argument(
        "--format",
        choices=("png", "jpg", "webp", "keep"),
        help="of the results; keep: JPEG and WebP photos stay so (png)",
    )
    command.add_argument(
        "--quality", type=whole_number, help="1..100 of jpg results (that of a JPEG photo, or 95)"
    )
    command.add_argument(
        "--min-identity",
        type=float,
        help="0..1: leave faces as they are that come out less alike; see docs/restore.md",
    )
    command.add_argument(
        "--reference", help="folder of photos of the person; takes --set samples=K, K at least 2"
    )
    command.add_argument(
        "--strict", action="store_true", help="a photo in which no face is found is a failure"
    )
    command.add_argument(
        "--mask", help="fill these marked places of faces first; picture, or folder with one each"
    )
    command.add_argument(
        "--exemplar",
        help="with --aligned: face whose style fills the holes (default: the picture itself)",
    )
    command.add_argument(
        "--bits",
        choices=("keep", "8"),
        help="keep: 16-bit pictures give 16-bit results; 8: all results have 8 bits (keep)",
    )
    command.add_argument(
        "--colour",
        choices=("keep", "free"),
        help="keep: black-and-white and tinted pictures get no other colours; free: they may (keep)",
    )
    command.add_argument(
        "--contrast",
        choices=("keep", "stretch"),
        help="stretch: bring dark, hazy and faded pictures to the usual range of levels first (keep)",
    )
    _add_run_options(command)
    add_set(command)

    command.set_defaults(run=commands.restore_with_options, pages=None)  # the preset may say more


def _add_restore_many(to: Commands) -> None:
    about = "restore on a Ray cluster, over object storage (millions of photos), see docs/scale.md"
    command = to.add_parser("restore-many", help=about)
    command.add_argument(
        "input", help="folder by path or URL (s3://, gs://, ...), or a .csv or .parquet of URLs"
    )
    command.add_argument("output", help="folder for the results, by path or URL")
    command.add_argument(
        "--preset", default="default", help="name in configs/restore, or a YAML file (default)"
    )
    command.add_argument(
        "--aligned", action="store_true", help="the inputs are aligned faces, one in each"
    )
    command.add_argument(
        "--actors",
        type=whole_number,
        help="copies of the networks, at most (one for each GPU or core)",
    )
    command.add_argument(
        "--gpus-per-actor", type=float, help="may be a part of one (1 where there are GPUs, or 0)"
    )
    command.add_argument(
        "--cpus-per-actor", type=whole_number, default=1, help="cores of each actor (1)"
    )
    command.add_argument(
        "--block", type=whole_number, default=16, help="pictures of a task, at most (16)"
    )
    command.add_argument(
        "--retries",
        type=whole_number,
        default=2,
        help="how often later runs try a picture that failed (2)",
    )
    command.add_argument(
        "--join", action="store_true", help="help another run that is writing into this output"
    )
    command.add_argument("--price", type=float, help="of one actor for an hour, for the report")
    add_set(command)
    command.set_defaults(run=commands.restore_many)


def _add_inpaint(to: Commands) -> None:
    command = to.add_parser("inpaint", help="fill holes in the style of an exemplar")
    command.add_argument("input", help="picture or folder (recursive) of aligned faces")
    command.add_argument(
        "mask", help="white or transparent where holes are: a picture for all, or one each by name"
    )
    command.add_argument("output", help="folder for the results")
    command.add_argument(
        "--exemplar", required=True, help="face whose style is taken: for all, or one each by name"
    )
    command.add_argument("--mix-with", help="second exemplar; mixtures/ shows the styles of both")
    command.add_argument(
        "--mix-at",
        type=whole_number,
        help="take the styles from this row on from the second exemplar",
    )
    command.add_argument(
        "--samples", type=whole_number, default=1, help="results of each picture (1)"
    )
    command.add_argument("--model", default="exegan_64", help="EXE-GAN: name, folder or hub id")
    command.add_argument(
        "--style-encoder",
        help="style encoder: name or folder (default: the one in the model's folder)",
    )
    command.add_argument(
        "--seed", type=whole_number, default=0, help="of the random part of the filling (0)"
    )
    _add_run_options(command)
    command.set_defaults(run=commands.inpaint)


def _add_cut_faces(to: Commands) -> None:
    command = to.add_parser("cut-faces", help="cut aligned faces out of photos, for training")
    command.add_argument("input", help="photo or folder of photos (recursive)")
    command.add_argument("output", help="folder for the faces and their table")
    command.add_argument(
        "--size", type=whole_number, default=256, help="side of the faces in pixels (256)"
    )
    command.add_argument(
        "--min-px",
        type=whole_number,
        help="leave out faces that are smaller in their photos (default: --size)",
    )
    command.add_argument("--faces", help="csv or JSON of the photos' faces, in place of a search")
    _add_run_options(command)
    command.set_defaults(run=commands.cut_faces)


def _add_degrade(to: Commands) -> None:
    command = to.add_parser(
        "degrade", help="save degraded copies of pictures, with a table of the parameters"
    )
    command.add_argument("input", help="picture or folder (recursive)")
    command.add_argument("output", help="folder for the results; with --sheet a PNG file")
    what = command.add_mutually_exclusive_group()
    what.add_argument(
        "--with",
        dest="degradation",
        metavar="NAME",
        help="chain of configs/degradations, a YAML file like those, sparnet, or an unseen family",
    )
    what.add_argument("--sheet", action="store_true", help="one face under all unseen families")
    command.add_argument("--severity", type=whole_number, help="1..5, of an unseen family")
    command.add_argument(
        "--size", type=whole_number, help="resize pictures to this side in pixels first"
    )
    command.add_argument(
        "--seed", type=whole_number, default=0, help="of the random parameters (0)"
    )
    _add_run_options(command)
    command.set_defaults(run=commands.degrade)


def _add_report(to: Commands) -> None:
    command = to.add_parser("report", help="one page about a run of restore, to look at or to send")
    command.add_argument(
        "run_folder", metavar="RUN", help="output folder of restore; the page is its report.html"
    )
    command.add_argument("--input", help="folder of the original pictures, if they were moved")
    command.set_defaults(run=commands.report)


def _add_verify(to: Commands) -> None:
    command = to.add_parser(
        "verify", help="make a result of restore again from its original, and compare the pixels"
    )
    command.add_argument("result", help="a file of restored/")
    command.add_argument("--original", required=True, help="the picture that it was made of")
    add_set(command)
    command.set_defaults(run=commands.verify)
