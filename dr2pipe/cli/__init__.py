"""The command ``dr2pipe``: parse the arguments, then make one call."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Sequence

from dr2pipe.cli import commands
from dr2pipe.cli.arguments import build_parser, parse_script_arguments
from dr2pipe.cli.streams import safe_streams
from dr2pipe.core.errors import Dr2pipeError, describe_error, is_out_of_memory
from dr2pipe.core.records import EXIT_INTERRUPTED, EXIT_USAGE

__all__ = ["main", "report_errors", "script"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    with safe_streams():
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
    from dr2pipe.core.processes import leave_other_processes  # imports torch

    with safe_streams():
        config, overrides = parse_script_arguments(command, arguments)
        code = report_errors(lambda: run(config, overrides))
        leave_other_processes(code)
    return code


def report_errors(run: Callable[[], int]) -> int:
    """The exit code of ``run``.

    An error that the user can correct, or that a disk, the network or a lack of memory caused, is
    reported in one line. Any other error is a bug: it is raised, so that Python shows its
    traceback and ends with exit code 1.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    threading.excepthook = _say_of_thread
    try:
        code = run()
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except (Dr2pipeError, OSError) as error:
        return _fail(describe_error(error))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        said = str(error).partition("\n")[0]
        return _fail(f"not enough memory; use smaller pictures or batches. {said}")
    if code == EXIT_INTERRUPTED:
        print("dr2pipe: interrupted; the same command goes on later", file=sys.stderr)
    return code


def _say_of_thread(failed: threading.ExceptHookArgs) -> None:
    """Say what ended a thread, such as that of tensorboard on a disk that failed."""
    if isinstance(failed.exc_value, Dr2pipeError | OSError):
        print(f"dr2pipe: {describe_error(failed.exc_value)}", file=sys.stderr)
    else:
        threading.__excepthook__(failed)


def _fail(message: str) -> int:
    print(f"dr2pipe: error: {message}", file=sys.stderr)
    return EXIT_USAGE
