"""Recipes by name, and the one call that trains one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dr2pipe.core.config import load_config, peek
from dr2pipe.core.errors import ConfigError
from dr2pipe.data.coarse import CoarseCache
from dr2pipe.data.degradation_pairs import DegradationPairs
from dr2pipe.data.folders import FaceDataset
from dr2pipe.data.landmarks import read_parts
from dr2pipe.data.masked import MaskedFaces
from dr2pipe.data.pairs import PairDataset
from dr2pipe.data.tones import TonedFaces
from dr2pipe.training.recipe import TrainConfig
from dr2pipe.training.recipes.ddpm import DDPMConfig, DDPMRecipe
from dr2pipe.training.recipes.degradation_encoder import (
    DegradationEncoderConfig,
    DegradationEncoderRecipe,
)
from dr2pipe.training.recipes.enhancer import EnhancerRecipe, EnhancerTrainConfig
from dr2pipe.training.recipes.exegan import ExeGANRecipe, ExeGANTrainConfig
from dr2pipe.training.recipes.gfpgan import GFPGANRecipe, GFPGANTrainConfig
from dr2pipe.training.recipes.panini import PaniniRecipe, PaniniTrainConfig
from dr2pipe.training.recipes.stylegan2 import StyleGAN2Recipe, StyleGAN2TrainConfig
from dr2pipe.training.trainer import Trainer


def faces_of(config: TrainConfig) -> FaceDataset:
    """Clean faces."""
    data = config.data
    return FaceDataset(
        data.path, size=data.size, sources=data.sources, flip=data.flip, seed=config.seed
    )


def toned_faces_of(config: DDPMConfig) -> TonedFaces:
    """Clean faces in mixed tones."""
    return TonedFaces(faces_of(config), config.tones, config.repeats)


def pairs_of(config: EnhancerTrainConfig | GFPGANTrainConfig | PaniniTrainConfig) -> PairDataset:
    """Clean faces with coarse or degraded versions of them, and landmarks where they are given."""
    pairs, parts = config.pairs, None
    if getattr(config, "landmarks", None) is not None:
        parts = read_parts(config.landmarks, config.landmarks_size)
    return PairDataset(
        faces_of(config),
        input_size=pairs.input_size,
        degradations=pairs.degradations,
        coarse=None if pairs.coarse is None else CoarseCache(pairs.coarse),
        coarse_share=pairs.coarse_share,
        coarse_sigma_px=tuple(pairs.coarse_sigma_px),
        recolour=pairs.recolour,
        jitter=pairs.jitter,
        parts=parts,
    )


def degradation_pairs_of(config: DegradationEncoderConfig) -> DegradationPairs:
    """Two faces with one degradation."""
    return DegradationPairs(
        faces_of(config), config.degradations, recolour=config.recolour, jitter=config.jitter
    )


def masked_faces_of(config: ExeGANTrainConfig) -> MaskedFaces:
    """Clean faces and masks."""
    return MaskedFaces(faces_of(config), config.masks)


# name: (schema, recipe, its data set)
RECIPES = {
    "ddpm": (DDPMConfig, DDPMRecipe, toned_faces_of),
    "enhancer": (EnhancerTrainConfig, EnhancerRecipe, pairs_of),
    "stylegan2": (StyleGAN2TrainConfig, StyleGAN2Recipe, faces_of),
    "degradation_encoder": (
        DegradationEncoderConfig,
        DegradationEncoderRecipe,
        degradation_pairs_of,
    ),
    "gfpgan": (GFPGANTrainConfig, GFPGANRecipe, pairs_of),
    "exegan": (ExeGANTrainConfig, ExeGANRecipe, masked_faces_of),
    "panini": (PaniniTrainConfig, PaniniRecipe, pairs_of),
}


def run_recipe(config_path: str | Path, overrides: Sequence[str]) -> int:
    """Train what ``config_path`` describes; returns 0, or 130 when it was interrupted.

    Raises:
        ConfigError, ValueError: an invalid setting or unusable data, before the first step.
    """
    name = peek(config_path, overrides, "recipe")
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe '{name}'; choose one of {', '.join(RECIPES)}")
    schema, recipe, dataset_of = RECIPES[name]
    config = load_config(schema, config_path, overrides)
    return Trainer(config, recipe(config), dataset_of(config)).run()
