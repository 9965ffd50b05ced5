"""Arguments that several commands take."""

from __future__ import annotations

import argparse
import re


def add_config(command: argparse.ArgumentParser) -> None:
    """Add a YAML file and settings that follow it."""
    command.add_argument("config", help="name of a built-in file, or a YAML file")
    command.add_argument(
        "overrides", nargs="*", metavar="key=value", help="change settings of the file"
    )


def add_set(command: argparse.ArgumentParser) -> None:
    """Add ``--set``."""
    command.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="key=value",
        help="change settings, for instance dr2.tau=22 precision=bf16; comes after the paths",
    )


def whole_number(text: str) -> int:
    """Read a number without signs, leading zeros and the like."""
    if not re.fullmatch(r"-?(0|[1-9][0-9]{0,17})", text):
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number without leading zeros")
    return int(text)
