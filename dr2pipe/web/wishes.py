"""What a person wishes, in words, as settings of ``dr2pipe restore``."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field

from dr2pipe.core.config import load_config
from dr2pipe.core.errors import ConfigError
from dr2pipe.core.models import find_file, find_model, is_here
from dr2pipe.enhancers import sharp_folder
from dr2pipe.restoration.settings import RestorationConfig
from dr2pipe.restoration.tuning import settings_for, stage1_settings

MOST_VARIANTS = 8
_LARGEST_SEED = (1 << 31) - 1
_WITH_REFERENCES = 4  # samples of each face, of which the most alike is taken


@dataclass
class Wish:
    """The controls of the page.

    Attributes:
        preset: name in ``configs/restore``.
        damage: one of ``DAMAGES``.
        tau: τ, likeness (low) against cleanness (high); None: as the damage says.
        sharpness: 0..1, where the preset's enhancer has a sharp variant; None: as the preset says.
        skip_good: leave good faces alone.
        stretch_contrast: bring dark, hazy and faded photos to the usual range of levels.
        scale: 1, 2 or 4.
        seed: of the noise.
        variants: how many results with other noise are made; their seeds follow ``seed``.
        faces: numbers of the faces that are restored, by photo; photos that are not named have all.
        marks: whether a photo has places that are marked with the brush.
        references: whether there are photos of the person.
    """

    preset: str = "default"
    damage: str = "auto"
    tau: int | None = None
    sharpness: float | None = None
    skip_good: bool = True
    stretch_contrast: bool = False
    scale: int = 1
    seed: int = 0
    variants: int = 1
    faces: dict[str, list[int]] = field(default_factory=dict)
    marks: bool = False
    references: bool = False


def preset_config(preset: str) -> RestorationConfig:
    """The settings of a preset."""
    path = find_file("configs/restore", preset, what="preset")
    return load_config(RestorationConfig, path)


def usual_sharpness(preset: str) -> float | None:
    """The sharpness that a preset has; None where its enhancer has no sharp variant."""
    enhancer = preset_config(preset).enhancer
    if enhancer.weights is None or not is_here(enhancer.weights):
        return None
    try:
        sharp_folder(find_model(enhancer.weights))
    except ConfigError:
        return None
    return enhancer.sharpness or 0.0


def usual_damage(preset: str) -> str:
    """The word for the settings that a preset has."""
    return "auto" if preset_config(preset).dr2.mode == "auto" else "medium"


def usual_tau(wish: Wish) -> int:
    """τ that the damage says; that of the preset where it is chosen for each face, or not used."""
    for setting in settings_for(wish.damage, preset_config(wish.preset).dr2):
        if setting.startswith("dr2.tau="):
            return int(setting.partition("=")[2])
    return preset_config(wish.preset).dr2.tau


def overrides_of(wish: Wish) -> list[str]:
    """What ``--set`` takes.

    Raises:
        ConfigError: wishes that do not fit the preset, or numbers out of range.
    """
    config = preset_config(wish.preset)
    if not 1 <= wish.variants <= MOST_VARIANTS:
        raise ConfigError(f"choose 1 to {MOST_VARIANTS} variants, not {wish.variants}")
    if wish.scale not in (1, 2, 4):
        raise ConfigError(f"the scale is 1, 2 or 4, not {wish.scale}")
    if not 0 <= wish.seed <= _LARGEST_SEED - wish.variants + 1:
        raise ConfigError(f"the seeds are whole numbers from 0 to {_LARGEST_SEED}")
    settings = settings_for(wish.damage, config.dr2)
    is_chosen = wish.damage == "auto" or not config.dr2.enabled
    if wish.tau is not None and wish.tau != usual_tau(wish) and not is_chosen:
        factor = config.dr2.factor
        for setting in settings:
            if setting.startswith("dr2.factor="):
                factor = int(setting.partition("=")[2])
        settings = stage1_settings(factor, wish.tau, config.dr2)
    if wish.sharpness is not None and wish.sharpness != (config.enhancer.sharpness or 0):
        settings.append(f"enhancer.sharpness={wish.sharpness:g}")
    if not wish.skip_good:
        settings.append("faces.skip_good=false")
    if wish.stretch_contrast:
        settings.append("contrast=stretch")
    if wish.scale != 1:
        settings.append(f"scale={wish.scale}")
    if wish.variants > 1 and config.dr2.antithetic:  # else variants would hardly differ
        settings.append("dr2.antithetic=false")
    if wish.seed:
        settings.append(f"seed={wish.seed}")
    if wish.references:
        settings.append(f"samples={_WITH_REFERENCES}")
    return settings


def command_of(wish: Wish, photo: str, *, listed: bool = False, marked: bool = False) -> str:
    """The command that makes the same file.

    Args:
        wish: the controls.
        photo: its name.
        listed: the faces were chosen: faces.json of the download names them.
        marked: the photo has marked places: marks.png of the download shows them.
    """
    words = ["dr2pipe", "restore", photo, "OUTPUT"]
    words += [] if wish.preset == "default" else ["--preset", wish.preset]
    words += ["--mask", f"marks/{photo}.png"] if marked else []
    words += ["--reference", "REFERENCES"] if wish.references else []
    settings = overrides_of(wish)
    settings += ["faces.name=file", "faces.file=faces.json"] if listed else []
    return shlex.join(words + (["--set", *settings] if settings else []))
