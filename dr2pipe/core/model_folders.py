"""Which network a folder holds, as its config.json says."""

from __future__ import annotations

import json
from pathlib import Path

from dr2pipe.core.errors import CheckpointError


def class_in_folder(folder: str | Path) -> str | None:
    """Name of the class that wrote the ``config.json`` of a folder; None without such a file.

    Raises:
        CheckpointError: a ``config.json`` that cannot be read.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from None
    name = config.get("_class_name") if isinstance(config, dict) else None
    return str(name) if name is not None else None


def check_class(folder: str | Path, kind: type, *, hint: str = "") -> None:
    """Check that a folder holds a network of the class ``kind``.

    Args:
        folder: native folder of a network.
        kind: the class that is wanted.
        hint: where such a folder comes from; ends the message.

    Raises:
        CheckpointError: no ``config.json`` there, or one of another class.
    """
    found = class_in_folder(folder)
    if found == kind.__name__:
        return
    ending = f"; {hint}" if hint else ""
    if found is None:
        raise CheckpointError(
            f"no {kind.__name__} at {folder} (config.json is missing or names no class){ending}"
        )
    raise CheckpointError(f"{folder} holds a {found}, not a {kind.__name__}{ending}")
