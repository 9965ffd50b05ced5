"""Restoring photos from Python: ``PhotoRestorer.from_preset("default")(image)``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from dr2pipe.core import images
from dr2pipe.core.config import load_config
from dr2pipe.core.errors import ConfigError, PictureError, picture_named
from dr2pipe.core.models import find_file
from dr2pipe.faces import ListedDetector
from dr2pipe.restoration.photos import PhotoEngine
from dr2pipe.restoration.settings import RestorationConfig, check_restoration, load_photo_engine

Photo = TypeVar("Photo", Image.Image, npt.NDArray[np.uint8], torch.Tensor)


@dataclass
class PhotoResult:
    """A restored photo.

    Attributes:
        image: of the kind that was given.
        faces: what the manifest of a run says of each face: its box, landmarks, score, quality,
            seed, and why it was skipped if it was.
    """

    image: Any
    faces: list[dict[str, Any]]


class PhotoRestorer:
    """Restores the faces of photos.

    Args:
        engine: finds, restores and pastes them.
        seed: of the random part of stage 1.
        stretch_contrast: dark, hazy and faded photos get the usual range of levels.
    """

    def __init__(self, engine: PhotoEngine, *, seed: int = 0, stretch_contrast: bool = False):
        self.engine, self.seed, self.stretch_contrast = engine, seed, stretch_contrast

    @classmethod
    def from_preset(
        cls, name: str | Path = "default", *, device: torch.device | str = "cpu", **settings: Any
    ) -> PhotoRestorer:
        """Load a preset of ``configs/restore``, or a YAML file.

        Args:
            name: of the preset, or a path.
            device: where the networks run.
            settings: what ``--set`` takes, with ``__`` for the dots: ``faces__min_px=32``; or a
                section as a mapping: ``faces={"min_px": 32}``.

        Raises:
            ConfigError: no such preset, or an invalid setting.
            CheckpointError: weights that cannot be used.
        """
        overrides = [f"{key.replace('__', '.')}={_text(value)}" for key, value in settings.items()]
        path = find_file("configs/restore", name, what="preset")
        config = load_config(RestorationConfig, path, overrides)
        check_restoration(config)
        if config.faces.mode != "photos":
            raise ConfigError("a PhotoRestorer takes whole photos; see Restorer for aligned faces")
        engine, _ = load_photo_engine(config, device)
        return cls(engine, seed=config.seed, stretch_contrast=config.contrast == "stretch")

    def __call__(self, image: Photo | str | Path, *, seed: int | None = None) -> PhotoResult:
        """Restore the faces of one photo.

        Args:
            image: a Pillow picture; (H,W,3) or (H,W) uint8 RGB; a tensor (3,H,W) or (1,3,H,W) RGB
                in [-1,1]; or the path of a file, whose result is (H,W,3) or (H,W) with the bits
                and in the colour space of the file. A picture that says how it is turned comes
                back upright. With ``faces.name=file`` the list is asked for the longest ending
                of the path that it names.
            seed: another one than the restorer's.

        Raises:
            PictureError: no such picture.
        """
        path = str(image) if isinstance(image, str | Path) else ""
        if isinstance(self.engine.detector, ListedDetector):
            if not path:
                raise ConfigError(
                    "faces.name=file looks photos up by name: give the path of a file"
                )
            path = self.engine.detector.listed_name(path)
        picture = _decoded(image)
        assert picture.own is not None
        if self.stretch_contrast:
            picture.stretch_contrast()
        photo = self.engine.prepare(picture, path)
        (result,) = self.engine.restore([photo], [self.seed if seed is None else seed])
        levels = picture.own.levels.copy() if result.levels is None else result.levels
        faces = [face.record for face in result.faces]
        return PhotoResult(_as_given(image, levels, picture), faces)


def _decoded(
    image: Image.Image | npt.NDArray[np.uint8] | torch.Tensor | str | Path,
) -> images.Picture:
    if isinstance(image, str | Path):
        with picture_named(image):
            data = images.read_file(image)
            return images.decode_image(data, keep_own=True, whole_photo=True)
    if isinstance(image, torch.Tensor):
        batch = (image if image.ndim == 4 else image[None]).cpu()
        images.check_tensor(batch)
        if len(batch) > 1:
            raise PictureError(f"expected one picture (3,H,W) or (1,3,H,W), not {len(batch)}")
        return _decoded(images.to_uint8(batch)[0])
    if isinstance(image, np.ndarray):
        if (
            image.dtype != np.uint8
            or image.ndim not in (2, 3)
            or image.shape[2:] not in ((), (3,))
            or not image.size
        ):
            raise PictureError(f"expected (H,W,3) or (H,W) uint8, not {image.shape} {image.dtype}")
        return images.picture_of(
            Image.fromarray(np.ascontiguousarray(image)), keep_own=True, whole_photo=True
        )
    return images.picture_of(image, keep_own=True, whole_photo=True)


def _as_given(image: Any, levels: images.Levels, picture: images.Picture) -> Any:
    if isinstance(image, torch.Tensor):
        tensor = images.to_tensor(np.asarray(levels, np.uint8))
        return tensor if image.ndim == 4 else tensor[0]
    if not isinstance(image, Image.Image):
        return levels
    own = picture.own
    if own is not None and own.is_other_than_srgb and own.profile is None:
        levels = own.to_srgb(levels)  # nothing that Pillow saves would say in which space they are
    is_deep = image.mode.startswith("I;16") and levels.dtype == np.uint16 and levels.ndim == 2
    result = Image.fromarray(levels if is_deep else images.reduced(levels))
    if picture.alpha is not None:
        result.putalpha(Image.fromarray(images.reduced(picture.alpha)))
    if own is not None and own.profile is not None:
        result.info["icc_profile"] = own.profile  # Pillow saves it by itself
    if picture.metadata.dpi is not None:
        result.info["dpi"] = picture.metadata.dpi
    return result


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return json.dumps(dict(value), default=str)
    return "null" if value is None else str(value)
