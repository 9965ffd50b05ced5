"""Enhancers by name."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import torch

from dr2pipe.enhancers.base import BicubicEnhancer, Enhancer, NoEnhancer
from dr2pipe.enhancers.exegan import ExeGAN
from dr2pipe.enhancers.gfpgan import GFPGAN
from dr2pipe.enhancers.panini import PaniniNet
from dr2pipe.enhancers.spandrel import SpandrelEnhancer, load_spandrel
from dr2pipe.enhancers.sparnet import SPARNet

__all__ = ["ENHANCERS", "Enhancer", "build_enhancer"]

ENHANCERS: dict[str, type[torch.nn.Module]] = {
    "none": NoEnhancer,
    "bicubic": BicubicEnhancer,
    "sparnet": SPARNet,
    "gfpgan": GFPGAN,
    "panini": PaniniNet,
    "exegan": ExeGAN,
    "spandrel": SpandrelEnhancer,
}


def build_enhancer(name: str, weights: str | Path | None = None, **options) -> torch.nn.Module:
    """An enhancer of ``ENHANCERS``, in evaluation mode.

    Args:
        weights: native folder (config.json + safetensors) that rebuilds the network; for
            ``spandrel`` an official file.
        options: constructor arguments instead of ``weights``: a fresh, untrained network.

    Raises:
        ValueError: unknown name or option, both sources given, or a folder that holds
            something else.
    """
    if name not in ENHANCERS:
        raise ValueError(f"unknown enhancer '{name}'; choose one of {', '.join(ENHANCERS)}")
    kind = ENHANCERS[name]
    if kind is SpandrelEnhancer:
        if weights is None or options:
            raise ValueError("'spandrel' takes weights alone: an official file")
        return load_spandrel(weights)
    if weights is None:
        known = [p for p in inspect.signature(kind.__init__).parameters if p != "self"]
        unknown = sorted(set(options) - set(known))
        if unknown:
            takes = ", ".join(known) or "no options"
            raise ValueError(
                f"enhancer '{name}' has no option {', '.join(unknown)}; it takes {takes}"
            )
        return kind(**options).eval()
    if options:
        raise ValueError(
            f"{weights} tells the options of '{name}'; do not give {', '.join(options)}"
        )
    config = Path(weights) / "config.json"
    if not config.is_file():
        raise ValueError(
            f"no enhancer folder at {weights} (config.json is missing); "
            f"'dr2pipe convert' makes one from an official file"
        )
    made_by = json.loads(config.read_text())["_class_name"]
    if made_by != kind.__name__:
        raise ValueError(
            f"{weights} holds a {made_by}, not the enhancer '{name}' ({kind.__name__})"
        )
    return kind.from_pretrained(weights).eval()
