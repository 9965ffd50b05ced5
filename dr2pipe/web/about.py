"""The tab "About": what the models are, what may be done with them, and this installation."""

from __future__ import annotations

import re

from dr2pipe.core.config import resource
from dr2pipe.core.models import user_folder
from dr2pipe.runs.doctor import report
from dr2pipe.runs.presets import list_presets

_CARDS = ("portrait128", "enhancer256", "exegan_64")


def presets_table() -> str:
    """Markdown: the presets with their models and licences."""
    rows = ["| preset | model | state | size | terms |", "|---|---|---|---|---|"]
    for preset in list_presets():
        for need in preset.needs:
            size = "" if need.megabytes is None else f"{need.megabytes:.0f} MB"
            rows.append(f"| {preset.name} | {need.name} | {need.state} | {size} | {need.terms} |")
    return "\n".join(rows)


def cards() -> dict[str, str]:
    """The model cards by name, as Markdown without pictures and relative links."""
    found = {}
    for name in _CARDS:
        text = (resource("checkpoints") / name / "README.md").read_text(encoding="utf-8")
        text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", text)
        found[name] = re.sub(r"\[([^\]]*)\]\((?!https?:)[^)]*\)", r"\1", text)
    return found


def installation() -> str:
    """What ``dr2pipe doctor`` prints, without the paths of the server."""
    return "\n".join(line for line in report().splitlines() if str(user_folder()) not in line)
