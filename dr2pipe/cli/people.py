"""The commands for people with a photo: explain and the web page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dr2pipe.core.records import EXIT_DONE

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_people(to: Commands) -> None:
    """Add the commands to the parser of ``dr2pipe``."""
    command = to.add_parser("explain", help="what is wrong with a photo, and which settings fit it")
    command.add_argument("photo", help="photo with one face or more")
    command.add_argument("--preset", default="default", help="name in configs/restore (default)")
    command.add_argument("--sheet", help="PNG for the coarse faces (PHOTO_explained.png, here)")
    command.set_defaults(run=lambda o: explain(o.photo, preset=o.preset, sheet=o.sheet))


def explain(photo: str, *, preset: str, sheet: str | None) -> int:
    """Say what is wrong with a photo."""
    from dr2pipe.cli.commands import quiet_libraries
    from dr2pipe.runs.explain import explain as run

    quiet_libraries()
    sheet = f"{Path(photo).stem}_explained.png" if sheet is None else sheet
    print("\n".join(run(photo, preset=preset, sheet=sheet).lines))
    return EXIT_DONE
