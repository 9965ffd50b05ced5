"""Reading the files of frozen feature networks."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch

from dr2pipe.core.errors import CheckpointError, UnreadableFileError
from dr2pipe.core.weights import read_tensors


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """A state dict, read without running code of the file.

    Raises:
        CheckpointError: a file that holds no state dict; the message names it.
    """
    try:
        stored = read_tensors(path)
    except CheckpointError:
        raise
    except (UnreadableFileError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} holds no readable weights: {reason}") from None
    if not isinstance(stored, dict):
        raise CheckpointError(f"{path} holds a {type(stored).__name__}, not a state dict")
    # Entries of other kinds are left out: a file that lacks a tensor does not fit.
    return {str(k): v for k, v in stored.items() if isinstance(v, torch.Tensor)}
