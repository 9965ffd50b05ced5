"""The command ``dr2pipe``: parse the arguments, then make one call."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence

from dr2pipe.cli import commands
from dr2pipe.cli.arguments import build_parser, parse_script_arguments
from dr2pipe.core.errors import Dr2pipeError
from dr2pipe.core.records import EXIT_INTERRUPTED, EXIT_USAGE

__all__ = ["main", "report_errors", "script"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    options = build_parser().parse_args(arguments)
    return report_errors(lambda: int(options.run(options)))


def script(command: str, arguments: Sequence[str] | None = None) -> int:
    """Run a script such as ``scripts/restore.py CONFIG key=value ...``; returns its exit code."""
    run = {
        "restore": commands.restore,
        "train": commands.train,
        "make_coarse": commands.make_coarse,
        "evaluate": commands.evaluate,
        "sweep": commands.sweep,
    }[command]
    config, overrides = parse_script_arguments(command, arguments)
    return report_errors(lambda: run(config, overrides))


def report_errors(run: Callable[[], int]) -> int:
    """The exit code of ``run``.

    An error that the user can correct is reported in one line. Any other error is a bug: it is
    raised, so that Python shows its traceback and ends with exit code 1.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        return run()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Dr2pipeError as error:
        message = str(error)
    except OSError as error:
        if error.filename is None:
            raise
        message = f"{error.filename}: {error.strerror or error}"
    print(f"dr2pipe: error: {' '.join(message.split())}", file=sys.stderr)
    return EXIT_USAGE
