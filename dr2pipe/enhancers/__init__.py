"""Enhancers by name: networks that turn a coarse face into the result.

Other rooms build them with :func:`build_enhancer` and know them as :class:`Enhancer`; what an
enhancer takes is asked of :func:`enhancer_class` and :func:`option_names`. EXE-GAN
(``exegan``) and the degradation encoder (``degradation_encoder``) are used from their modules.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from dr2pipe.core.errors import ConfigError
from dr2pipe.core.model_folders import CONFIG, check_class, from_config, load_network, read_config
from dr2pipe.enhancers.base import BicubicEnhancer, Enhancer, NoEnhancer
from dr2pipe.enhancers.exegan import ExeGAN
from dr2pipe.enhancers.gfpgan import GFPGAN
from dr2pipe.enhancers.panini import PaniniNet
from dr2pipe.enhancers.sharpness import SHARP, mix_with_sharp, sharp_folder
from dr2pipe.enhancers.spandrel import SpandrelEnhancer, load_spandrel
from dr2pipe.enhancers.sparnet import SPARNet
from dr2pipe.enhancers.vqfr import VQFR

__all__ = [
    "ENHANCERS",
    "SHARP",
    "Enhancer",
    "build_enhancer",
    "enhancer_class",
    "mix_with_sharp",
    "option_names",
    "sharp_folder",
]

ENHANCERS: dict[str, type[Enhancer]] = {
    "none": NoEnhancer,
    "bicubic": BicubicEnhancer,
    "sparnet": SPARNet,
    "gfpgan": GFPGAN,
    "panini": PaniniNet,
    "vqfr": VQFR,
    "exegan": ExeGAN,
    "spandrel": SpandrelEnhancer,
}


def enhancer_class(name: str) -> type[Enhancer]:
    """The class of an enhancer.

    Raises:
        ConfigError: unknown name.
    """
    if name not in ENHANCERS:
        # Those with conditions are used by other commands than restore.
        known = ", ".join(name for name, kind in ENHANCERS.items() if not kind.conditions)
        raise ConfigError(f"unknown enhancer '{name}'; choose one of {known}")
    return ENHANCERS[name]


def option_names(kind: type[Enhancer]) -> list[str]:
    """The arguments of an enhancer's constructor."""
    return [name for name in inspect.signature(kind.__init__).parameters if name != "self"]


def build_enhancer(name: str, weights: str | Path | None = None, **options: Any) -> Enhancer:
    """An enhancer of ``ENHANCERS``, in evaluation mode.

    Args:
        name: a key of ``ENHANCERS``.
        weights: native folder (config.json + safetensors) that rebuilds the network; for
            ``spandrel`` an official file.
        options: constructor arguments instead of ``weights``: a fresh, untrained network.

    Raises:
        ConfigError: unknown name or option, or both sources given.
        CheckpointError: a folder that holds something else.
    """
    kind = enhancer_class(name)
    if kind is SpandrelEnhancer:
        if weights is None or options:
            raise ConfigError("'spandrel' takes weights alone: an official file")
        return load_spandrel(weights)
    if weights is None:
        known = option_names(kind)
        unknown = sorted(set(options) - set(known))
        if unknown:
            takes = ", ".join(known) or "no options"
            raise ConfigError(
                f"enhancer '{name}' has no option {', '.join(unknown)}; it takes {takes}"
            )
        return kind(**options).eval()
    if options:
        raise ConfigError(
            f"{weights} holds the options of '{name}'; do not give {', '.join(options)}"
        )
    hint = f"the enhancer '{name}' needs one; 'dr2pipe convert' makes it from an official file"
    if not kind.has_weights:
        check_class(weights, kind, hint=hint)
        return from_config(kind, read_config(Path(weights) / CONFIG)).eval()
    return load_network(weights, kind, hint=hint).eval()
