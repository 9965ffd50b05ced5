"""Settings of a restoration, apart from where its files are; and what is built from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from dr2pipe.core.errors import ConfigError
from dr2pipe.diffusion.noise import NOISES
from dr2pipe.diffusion.stage1 import DR2Config
from dr2pipe.faces import build_detector, check_detector
from dr2pipe.restoration.background import BackgroundConfig, load_background
from dr2pipe.restoration.batch_size import resolve_batch_size
from dr2pipe.restoration.face_batches import FaceRestorer
from dr2pipe.restoration.photos import PasteConfig, PhotoEngine
from dr2pipe.restoration.placing import FacesConfig
from dr2pipe.restoration.precision import restoration_precision
from dr2pipe.restoration.restorer import EnhancerConfig, Restorer, build_restorer
from dr2pipe.restoration.same_person import IdentityConfig, load_same_person
from dr2pipe.restoration.samples import COMBINE

# What a candidate of the automatic setting says, and the network that it was fitted for. A student
# takes the place of that network's calls, and changes no choice.
_CHOSEN_BY_AUTO = {
    f"dr2.{name}"
    for name in (
        *("model", "scheduler", "variance", "low_pass", "factor", "sigma_px", "cutoff"),
        *("tau", "omega", "num_steps", "num_evaluations"),
    )
}
CONTRASTS = ("keep", "stretch")


@dataclass
class RestorationConfig:
    """Settings that decide a result, as in ``configs/restore``."""

    seed: int = 0
    dr2: DR2Config = field(default_factory=DR2Config)
    enhancer: EnhancerConfig = field(default_factory=EnhancerConfig)
    batch_size: int | str = 8  # faces at once, per process | auto: as many as are worth it
    precision: str = "fp32"  # fp32 | bf16 | fp16 | auto: bf16 where it measured faster, else fp32
    attention: str = "auto"  # auto | sdpa | xformers
    channels_last: bool | None = None  # null: where it measured faster
    compile: bool = False
    noise: str = (
        "auto"  # reference (torch's generators) | philox | auto: reference on a CPU, else philox
    )
    samples: int = 1  # restorations of each face with different noise
    combine: str = "mean"  # mean | medoid of the samples
    colour: str = "keep"  # keep: monochrome pictures keep their tint | free
    contrast: str = "keep"  # keep | stretch: dark, hazy and faded pictures get the usual range
    faces: FacesConfig = field(default_factory=FacesConfig)
    paste: PasteConfig = field(default_factory=PasteConfig)
    scale: int = 1  # 1 | 2 | 4: the whole photo is enlarged
    background: BackgroundConfig = field(default_factory=BackgroundConfig)
    identity: IdentityConfig = field(default_factory=IdentityConfig)

    @staticmethod
    def complete_overrides(overrides: Sequence[str]) -> list[str]:
        """What follows from settings that are given by hand.

        * Whoever sets N, τ, ω or the like wants them to hold: the mode is fixed, unless a mode or
          a file for the mode ``auto`` is given too.
        * An enhancer given by hand is taken as it is: see :func:`complete_enhancer`.

        Args:
            overrides: ``"key=value"`` strings.
        """
        keys = {override.partition("=")[0].strip() for override in overrides}
        follows = []
        if keys & _CHOSEN_BY_AUTO and not keys & {"dr2.mode", "dr2.auto"}:
            follows.append("dr2.mode=fixed")
        return [*follows, *complete_enhancer(overrides)]


def complete_enhancer(overrides: Sequence[str]) -> list[str]:
    """An enhancer given by hand need not have a sharp variant: it is taken as it is.

    A sharpness that is given too holds, since it comes later.
    """
    keys = {override.partition("=")[0].strip() for override in overrides}
    by_hand = keys & {"enhancer.name", "enhancer.weights"}
    return [*(["enhancer.sharpness=null"] if by_hand else []), *overrides]


def check_restoration(config: RestorationConfig) -> None:
    """See that settings have valid values, before anything is loaded.

    Raises:
        ConfigError: one has not.
    """
    if config.faces.mode not in ("photos", "aligned"):
        raise ConfigError(f"faces.mode '{config.faces.mode}': choose photos or aligned")
    check_detector(config.faces)
    if config.colour not in ("keep", "free"):
        raise ConfigError(f"colour '{config.colour}': choose keep or free")
    if config.contrast not in CONTRASTS:
        raise ConfigError(f"contrast '{config.contrast}': choose {', '.join(CONTRASTS)}")
    if config.noise not in NOISES:
        raise ConfigError(f"noise '{config.noise}': choose {', '.join(NOISES)}")
    if config.samples < 1:
        raise ConfigError(f"samples={config.samples} must be at least 1")
    if config.combine not in COMBINE:
        raise ConfigError(f"combine '{config.combine}': choose {', '.join(COMBINE)}")
    if config.samples > 1 and not config.dr2.enabled:
        raise ConfigError("samples differ by the noise of stage 1 alone, and dr2.enabled is false")


def load_restorer(
    config: RestorationConfig, device: torch.device | str
) -> tuple[Restorer, dict[str, str]]:
    """Both stages of a configuration, and the sha256 of every weight file."""
    return build_restorer(
        config.dr2,
        config.enhancer,
        device=device,
        precision=restoration_precision(config.precision, config.enhancer.name, device),
        attention=config.attention,
        channels_last=config.channels_last,
        compile=config.compile,
        noise=config.noise,
    )


def load_photo_engine(
    config: RestorationConfig, device: torch.device | str
) -> tuple[PhotoEngine, dict[str, str]]:
    """What restores whole photos, and the sha256 of every weight file.

    Raises:
        Dr2pipeError: an invalid setting, or missing weights.
    """
    detector = build_detector(config.faces)
    background, background_hashes = load_background(config.background, config.scale)
    same_person = load_same_person(config.identity, config.samples, device)
    restorer, hashes = load_restorer(config, device)
    faces = FaceRestorer(
        restorer,
        batch_size=resolve_batch_size(config.batch_size, restorer),
        samples=config.samples,
        combine=config.combine,
        same_person=same_person,
    )
    engine = PhotoEngine(
        faces,
        detector,
        faces=config.faces,
        paste=config.paste,
        background=background,
        keep_tint=config.colour == "keep",
    )
    return engine, hashes | background_hashes
