"""Numbers that people and YAML 1.1 read differently."""

from __future__ import annotations

import re
from collections.abc import Iterator

import yaml

from dr2pipe.core.errors import ConfigError

# YAML reads 010 as 8, 08 as a text, and 1:30 as 90.
_ODD = re.compile(
    r"[-+]?(0[0-9_]+(\.[0-9_]*)?([eE][-+]?[0-9]+)?|[0-9][0-9_]*(:[0-9]+)+(\.[0-9_]*)?)"
)


def refuse_odd_numbers(text: str, where: str) -> None:
    """Check the numbers of a YAML text that can be parsed.

    Args:
        text: YAML.
        where: what the text is, for messages.

    Raises:
        ConfigError: a number with leading zeros, or with colons.
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    for key, value in _plain_scalars(root, "", set()):
        if _ODD.fullmatch(value):
            at = f"'{key}' in {where}" if key else where
            raise ConfigError(
                f"{at}: {value} is refused, because YAML reads another number than it seems; "
                f"write it without leading zeros and colons, or in quotes if it is a text"
            )


def _plain_scalars(node: yaml.Node | None, key: str, seen: set[int]) -> Iterator[tuple[str, str]]:
    """(dotted key, text) of every value without quotes."""
    if isinstance(node, yaml.ScalarNode):
        if node.style is None:
            yield key, node.value
        return
    if node is None or id(node) in seen:  # an alias may lead back to what contains it
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            below = str(name.value) if isinstance(name, yaml.ScalarNode) else "?"
            yield from _plain_scalars(value, f"{key}.{below}".lstrip("."), seen)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield from _plain_scalars(value, f"{key}[{i}]", seen)
