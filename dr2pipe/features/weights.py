"""Reading the files of frozen feature networks."""

from __future__ import annotations

from pathlib import Path

import torch

from dr2pipe.core.errors import CheckpointError


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """A state dict, read without running code of the file.

    Raises:
        CheckpointError: a file that holds no state dict; the message names it.
    """
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    # The reader fails with many kinds of errors on files that are not its own.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} holds no readable weights: {reason}") from None
    if not isinstance(stored, dict):
        raise CheckpointError(f"{path} holds a {type(stored).__name__}, not a state dict")
    return stored
