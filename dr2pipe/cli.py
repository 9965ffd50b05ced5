"""Command line: parse, then one call. Heavy imports wait until a command needs them."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dr2pipe import __version__

if TYPE_CHECKING:
    from dr2pipe.runs import RunSummary

EXIT_USAGE = 2
EXIT_SOME_FAILED = 3
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    options = _parser().parse_args(arguments)
    return report_errors(lambda: options.run(options))


def script(command: str, arguments: Sequence[str] | None = None) -> int:
    """What ``scripts/restore.py`` and its like do with CONFIG key=value ..."""
    run, summary = {
        "restore": (restore, "Restore"),
        "train": (train, "Train"),
        "make_coarse": (make_coarse, "Make coarse faces"),
        "evaluate": (evaluate, "Evaluate"),
        "sweep": (sweep, "Try settings"),
    }[command]
    parser = argparse.ArgumentParser(description=f"{summary} as a configuration file says.")
    parser.add_argument("config", help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args(arguments)
    return report_errors(lambda: run(options.config, options.overrides))


def report_errors(run: Callable[[], int]) -> int:
    """Exit code of ``run``; what a user can mend is reported in one line."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        return run()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    # ValueError covers ConfigError, CheckpointError and FolderInUseError.
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"dr2pipe: error: {error}", file=sys.stderr)
        return EXIT_USAGE


def restore(
    config_path: str | Path,
    overrides: Sequence[str],
    *,
    source: str | None = None,
    output: str | None = None,
) -> int:
    """Restore as a YAML file and ``key=value`` overrides say.

    ``source`` and ``output`` stand for the settings ``input`` and ``output``.
    """
    from dr2pipe.config import load_config
    from dr2pipe.restore_folder import RestoreConfig, describe_shares, restore_folder

    given = {"input": source, "output": output}
    given = [f"{name}={path}" for name, path in given.items() if path is not None]
    config = load_config(RestoreConfig, config_path, [*given, *overrides])
    quiet_libraries()
    summary = restore_folder(config)
    if _is_main_process():
        print(
            f"{summary.restored} restored, {summary.skipped} already done, "
            f"{summary.failed} failed -> {config.output}"
        )
        if summary.warned:
            print(f"{summary.warned} with a warning, see {Path(config.output) / 'manifest.jsonl'}")
        _say_failures(summary, config.output)
        shares = describe_shares(config.output) if config.enhancer.name == "panini" else None
        if shares:
            print(shares)
    return summary.exit_code


def _say_failures(summary: RunSummary, output: str) -> None:
    if summary.failed:
        print(f"the reasons are in {Path(output) / 'failures.jsonl'}")


def train(config_path: str | Path, overrides: Sequence[str]) -> int:
    """Train the recipe of a YAML file."""
    from dr2pipe.training.recipes import run_recipe

    return run_recipe(config_path, overrides)


def make_coarse(config_path: str | Path, overrides: Sequence[str]) -> int:
    """Make coarse faces for training an enhancer."""
    from dr2pipe.config import load_config
    from dr2pipe.make_coarse import CoarseConfig
    from dr2pipe.make_coarse import make_coarse as run

    config = load_config(CoarseConfig, config_path, overrides)
    quiet_libraries()
    summaries = run(config)
    if _is_main_process():
        for number, s in enumerate(summaries):
            counts = f"{s.restored} made, {s.skipped} already done, {s.failed} failed"
            print(f"variant {number}: {counts}")
    return max(summary.exit_code for summary in summaries)


def _run_degrade(options: argparse.Namespace) -> int:
    from dr2pipe.degrade_folder import DegradeConfig, degrade_folder, write_sheet

    if options.sheet:
        if options.severity is not None or options.size is not None:
            raise ValueError("--sheet shows all severities at one size: no --severity, no --size")
        write_sheet(options.input, options.output, seed=options.seed)
        print(f"every unseen family at severities 1..5 -> {options.output}")
        return 0
    if options.degradation is None:
        raise ValueError("name a degradation with --with, or ask for a --sheet")
    config = DegradeConfig(
        options.input,
        options.output,
        options.degradation,
        severity=options.severity,
        size=options.size,
        seed=options.seed,
    )
    summary = degrade_folder(config)
    if _is_main_process():
        counts = f"{summary.restored} degraded, {summary.skipped} already done"
        print(f"{counts}, {summary.failed} failed -> {config.output}")
        _say_failures(summary, config.output)
    return summary.exit_code


def evaluate(config_path: str | Path, overrides: Sequence[str]) -> int:
    """A study as a protocol fixes it; prints the tables of means."""
    from dr2pipe.config import load_config
    from dr2pipe.evaluation.evaluate import evaluate as run
    from dr2pipe.evaluation.protocol import Protocol

    return _study(run, load_config(Protocol, config_path, overrides))


def sweep(config_path: str | Path, overrides: Sequence[str]) -> int:
    """Try a grid of DR2's settings; prints the best ones."""
    from dr2pipe.config import load_config
    from dr2pipe.evaluation.sweep import SweepConfig
    from dr2pipe.evaluation.sweep import sweep as run

    return _study(run, load_config(SweepConfig, config_path, overrides))


def _study(run: Callable, config) -> int:
    quiet_libraries()
    found = run(config)
    if found is None:
        return EXIT_INTERRUPTED
    if _is_main_process():
        print(found)
        print(f"report, every value and the settings: {config.output}")
    return 0


def convert(source: str, output: str, kind: str, constructor: Sequence[str]) -> int:
    """Write a foreign checkpoint as a native folder."""
    from omegaconf import OmegaConf

    from dr2pipe.convert.write import write_native

    arguments = OmegaConf.to_container(OmegaConf.from_dotlist(list(constructor)))
    write_native(source, output, kind, **arguments)
    print(f"{source} ({kind}) -> {output}")
    return 0


def fetch(name: str | None, *, folder: str | None, mirror: str | None, sha256: str | None) -> int:
    """Download an official file, or list them."""
    from dr2pipe import files
    from dr2pipe.fetch import FILES
    from dr2pipe.fetch import fetch as run

    uses = {True: "yes", False: "no", None: "unclear"}
    if name is None:
        for known, file in FILES.items():
            print(
                f"{known:20} {file.name} ({file.licence}, commercial use: {uses[file.commercial_use]})"
            )
        return 0
    path = run(name, folder=folder, mirror=mirror, sha256=sha256)
    file = FILES[name]
    print(f"{path}\nsha256 {files.sha256(path)}")
    print(f"licence {file.licence}, commercial use: {uses[file.commercial_use]}")
    if file.kind is not None:
        print(f"next: dr2pipe convert {path} checkpoints/{name} --kind {file.kind}")
    return 0


def fit_niqe(source: str, output: str, *, size: int, block_px: int) -> int:
    """Write the statistics of clean pictures, which the metric ``niqe`` compares with."""
    from dr2pipe import images
    from dr2pipe.evaluation.protocol import CleanConfig, CleanSet
    from dr2pipe.metrics.niqe import fit_niqe as fit
    from dr2pipe.metrics.niqe import save_pristine

    faces = CleanSet(CleanConfig(path=source, crop="center"), size)
    pristine = fit((images.to_tensor(faces.face(i))[0] for i in range(len(faces))), block_px)
    save_pristine(pristine, output)
    print(f"{len(faces)} pictures of {size} pixels, blocks of {block_px} -> {output}")
    return 0


def embed(source: str, output: str, model: str, *, size: int | None) -> int:
    """Vectors of how every picture of a folder is degraded, and a map of them."""
    from dr2pipe.embed_folder import embed_folder

    embedded = embed_folder(source, output, model, size=size)
    for path, reason in embedded.failures.items():
        print(f"{path}: {reason}", file=sys.stderr)
    print(f"{len(embedded.paths)} pictures -> {output}/vectors.npz, {output}/map.png")
    return EXIT_SOME_FAILED if embedded.failures else 0


def find_config(family: str, name: str) -> Path:
    """A YAML file of ``configs/<family>`` by name; ValueError lists the names there are."""
    from dr2pipe.config import resource

    folder = resource("configs") / family
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
        raise ValueError(f"no preset '{name}'; there are {known}")
    return path


def _run_restore(options: argparse.Namespace) -> int:
    config = options.config or find_config("restore", options.preset)
    return restore(config, options.set, source=options.input, output=options.output)


def _run_doctor(options: argparse.Namespace) -> int:
    from dr2pipe.doctor import report

    print(report())
    return 0


def quiet_libraries() -> None:
    """Loading bars and notes of diffusers would hide the run's own progress."""
    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()


def _is_main_process() -> bool:
    from dr2pipe.processes import process_state

    return process_state().is_main_process


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dr2pipe",
        description="Restore badly degraded faces: a diffusion model removes the degradation, "
        "an enhancer finishes.",
    )
    parser.add_argument("--version", action="version", version=f"dr2pipe {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    command = commands.add_parser("restore", help="restore a picture or a folder of pictures")
    command.add_argument("input", help="picture or folder (recursive) of aligned faces")
    command.add_argument("output", help="folder for the results")
    choice = command.add_mutually_exclusive_group()
    choice.add_argument("--preset", default="portrait64", help="name in configs/restore")
    choice.add_argument("--config", help="YAML file of your own")
    _add_set(command)
    command.set_defaults(run=_run_restore)

    command = commands.add_parser("fetch", help="download an official file")
    command.add_argument("name", nargs="?", help="without one, the names are listed")
    command.add_argument("--dir", help="folder for it (checkpoints/downloads)")
    command.add_argument("--mirror", help="address of a folder with the same files")
    command.add_argument("--sha256", help="what the file must have")
    command.set_defaults(
        run=lambda o: fetch(o.name, folder=o.dir, mirror=o.mirror, sha256=o.sha256)
    )

    command = commands.add_parser("degrade", help="degraded copies of a folder, with a csv")
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
    command.add_argument("--severity", type=int, help="1..5, of an unseen family")
    command.add_argument("--size", type=int, help="side in pixels to bring pictures to first")
    command.add_argument("--seed", type=int, default=0)
    command.set_defaults(run=_run_degrade)

    command = commands.add_parser("train", help="train a recipe")
    command.add_argument("config", help="YAML file, see configs/train")
    command.add_argument("overrides", nargs="*", metavar="key=value")
    command.set_defaults(run=lambda o: train(o.config, o.overrides))

    for name, run, about in (
        ("evaluate", evaluate, "compare methods on degraded clean faces, see configs/protocols"),
        ("sweep", sweep, "try settings of DR2 on degraded clean faces, see configs/sweep"),
    ):
        command = commands.add_parser(name, help=about)
        command.add_argument("config", help="YAML file")
        command.add_argument("overrides", nargs="*", metavar="key=value")
        command.set_defaults(run=lambda o, run=run: run(o.config, o.overrides))

    command = commands.add_parser("embed", help="vectors of how pictures are degraded, and a map")
    command.add_argument("input", help="folder of pictures (recursive)")
    command.add_argument("output", help="folder for vectors.npz and map.png")
    command.add_argument("--model", default="degradation_encoder_64", help="degradation encoder")
    command.add_argument("--size", type=int, help="side to bring pictures to first")
    command.set_defaults(run=lambda o: embed(o.input, o.output, o.model, size=o.size))

    command = commands.add_parser("fit-niqe", help="parameters of the metric niqe")
    command.add_argument("input", help="folder of clean pictures, or an .npz")
    command.add_argument("output", help=".npz file, for metric_files.niqe of a protocol")
    command.add_argument("--size", type=int, required=True, help="of the study, in pixels")
    command.add_argument("--block", type=int, default=96, help="side of the blocks in pixels (96)")
    command.set_defaults(run=lambda o: fit_niqe(o.input, o.output, size=o.size, block_px=o.block))

    command = commands.add_parser("convert", help="turn an official checkpoint into a folder")
    command.add_argument("source", help=".pth, .pt, .pkl or .safetensors file")
    command.add_argument("output", help="folder for the native network")
    command.add_argument(
        "--kind", required=True, help="what the file is, see checkpoints/README.md"
    )
    _add_set(command)
    command.set_defaults(run=lambda o: convert(o.source, o.output, o.kind, o.set))

    command = commands.add_parser("doctor", help="versions, devices, and what will be used")
    command.set_defaults(run=_run_doctor)
    return parser


def _add_set(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="key=value",
        help="change settings, for instance dr2.tau=22 precision=bf16; comes after the paths",
    )


if __name__ == "__main__":
    sys.exit(main())
