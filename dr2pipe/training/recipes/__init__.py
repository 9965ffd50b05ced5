"""Recipes by name, and the one call that trains one."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dr2pipe.core.config import from_dict, load_config, peek
from dr2pipe.core.errors import ConfigError
from dr2pipe.data.coarse import CoarseCache
from dr2pipe.data.degradation_grid import DegradationGrid
from dr2pipe.data.degradation_pairs import DegradationPairs
from dr2pipe.data.folders import FaceDataset
from dr2pipe.data.landmarks import read_parts
from dr2pipe.data.masked import MaskedFaces
from dr2pipe.data.pairs import PairDataset
from dr2pipe.data.showings import ShowingDataset
from dr2pipe.data.tones import TonedFaces
from dr2pipe.training.checkpoints import load_newest_checkpoint, read_newest_state
from dr2pipe.training.recipe import PairsConfig, Recipe, TrainConfig, pair_of
from dr2pipe.training.recipes.ddpm import DDPMConfig, DDPMRecipe
from dr2pipe.training.recipes.degradation_encoder import (
    DegradationEncoderConfig,
    DegradationEncoderRecipe,
)
from dr2pipe.training.recipes.degradation_grid import (
    DegradationGridConfig,
    DegradationGridRecipe,
)
from dr2pipe.training.recipes.distil import DistilConfig, DistilRecipe
from dr2pipe.training.recipes.enhancer import EnhancerRecipe, EnhancerTrainConfig
from dr2pipe.training.recipes.exegan import ExeGANRecipe, ExeGANTrainConfig
from dr2pipe.training.recipes.gfpgan import GFPGANRecipe, GFPGANTrainConfig
from dr2pipe.training.recipes.panini import PaniniRecipe, PaniniTrainConfig
from dr2pipe.training.recipes.stylegan2 import StyleGAN2Recipe, StyleGAN2TrainConfig
from dr2pipe.training.recipes.vqfr import VQFRRecipe, VQFRTrainConfig
from dr2pipe.training.recipes.vqfr_codebook import CodebookRecipe, CodebookTrainConfig
from dr2pipe.training.trainer import Trainer


def clean_faces(config: TrainConfig) -> FaceDataset:
    """Clean faces."""
    data = config.data
    return FaceDataset(
        data.path, size=data.size, sources=data.sources, flip=data.flip, seed=config.seed
    )


def toned_faces(config: DDPMConfig) -> TonedFaces:
    """Clean faces in mixed tones."""
    return TonedFaces(clean_faces(config), config.tones, config.repeats)


def face_pairs(
    config: DistilConfig | EnhancerTrainConfig | PaniniTrainConfig | VQFRTrainConfig,
) -> PairDataset:
    """Clean faces, each with a coarse or degraded version of it."""
    return PairDataset(clean_faces(config), **_pair_options(config.pairs))


def face_pairs_with_parts(config: GFPGANTrainConfig) -> PairDataset:
    """As :func:`face_pairs`, with the places of eyes and mouth where ``landmarks`` are given."""
    parts = None
    if config.landmarks is not None:
        parts = read_parts(config.landmarks, config.landmarks_size)
    return PairDataset(clean_faces(config), parts=parts, **_pair_options(config.pairs))


def degradation_pairs(config: DegradationEncoderConfig) -> DegradationPairs:
    """Pairs of faces with the same degradation."""
    return DegradationPairs(
        clean_faces(config), config.degradations, recolour=config.recolour, jitter=config.jitter
    )


def degradation_grid(config: DegradationGridConfig) -> DegradationGrid:
    """Faces, each with all degradations of its batch."""
    return DegradationGrid(
        clean_faces(config),
        config.degradations,
        columns=config.columns,
        batch_size=config.batch_size,
        crop=config.crop,
        recolour=config.recolour,
        jitter=config.jitter,
    )


def masked_faces(config: ExeGANTrainConfig) -> MaskedFaces:
    """Clean faces and masks."""
    return MaskedFaces(clean_faces(config), config.masks)


def _pair_options(pairs: PairsConfig) -> dict[str, Any]:
    return {
        "input_size": pairs.input_size,
        "degradations": pairs.degradations,
        "coarse": None if pairs.coarse is None else CoarseCache(pairs.coarse),
        "coarse_share": pairs.coarse_share,
        "coarse_sigma_px": pair_of("pairs.coarse_sigma_px", pairs.coarse_sigma_px),
        "recolour": pairs.recolour,
        "jitter": pairs.jitter,
    }


# name: (class of its configuration, recipe, function that makes its data set). The recipe and the
# function take the configuration; each takes its own class, which a type of one dict cannot say.
RECIPES: dict[
    str,
    tuple[type[TrainConfig], Callable[[Any], Recipe], Callable[[Any], ShowingDataset]],
] = {
    "ddpm": (DDPMConfig, DDPMRecipe, toned_faces),
    "distil": (DistilConfig, DistilRecipe, face_pairs),
    "enhancer": (EnhancerTrainConfig, EnhancerRecipe, face_pairs),
    "stylegan2": (StyleGAN2TrainConfig, StyleGAN2Recipe, clean_faces),
    "degradation_encoder": (DegradationEncoderConfig, DegradationEncoderRecipe, degradation_pairs),
    "degradation_grid": (DegradationGridConfig, DegradationGridRecipe, degradation_grid),
    "gfpgan": (GFPGANTrainConfig, GFPGANRecipe, face_pairs_with_parts),
    "exegan": (ExeGANTrainConfig, ExeGANRecipe, masked_faces),
    "panini": (PaniniTrainConfig, PaniniRecipe, face_pairs),
    "vqfr_codebook": (CodebookTrainConfig, CodebookRecipe, clean_faces),
    "vqfr": (VQFRTrainConfig, VQFRRecipe, face_pairs),
}


def export_run(run: str | Path, folder: str | Path) -> int:
    """Write what the newest checkpoint of a running or stopped training has learned.

    Args:
        run: its output folder, which is left as it is.
        folder: for the networks, as ``final`` of a finished training; a new one.

    Returns:
        The step of the checkpoint.

    Raises:
        Dr2pipeError: no checkpoint there, or a damaged one; or ``folder`` exists.
        ConfigError: files that the recipe needs are gone.
    """
    folder = Path(folder)
    for taken in (folder, folder.with_name(f"{folder.name}_slow")):  # a DDPM may have two averages
        if os.path.lexists(taken):
            raise ConfigError(f"{taken} exists already; choose another folder or remove it first")
    state = read_newest_state(Path(run))
    name = state["recipe"]
    if name not in RECIPES:
        raise ConfigError(f"{run} is of the unknown recipe '{name}'")
    schema, make_recipe, _ = RECIPES[name]
    # The weights of init would be replaced, and its folder may be gone.
    config = from_dict(
        schema, state["config"] | ({"init": None} if "init" in state["config"] else {})
    )
    recipe = make_recipe(config)
    networks = {name: built.network for name, built in recipe.build().items()}
    state = load_newest_checkpoint(Path(run), networks, recipe=name) or state
    for name, average in state["emas"].items():
        for parameter, value in zip(
            networks[name].parameters(), average["shadow_params"], strict=True
        ):
            parameter.data.copy_(value)
    for network in networks.values():
        network.eval()
    recipe.export(networks, folder)
    return int(state["step"])


def run_recipe(config_path: str | Path, overrides: Sequence[str]) -> int:
    """Train what ``config_path`` describes.

    Returns:
        0, or 130 when SIGINT or SIGTERM stopped the run.

    Raises:
        Dr2pipeError: an invalid setting or unusable data, before the first step.
    """
    name = peek(config_path, overrides, "recipe")
    if not isinstance(name, str) or name not in RECIPES:
        raise ConfigError(f"unknown recipe '{name}'; choose one of {', '.join(RECIPES)}")
    schema, recipe, make_dataset = RECIPES[name]
    config = load_config(schema, config_path, overrides)
    return Trainer(config, recipe(config), make_dataset(config)).run()
