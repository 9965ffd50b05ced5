"""Recipes by name, and the one call that trains one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dr2pipe.config import ConfigError, load_config, peek
from dr2pipe.data.folders import FaceDataset
from dr2pipe.training.ddpm import DDPMConfig, DDPMRecipe
from dr2pipe.training.trainer import Trainer

# name: (schema, recipe)
RECIPES = {
    "ddpm": (DDPMConfig, DDPMRecipe),
}


def run_recipe(config_path: str | Path, overrides: Sequence[str]) -> int:
    """Train what ``config_path`` describes; returns 0, or 130 when it was interrupted.

    Raises:
        ConfigError, ValueError: an invalid setting or unusable data, before the first step.
    """
    name = peek(config_path, overrides, "recipe")
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe '{name}'; choose one of {', '.join(RECIPES)}")
    schema, recipe = RECIPES[name]
    config = load_config(schema, config_path, overrides)
    data = config.data
    dataset = FaceDataset(
        data.path, size=data.size, sources=data.sources, flip=data.flip, seed=config.seed
    )
    return Trainer(config, recipe(config), dataset).run()
