"""Reading the files of frozen feature networks."""

from __future__ import annotations

from pathlib import Path

import torch


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """A state dict, read without running code of the file.

    Raises:
        ValueError: no such content; the message names the file.
    """
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    # A file of anything else makes the reader fail in any way.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} holds no readable weights: {reason}") from None
    if not isinstance(stored, dict):
        raise ValueError(f"{path} holds a {type(stored).__name__}, not a state dict")
    return stored
