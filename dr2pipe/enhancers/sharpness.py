"""A faithful and a sharp variant of one network, and the networks between them.

Wang et al., "ESRGAN", ECCV-W 2018, §3.4 (network interpolation): the weights of a network that
was trained for small errors and of one that went on from it with an adversarial loss are mixed
linearly. The results lie between both, without the seams of mixed pictures.
"""

from __future__ import annotations

from pathlib import Path

import torch

from dr2pipe.core.errors import CheckpointError, ConfigError
from dr2pipe.core.model_folders import CONFIG, load_network
from dr2pipe.enhancers.base import Enhancer

SHARP = "sharp"  # folder of the sharp variant, inside that of the faithful one


def sharp_folder(folder: str | Path) -> Path:
    """The folder of a model's sharp variant.

    Raises:
        ConfigError: the model has none.
    """
    sharp = Path(folder) / SHARP
    if not (sharp / CONFIG).is_file():
        raise ConfigError(
            f"enhancer.sharpness needs a sharp variant of the network, and {folder} has no folder "
            f"'{SHARP}'; leave enhancer.sharpness out (null)"
        )
    return sharp


def mix_with_sharp(faithful: Enhancer, folder: str | Path, sharpness: float) -> None:
    """Move the weights of a network towards those of its sharp variant, in float32.

    Args:
        faithful: the network of ``folder``; changed in place.
        folder: of the model.
        sharpness: 0..1; 0 leaves the weights as they are, 1 gives those of the sharp variant.

    Raises:
        ConfigError: a value outside 0..1, or a model without a sharp variant.
        CheckpointError: the sharp variant is another network.
    """
    if not 0 <= sharpness <= 1:
        raise ConfigError(f"enhancer.sharpness={sharpness} must lie in 0..1")
    path = sharp_folder(folder)
    sharp = load_network(path, type(faithful), hint=f"it must be a variant of {folder}")
    different = sorted(
        name
        for name in {*faithful.config, *sharp.config}
        if name[0] != "_" and _plain(faithful.config.get(name)) != _plain(sharp.config.get(name))
    )
    if different:
        raise CheckpointError(
            f"{path} is no variant of {folder}: {', '.join(different)} of its config.json differ"
        )
    faithful.float()
    towards = sharp.float().state_dict()
    with torch.no_grad():
        for name, weight in faithful.state_dict().items():
            if weight.is_floating_point():  # not the counters of batch norms
                weight.lerp_(towards[name], sharpness)


def _plain(value: object) -> object:
    """Lists and tuples are the same in a config.json."""
    return list(value) if isinstance(value, tuple) else value
