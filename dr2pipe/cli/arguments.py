"""The arguments of every command; each sets ``run``, a function of the parsed options."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dr2pipe import __version__
from dr2pipe.cli import commands

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``dr2pipe``."""
    parser = argparse.ArgumentParser(
        prog="dr2pipe",
        description="Restore badly degraded faces: a diffusion model removes the degradation, "
        "an enhancer adds the detail.",
    )
    parser.add_argument("--version", action="version", version=f"dr2pipe {__version__}")
    to = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (_add_restore, _add_inpaint, _add_files, _add_degrade, _add_studies, _add_fits):
        add(to)
    command = to.add_parser("doctor", help="versions, devices, and what will be used")
    command.set_defaults(run=lambda o: commands.doctor())
    return parser


def parse_script_arguments(
    command: str, arguments: Sequence[str] | None = None
) -> tuple[str, list[str]]:
    """CONFIG and the overrides of a script that does what ``command`` says."""
    summary = command.replace("_", " ").capitalize()
    parser = argparse.ArgumentParser(description=f"{summary} as a configuration file says.")
    _add_config(parser)
    options = parser.parse_args(arguments)
    return options.config, options.overrides


def _add_restore(to: Commands) -> None:
    command = to.add_parser("restore", help="restore a picture or a folder of pictures")
    command.add_argument("input", help="picture or folder (recursive) of aligned faces")
    command.add_argument("output", help="folder for the results")
    choice = command.add_mutually_exclusive_group()
    choice.add_argument("--preset", default="portrait64", help="name in configs/restore")
    choice.add_argument("--config", help="YAML file of your own")
    command.add_argument("--mask", help="fill these holes first: picture, or folder with one each")
    command.add_argument("--exemplar", help="in the style of this face; else of the picture itself")
    _add_set(command)

    def run(options: argparse.Namespace) -> int:
        given = {"repair.mask": options.mask, "repair.exemplar": options.exemplar}
        overrides = [f"{name}={path}" for name, path in given.items() if path is not None]
        config = options.config or commands.find_preset(options.preset)
        overrides += options.set
        return commands.restore(config, overrides, source=options.input, output=options.output)

    command.set_defaults(run=run)


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
    command.add_argument("--mix-at", type=_whole_number, help="styles from this row on are the second's")
    command.add_argument("--samples", type=_whole_number, default=1, help="results of each picture (1)")
    command.add_argument("--model", default="exegan_64", help="EXE-GAN: name, folder or hub id")
    command.add_argument("--style-encoder", help="likewise; else the one inside the model's folder")
    command.add_argument("--seed", type=_whole_number, default=0)
    command.set_defaults(
        run=lambda o: commands.inpaint(
            o.input,
            o.mask,
            o.output,
            o.exemplar,
            model=o.model,
            style_encoder=o.style_encoder,
            mix_with=o.mix_with,
            mix_at=o.mix_at,
            samples=o.samples,
            seed=o.seed,
        )
    )


def _add_files(to: Commands) -> None:
    command = to.add_parser("fetch", help="download an official file")
    command.add_argument("name", nargs="?", help="without one, the names are listed")
    command.add_argument("--dir", help="folder for it (downloads/ in the user folder)")
    command.add_argument("--mirror", help="address of a folder with the same files")
    command.add_argument("--sha256", help="the file's sha256, or its first digits")
    command.set_defaults(
        run=lambda o: commands.fetch(o.name, folder=o.dir, mirror=o.mirror, sha256=o.sha256)
    )

    command = to.add_parser("convert", help="turn an official checkpoint into a model folder")
    command.add_argument("source", help=".pth, .pt, .pkl or .safetensors file, or a download")
    command.add_argument(
        "output", help="name of the new model, in models/ of the user folder, or a path"
    )
    command.add_argument("--kind", required=True, help="what the file is, see docs/models.md")
    _add_set(command)
    command.set_defaults(run=lambda o: commands.convert(o.source, o.output, o.kind, o.set))


def _add_degrade(to: Commands) -> None:
    command = to.add_parser("degrade", help="degraded copies of a folder, with a csv")
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
    command.add_argument("--severity", type=_whole_number, help="1..5, of an unseen family")
    command.add_argument("--size", type=_whole_number, help="side in pixels to bring pictures to first")
    command.add_argument("--seed", type=_whole_number, default=0)
    command.set_defaults(
        run=lambda o: commands.degrade(
            o.input,
            o.output,
            o.degradation,
            severity=o.severity,
            size=o.size,
            seed=o.seed,
            sheet=o.sheet,
        )
    )


def _add_studies(to: Commands) -> None:
    command = to.add_parser("train", help="train a recipe, see configs/train")
    _add_config(command)
    command.set_defaults(run=lambda o: commands.train(o.config, o.overrides))

    about = "compare methods on degraded clean faces, see configs/protocols"
    command = to.add_parser("evaluate", help=about)
    _add_config(command)
    command.set_defaults(run=lambda o: commands.evaluate(o.config, o.overrides))

    about = "try settings of DR2 on degraded clean faces, see configs/sweep"
    command = to.add_parser("sweep", help=about)
    _add_config(command)
    command.set_defaults(run=lambda o: commands.sweep(o.config, o.overrides))

    about = "vectors of how pictures are degraded, and a map"
    command = to.add_parser("embed", help=about)
    command.add_argument("input", help="picture or folder of pictures (recursive)")
    command.add_argument("output", help="folder for vectors.npz and map.png")
    command.add_argument(
        "--model", default="degradation_encoder_64", help="encoder: name, folder or hub id"
    )
    command.add_argument("--size", type=_whole_number, help="side in pixels to bring pictures to first")
    command.set_defaults(run=lambda o: commands.embed(o.input, o.output, o.model, size=o.size))


def _add_fits(to: Commands) -> None:
    command = to.add_parser("fit-auto", help="fit dr2.mode=auto on a sweep")
    command.add_argument("sweep", help="folder of a sweep with with_off=true")
    command.add_argument("output", help=".json file, for dr2.auto")
    command.set_defaults(run=lambda o: commands.fit_auto(o.sweep, o.output))

    command = to.add_parser("fit-niqe", help="parameters of the metric niqe")
    command.add_argument("input", help="folder of clean pictures, or an .npz")
    command.add_argument("output", help=".npz file, for metric_files.niqe of a protocol")
    command.add_argument("--size", type=_whole_number, required=True, help="of the study, in pixels")
    command.add_argument("--block", type=_whole_number, default=96, help="side of the blocks in pixels (96)")
    command.set_defaults(
        run=lambda o: commands.fit_niqe(o.input, o.output, size=o.size, block_px=o.block)
    )


def _add_config(command: argparse.ArgumentParser) -> None:
    command.add_argument("config", help="YAML file")
    command.add_argument("overrides", nargs="*", metavar="key=value")


def _add_set(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="key=value",
        help="change settings, for instance dr2.tau=22 precision=bf16; comes after the paths",
    )


def _whole_number(text: str) -> int:
    if not re.fullmatch(r"-?(0|[1-9][0-9]{0,17})", text):
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number without leading zeros")
    return int(text)
