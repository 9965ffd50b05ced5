"""The commands about models: presets, setup, fetch, convert."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dr2pipe.core.config import parse_overrides
from dr2pipe.core.models import find_download, place_model
from dr2pipe.core.records import EXIT_DONE

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_models(to: Commands) -> None:
    """Add the commands to the parser of ``dr2pipe``."""
    command = to.add_parser("presets", help="what each preset needs, costs and allows")
    command.add_argument(
        "--measure", action="store_true", help="time those that are here on this machine, one face"
    )
    command.set_defaults(run=lambda o: presets(measure=o.measure))

    command = to.add_parser("setup", help="get an official model, or all of a preset: one command")
    command.add_argument("name", help="of a model or a preset, see dr2pipe presets")
    command.add_argument("--file", help="the file, where it must be downloaded by hand")
    command.add_argument("--mirror", help="address of a folder with the same files")
    command.set_defaults(run=lambda o: setup(o.name, file=o.file, mirror=o.mirror))

    command = to.add_parser("fetch", help="download an official file")
    command.add_argument("name", nargs="?", help="without one, the names are listed")
    command.add_argument("--dir", help="folder for it (downloads/ in the user folder)")
    command.add_argument("--mirror", help="address of a folder with the same files")
    command.add_argument("--sha256", help="the file's sha256, or its first digits")
    command.set_defaults(
        run=lambda o: fetch(o.name, folder=o.dir, mirror=o.mirror, sha256=o.sha256)
    )

    command = to.add_parser("convert", help="turn an official checkpoint into a model folder")
    command.add_argument("source", help=".pth, .pt, .pkl or .safetensors file, or a download")
    command.add_argument(
        "output", help="name of the new model, in models/ of the user folder, or a path"
    )
    command.add_argument("--kind", required=True, help="what the file is, see docs/models.md")
    command.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="key=value",
        help="arguments of the network's own constructor; comes after the paths",
    )
    command.set_defaults(run=lambda o: convert(o.source, o.output, o.kind, o.set))


def presets(*, measure: bool) -> int:
    """List the presets."""
    from dr2pipe.cli.commands import quiet_libraries
    from dr2pipe.core.official import BY_HAND, how_to_get
    from dr2pipe.runs import presets as known

    if measure:
        quiet_libraries()
        for preset in known.list_presets():
            if not preset.missing:
                known.measure(preset.name)
    for preset in known.list_presets():
        seconds = "not measured" if preset.seconds is None else f"{preset.seconds:g} s a face"
        print(f"{preset.name}: {preset.about}")
        print(f"    {preset.calls} network calls a face, on this machine {seconds}")
        for need in preset.needs:
            size = "" if need.megabytes is None else f"{need.megabytes:.0f} MB, "
            print(f"    {need.name}: {need.state}, {size}{need.terms}")
        by_hand = [name for name in preset.missing if name in BY_HAND]
        if preset.missing and not by_hand:
            print(f"    get all: dr2pipe setup {preset.name}")
        for name in preset.missing if by_hand else ():
            print(f"    {name}: {how_to_get(name)}")
    print("the times of those that are here are measured by: dr2pipe presets --measure")
    return EXIT_DONE


def setup(name: str, *, file: str | None, mirror: str | None) -> int:
    """Download and convert an official model, or all models of a preset."""
    from dr2pipe.runs.presets import set_up

    for line in set_up(name, file=file, mirror=mirror):
        print(line)
    return EXIT_DONE


def fetch(name: str | None, *, folder: str | None, mirror: str | None, sha256: str | None) -> int:
    """Download an official file, or list them."""
    from dr2pipe.convert.fetch import fetch as run
    from dr2pipe.core import files
    from dr2pipe.core.official import FILES

    if name is None:
        for known, file in FILES.items():
            print(f"{known:20} {file.name} ({file.terms})")
        return EXIT_DONE
    path = run(name, folder=folder, mirror=mirror, sha256=sha256)
    file = FILES[name]
    print(f"{path}\nsha256 {files.sha256(path)}")
    print(f"licence {file.terms}")
    if file.kind is not None:
        print(f"next: dr2pipe convert {path} {name} --kind {file.kind}")
    return EXIT_DONE


def convert(source: str, output: str, kind: str, constructor: Sequence[str]) -> int:
    """Write a foreign checkpoint as a model folder.

    Args:
        source: path of the checkpoint, or the name of a download.
        output: a bare name, for a folder in the user folder, or a path.
        kind: what the checkpoint is.
        constructor: ``key=value`` arguments of the reference where they differ from the
            official ones.
    """
    from dr2pipe.convert.fetch import check_remembered
    from dr2pipe.convert.write import write_native
    from dr2pipe.core.models import downloads_folder

    file, folder = find_download(source), place_model(output)
    if file.parent == downloads_folder():
        check_remembered(file)
    write_native(file, folder, kind, **parse_overrides(constructor))
    print(f"{file} ({kind}) -> {folder}")
    return EXIT_DONE
