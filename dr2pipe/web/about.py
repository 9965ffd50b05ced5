"""The tab "About": what the models are, what may be done with them, and this installation."""

from __future__ import annotations

import re

from dr2pipe.core.config import resource
from dr2pipe.core.models import user_folder
from dr2pipe.runs.doctor import report
from dr2pipe.runs.presets import Need, list_presets

TERMS = """dr2pipe and all that comes with it are Apache-2.0: commercial use is allowed; keep the
attribution in the model cards. Official models have terms of their own."""


def presets_table() -> str:
    """Markdown: the presets with their models and licences."""
    rows = ["| preset | its models and their terms |", "|---|---|"]
    for preset in list_presets():
        models = "<br>".join(map(_describe, preset.needs))
        rows.append(f"| **{preset.name}**<br>{preset.about} | {models} |")
    return "\n".join(rows)


def _describe(need: Need) -> str:
    size = "" if need.megabytes is None else f"{need.megabytes:.0f} MB, "
    return f"**{need.name}** ({need.state}): {size}{need.terms}"


def cards() -> dict[str, str]:
    """The cards of the models that come with dr2pipe, as Markdown without pictures.

    Links to other files are left out, since the page does not have those files.
    """
    found = {}
    for path in sorted(resource("checkpoints").glob("*/README.md")):
        text = path.read_text(encoding="utf-8")
        text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", text)
        found[path.parent.name] = re.sub(r"\[([^\]]*)\]\((?!https?:)[^)]*\)", r"\1", text)
    return found


def installation() -> str:
    """What ``dr2pipe doctor`` prints as a list in Markdown, without the paths of the server."""
    return "\n".join(
        f"- {line}" for line in report().splitlines() if str(user_folder()) not in line
    )
