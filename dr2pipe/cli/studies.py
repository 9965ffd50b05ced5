"""The arguments of the commands for training and studies."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from dr2pipe.cli import commands
from dr2pipe.cli.options import add_config, add_set, whole_number

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_studies(to: Commands) -> None:
    """Add the commands to the parser of ``dr2pipe``."""
    _add_recipes(to)
    _add_fits(to)
    _add_benchmark(to)


def _add_recipes(to: Commands) -> None:
    command = to.add_parser("train", help="train a recipe, see configs/train")
    add_config(command)
    command.set_defaults(run=lambda o: commands.train(o.config, o.overrides))

    about = "write what a running or stopped training has learned, as its final/"
    command = to.add_parser("export", help=about)
    command.add_argument("run_folder", metavar="RUN", help="output folder of train")
    command.add_argument("model", metavar="MODEL", help="folder for the networks")
    command.set_defaults(run=commands.export)

    about = "make the coarse faces that an enhancer is trained on, see configs/coarse"
    command = to.add_parser("make-coarse", help=about)
    add_config(command)
    command.set_defaults(run=lambda o: commands.make_coarse(o.config, o.overrides))

    about = "compare methods on degraded clean faces, see configs/protocols"
    command = to.add_parser("evaluate", help=about)
    add_config(command)
    command.set_defaults(run=lambda o: commands.evaluate(o.config, o.overrides))

    about = "try settings of DR2 on degraded clean faces, see configs/sweep"
    command = to.add_parser("sweep", help=about)
    add_config(command)
    command.set_defaults(run=lambda o: commands.sweep(o.config, o.overrides))

    about = "describe how pictures are degraded, as vectors and a map"
    command = to.add_parser("embed", help=about)
    command.add_argument("input", help="picture or folder of pictures (recursive)")
    command.add_argument("output", help="folder for vectors.npz and map.png")
    command.add_argument(
        "--model", default="degradation_encoder_64", help="encoder: name, folder or hub id"
    )
    command.add_argument(
        "--size", type=whole_number, help="resize pictures to this side in pixels first"
    )
    command.set_defaults(run=commands.embed)


def _add_fits(to: Commands) -> None:
    command = to.add_parser("fit-auto", help="fit dr2.mode=auto on a sweep, or on several")
    command.add_argument(
        "sweep",
        nargs="+",
        help="folder of a sweep with with_off=true; further ones have other seeds or degradations",
    )
    command.add_argument("output", help=".json file, for dr2.auto")
    command.set_defaults(run=commands.fit_auto)

    command = to.add_parser("fit-niqe", help="fit the metric niqe on clean pictures")
    command.add_argument("input", help="folder of clean pictures, or an .npz")
    command.add_argument("output", help=".npz file, for metric_files.niqe of a protocol")
    command.add_argument(
        "--size", type=whole_number, required=True, help="side of the study's pictures in pixels"
    )
    command.add_argument(
        "--block", type=whole_number, default=96, help="side of the blocks in pixels (96)"
    )
    command.set_defaults(run=commands.fit_niqe)


def _add_benchmark(to: Commands) -> None:
    about = "time a preset on this machine: networks, files without networks, files to files"
    command = to.add_parser("benchmark", help=about)
    command.add_argument(
        "--preset", default="default", help="name in configs/restore, or a YAML file (default)"
    )
    command.add_argument("--input", help="picture or folder (pictures made by a rule)")
    command.add_argument(
        "--precisions", nargs="+", default=[], metavar="NAME", help="(the preset's)"
    )
    command.add_argument("--batch-sizes", nargs="+", type=whole_number, default=[1, 4])
    command.add_argument(
        "--parts", nargs="+", default=None, metavar="PART", help="networks restorer machinery run"
    )
    command.add_argument(
        "--pictures", type=whole_number, default=32, help="of a run over files (32)"
    )
    command.add_argument(
        "--size", type=whole_number, default=512, help="side of the files without networks (512)"
    )
    command.add_argument("--json", help="file for the numbers")
    command.add_argument("--against", metavar="JSON", help="such a file, to compare with")
    add_set(command)
    command.set_defaults(run=commands.benchmark)
