"""The settings of ``dr2pipe video``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from dr2pipe.core.errors import ConfigError
from dr2pipe.restoration.settings import RestorationConfig, check_restoration
from dr2pipe.runs.video_writing import ENDINGS


@dataclass
class VideoConfig(RestorationConfig):
    """Settings of ``dr2pipe video``; those of ``configs/restore``, and these."""

    input: str = MISSING  # a video
    output: str = MISSING  # a file; .mp4, .mov or .mkv
    codec: str = "h264"  # a key of CODECS
    quality: int | None = None  # constant quality (CRF), 0 is best; null: the codec's usual one
    preview_s: float | None = None  # restore so many seconds from the beginning alone
    strict: bool = False  # a video in which no face is found is a failure
    look_every: int = 5  # the detector looks at every so many frames
    steadiness: float = 0.7  # 0..0.99: share of the frame before in a face that did not change

    @staticmethod
    def complete_overrides(overrides: Sequence[str]) -> list[str]:
        """A preset that chooses N, τ and ω for each picture gives a video its fixed numbers."""
        is_given = any(override.partition("=")[0].strip() == "dr2.mode" for override in overrides)
        follows = RestorationConfig.complete_overrides(overrides)
        return [*([] if is_given else ["dr2.mode=fixed"]), *follows]


def check_video(config: VideoConfig) -> None:
    """See that settings have valid values and fit a video, before anything is loaded.

    Raises:
        ConfigError: one has not, or belongs to photos.
    """
    check_restoration(config)
    if not config.input or not config.output:
        raise ConfigError("input and output must not be empty")
    of_photos = {
        "faces.mode=aligned": config.faces.mode == "aligned",
        "faces.name=file": config.faces.name == "file",
        f"samples={config.samples}": config.samples > 1,
        f"scale={config.scale}": config.scale != 1,
        "background.weights": config.background.weights is not None,
        "identity.minimum": config.identity.minimum is not None,
        "identity.reference": config.identity.reference is not None,
        "colour=free": config.colour == "free",
        "contrast=stretch": config.contrast == "stretch",
    }
    for name, is_set in of_photos.items():
        if is_set:
            raise ConfigError(f"{name} belongs to photos; a video does not take it")
    if config.dr2.enabled and config.dr2.mode == "auto":
        raise ConfigError(
            "dr2.mode=auto chooses anew for every picture, so a video would flicker: use "
            "dr2.mode=fixed; dr2pipe explain says which settings fit a frame"
        )
    if config.look_every < 1:
        raise ConfigError(f"look_every={config.look_every} must be at least 1")
    if config.preview_s is not None and config.preview_s <= 0:
        raise ConfigError(f"preview_s={config.preview_s:g} must be over 0")
    ending = Path(config.output).suffix.lower()
    if ending not in ENDINGS:
        raise ConfigError(f"{config.output}: choose a name that ends in {', '.join(ENDINGS)}")
    if Path(config.output).is_dir():
        raise ConfigError(f"{config.output} is a folder; name the file of the result")
    if os.path.realpath(config.input) == os.path.realpath(config.output):
        raise ConfigError(f"{config.output} is the input; choose another output")
