"""The settings of ``dr2pipe restore``."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from dr2pipe.core import images
from dr2pipe.core.errors import ConfigError
from dr2pipe.restoration.inpainter import InpainterConfig
from dr2pipe.restoration.settings import RestorationConfig, check_restoration
from dr2pipe.runs.options import RunOptions


@dataclass
class RepairConfig(InpainterConfig):
    """How holes, such as scratches, are filled before stage 1."""

    mask: str | None = None  # a picture for all, or a folder with one for each; null: no repair
    exemplar: str | None = None  # face whose style is used, likewise; null: the picture itself


@dataclass
class RestoreConfig(RestorationConfig):
    """Settings of ``dr2pipe restore``, as in ``configs/restore``."""

    input: str = MISSING  # a picture or a folder of pictures (recursive)
    output: str = MISSING  # a folder
    repair: RepairConfig = field(default_factory=RepairConfig)
    save_faces: bool = False  # of photos: aligned input, coarse, restored and mask of each face
    save_coarse: bool = False  # of aligned faces
    save_compare: bool = False  # input | coarse | restored, or photo before | after
    boxes: bool = False  # draw the faces' boxes into compare
    strict: bool = False  # a photo in which no face is found is a failure
    format: str = "png"  # png | jpg | webp (lossless) | keep: that of the input
    png_compression: int = images.DEFAULT_COMPRESSION  # 0 (none), 1 (fast) .. 9 (small and slow)
    quality: int | None = None  # 1..100 of jpg; null: that of a JPEG input, else 95
    bits: str = "keep"  # keep: results have the bits of their pictures, 8 or 16 | 8
    pages: str = "first"  # first | all: pages or frames of a file
    merge: bool = False  # let the results of another input join those in the output
    verify: bool = False  # compare the hashes of finished results, not only their sizes
    loader_threads: int | None = None  # read and decode; null: one for each core, 2 for photos
    writer_threads: int | None = None  # encode and write; null: two for each core, at most 32
    max_pixels: int = images.MAX_PIXELS

    def run_options(self) -> RunOptions:
        """How files are read and written."""
        return RunOptions(
            self.pages,
            self.merge,
            self.verify,
            self.format,
            self.png_compression,
            self.quality,
        )


def check_config(config: RestoreConfig) -> None:
    """See that settings have valid values, before anything is loaded or written.

    Raises:
        ConfigError: one has not.
    """
    check_restoration(config)
    if not config.input or not config.output:
        raise ConfigError("input and output must not be empty")
    if config.bits not in ("keep", "8"):
        raise ConfigError(f"bits '{config.bits}': choose keep or 8")
    if config.repair.mask is None and config.repair.exemplar is not None:
        raise ConfigError("an exemplar guides the repair of holes; give a mask (repair.mask) too")
    if "" in (config.repair.mask, config.repair.exemplar):
        raise ConfigError("repair.mask and repair.exemplar must not be empty")
    config.run_options().check_format()
    _check_mode(config)


def _check_mode(config: RestoreConfig) -> None:
    """Some settings belong to whole photos, some to aligned faces."""
    if config.faces.mode == "photos":
        if config.repair.exemplar is not None:
            raise ConfigError("repair.exemplar belongs to aligned faces: add --aligned")
        if config.save_coarse:
            raise ConfigError("save_coarse belongs to aligned faces; save_faces shows coarse faces")
        return
    of_photos = {
        "identity.minimum": config.identity.minimum,
        "identity.reference": config.identity.reference,
        "faces.file": config.faces.file,
        "background.weights": config.background.weights,
        "scale": config.scale if config.scale != 1 else None,
        **{name: getattr(config, name) or None for name in ("save_faces", "boxes", "strict")},
    }
    for section in ("faces", "paste"):
        given = vars(getattr(config, section))
        usual = vars(getattr(RestoreConfig(), section))
        differing = {name: given[name] for name in given if given[name] != usual[name]}
        of_photos |= {f"{section}.{name}": v for name, v in differing.items() if name != "mode"}
    of_photos["identity.measure"] = config.identity.measure or None
    for name, value in of_photos.items():
        if value is not None:
            raise ConfigError(
                f"{name}={value} belongs to whole photos; it does not go with --aligned"
            )
