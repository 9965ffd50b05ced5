"""Models by name: which folder a name, a path or a hub id means."""

from __future__ import annotations

from pathlib import Path

from dr2pipe.core.config import resource
from dr2pipe.core.errors import ConfigError


def find_model(name: str) -> Path:
    """The folder of a model: a name in ``checkpoints/``, a folder as given, or a hub id."""
    embedded = resource("checkpoints")
    for folder in (embedded / name, Path(name)):
        if folder.is_dir():
            return folder
    if name.count("/") == 1 and not name.startswith((".", "/")):
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
        except Exception as error:  # the hub client raises many kinds; all mean "not available"
            raise ConfigError(
                f"'{name}' is no folder here, and loading it from the hub failed: {error}"
            ) from None
    known = sorted(p.name for p in embedded.glob("*/") if any(p.glob("*.json")))
    raise ConfigError(
        f"no model '{name}': give a folder, a hub id, or one of {', '.join(known) or '(none)'}"
    )
