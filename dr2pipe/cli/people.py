"""The commands for people with a photo: explain and the web page."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dr2pipe.cli.options import add_set
from dr2pipe.core.records import EXIT_DONE

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_people(to: Commands) -> None:
    """Add the commands to the parser of ``dr2pipe``."""
    command = to.add_parser("explain", help="what is wrong with a photo, and which settings fit it")
    command.add_argument("photo", help="photo with one face or more")
    command.add_argument("--preset", default="default", help="name in configs/restore (default)")
    command.add_argument("--sheet", help="PNG for the coarse faces (PHOTO_explained.png, here)")
    add_set(command)
    command.set_defaults(
        run=lambda o: explain(o.photo, preset=o.preset, sheet=o.sheet, overrides=o.set)
    )

    command = to.add_parser("web", help="a page in the browser, for photos without a terminal")
    command.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    command.add_argument("--port", type=int, default=7860, help="(7860)")
    command.add_argument("--user", help="name to log in with; needed with another --host")
    command.add_argument("--password", help="that goes with it")
    command.add_argument("--preset", default="default", help="that is chosen at first (default)")
    command.set_defaults(run=web)


def web(options: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C."""
    from dr2pipe.cli.commands import quiet_libraries
    from dr2pipe.web import ServerConfig, serve

    quiet_libraries()
    config = ServerConfig(
        host=options.host,
        port=options.port,
        user=options.user,
        password=options.password,
        preset=options.preset,
    )
    # As Ctrl-C: the visitors' files are deleted at the end. A terminal that is closed sends SIGHUP,
    # which nohup has ignored.
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, frame: sys.exit(0))
    page = serve(config)
    print(f"the page is at {page.local_url} (Ctrl-C ends it)", flush=True)
    page.block_thread()
    return EXIT_DONE


def explain(photo: str, *, preset: str, sheet: str | None, overrides: Sequence[str]) -> int:
    """Say what is wrong with a photo."""
    from dr2pipe.cli.commands import quiet_libraries
    from dr2pipe.runs.explain import explain as run

    quiet_libraries()
    sheet = f"{Path(photo).stem}_explained.png" if sheet is None else sheet
    found = run(photo, preset=preset, sheet=sheet, overrides=overrides)
    print("\n".join(found.lines))
    return EXIT_DONE
