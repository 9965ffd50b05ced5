"""``dr2pipe restore`` on whole photos: the same photos out, with their faces restored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch

from dr2pipe.core import images
from dr2pipe.core.errors import PictureError
from dr2pipe.core.sheets import side_by_side
from dr2pipe.faces import ListedDetector, build_detector
from dr2pipe.restoration.inpainter import Inpainter, load_inpainter, read_mask
from dr2pipe.restoration.photos import NO_FACE, PhotoEngine, RestoredPhoto
from dr2pipe.restoration.placing import FacePlacer, PreparedPhoto
from dr2pipe.restoration.scratches import fill_marks
from dr2pipe.restoration.settings import load_photo_engine
from dr2pipe.runs.batches import BatchResult, Result
from dr2pipe.runs.jobs import PairedFiles, ending_of
from dr2pipe.runs.restore_config import RestoreConfig
from dr2pipe.runs.restore_notes import describe_repair, describe_settings, text_of_result
from dr2pipe.runs.result_folders import COMPARE, FACES, RESTORED
from dr2pipe.runs.steps import Steps

_BOX_COLOUR = (255, 208, 0)
_LARGEST_COMPARED_PX = 2048  # longer side of each half of compare/


def photo_steps(
    config: RestoreConfig,
    device: torch.device | str,
    *,
    loaded: tuple[PhotoEngine, dict[str, str]] | None = None,
    watch: Callable[[str], None] | None = None,
) -> Steps:
    """What a run does with every photo.

    Args:
        config: the settings.
        device: where the networks run.
        loaded: what ``load_photo_engine`` gave for the same settings, where it is loaded already.
        watch: called with the name of each stage, from several threads.

    Raises:
        Dr2pipeError: an invalid setting, or missing weights.
    """
    engine, weight_hashes = loaded or load_photo_engine(config, device)
    say = watch or _tell_nobody
    repair, paired = None, {}
    if config.repair.mask is not None:
        repair, repair_hashes = load_inpainter(config.repair, device=device)
        weight_hashes = weight_hashes | repair_hashes
        paired["mask"] = PairedFiles(config.repair.mask, read_mask)
    settings = describe_settings(config, engine.restorer.restorer, weight_hashes)
    if repair is not None:
        settings["repair"] = describe_repair(repair)
    optional = {FACES: config.save_faces, COMPARE: config.save_compare}
    outputs = [RESTORED, *(name for name, wanted in optional.items() if wanted)]
    saved = _saved(config)

    def process(
        photos: list[PreparedPhoto],
        seeds: list[int],
        pictures: list[images.Picture],
        mask: list[torch.Tensor] | None = None,
    ) -> BatchResult:
        warnings = _fill(photos, mask, seeds, repair, say)
        say(f"restoring faces: {sum(not f.skipped for photo in photos for f in photo.faces)}")
        result = restore_batch(engine, photos, seeds, outputs, bits=config.bits, saved=saved)
        say("saving")
        for listed, warning in zip(result.warnings or [], warnings, strict=True):
            listed += [] if warning is None else [warning]
        return result

    return Steps(
        process=process,
        size=None,
        output_size=None,
        settings=settings,
        outputs=outputs,
        seed=config.seed,
        batch_size=engine.restorer.batch_size,
        max_pixels=config.max_pixels,
        stretch_contrast=config.contrast == "stretch",
        keep_own=True,
        prepare=photo_preparation(config, engine.placer, watch=watch),
        face_sizes=(engine.restorer.input_size, engine.restorer.output_size),
        lacks=partial(_lacks, saved, config.strict),
        png_text=text_of_result(config, settings, device),
        paired=paired,
        options=config.run_options(),
    )


def _tell_nobody(stage: str) -> None:
    pass


def _fill(
    photos: list[PreparedPhoto],
    masks: list[torch.Tensor] | None,
    seeds: list[int],
    repair: Inpainter | None,
    say: Callable[[str], None],
) -> list[str | None]:
    """Fill the marked places of photos; returns a warning or None for each photo."""
    if repair is None or masks is None:
        return [None] * len(photos)
    say("filling the marked places")
    return list(fill_marks(photos, masks, seeds, repair))


def photo_preparation(
    config: RestoreConfig, placer: FacePlacer, *, watch: Callable[[str], None] | None = None
) -> Callable[[images.Picture, str], PreparedPhoto]:
    """What finds the faces of a decoded photo, and refuses what cannot be saved."""

    def prepare(picture: images.Picture, path: str) -> PreparedPhoto:
        height, width = (side * config.scale for side in picture.pixels.shape[:2])
        name = "x" + ending_of(path.partition("#")[0], config.format)
        images.check_kind(name, width, height, has_alpha=picture.alpha is not None)
        if watch is not None:
            watch(f"finding faces: {path}")
        photo = placer.prepare(picture, path)
        if config.strict and not photo.faces:
            raise PictureError(NO_FACE)
        return photo

    return prepare


def check_listed(config: RestoreConfig, relatives: Iterable[str]) -> None:
    """See that a list of faces, where there is one, speaks of these photos.

    Raises:
        ConfigError: it names none of them.
    """
    if config.faces.name == "file":
        detector = build_detector(config.faces)
        assert isinstance(detector, ListedDetector)
        detector.check_names(list(relatives))


def _saved(config: RestoreConfig) -> dict[str, bool]:
    return {FACES: config.save_faces, "boxes": config.save_compare and config.boxes}


def _lacks(saved: Mapping[str, bool], strict: bool, record: dict[str, Any]) -> bool:
    """Whether a finished photo's record lacks what is to be saved."""
    found = record.get("saved", {})
    return (strict and not record.get("faces")) or any(
        wanted and not found.get(name) for name, wanted in saved.items()
    )


def restore_batch(
    engine: PhotoEngine,
    photos: list[PreparedPhoto],
    seeds: list[int],
    outputs: list[str],
    *,
    bits: str = "keep",
    saved: Mapping[str, bool] | None = None,
) -> BatchResult:
    """Restore the faces of several photos, as results by result folder.

    Args:
        engine: restores them.
        photos: as the engine prepares them.
        seeds: one for each photo.
        outputs: the result folders that are wanted.
        bits: ``keep`` or ``8``.
        saved: what is saved besides; ``boxes`` draws the faces' boxes into ``compare``.
    """
    pixels: list[dict[str, Result | None]] = []
    saved = dict(saved or {})
    found = engine.restore(photos, seeds)
    for photo, restored in zip(photos, found, strict=True):
        levels, own = restored.levels, photo.picture.own
        if bits == "8" and own is not None and own.levels.dtype != np.uint8:
            levels = images.reduced(own.levels if levels is None else levels)
        results: dict[str, Result | None] = {RESTORED: levels}
        if FACES in outputs:
            results[FACES] = _pieces(restored)
        if COMPARE in outputs:
            results[COMPARE] = compare(photo, restored, boxes=saved.get("boxes", False))
        pixels.append(results)
    return BatchResult(
        pixels,
        notes=[{} for _ in photos],
        warnings=[result.warnings for result in found],
        records=[
            {"faces": [face.record for face in result.faces], "saved": saved} for result in found
        ],
        in_own_space=frozenset({RESTORED}),
    )


def _pieces(restored: RestoredPhoto) -> Mapping[str, images.Pixels]:
    return {
        f"{number:03}_{name}": pixels
        for number, face in enumerate(restored.faces)
        for name, pixels in face.pieces.items()
    }


def compare(photo: PreparedPhoto, restored: RestoredPhoto, *, boxes: bool) -> images.Pixels:
    """The photo before and after, side by side, (H,W,3) uint8 sRGB."""
    picture = photo.picture
    assert picture.own is not None
    levels = picture.own.levels if restored.levels is None else restored.levels
    halves = [_looked_at(picture, level) for level in (picture.own.levels, levels)]
    if picture.stretch is not None:
        halves[0] = np.asarray(picture.stretch.undo(halves[0]), np.uint8)
    if boxes:
        height = picture.pixels.shape[0]
        for half in halves:
            _draw_boxes(half, photo, half.shape[0] / height)
    return np.asarray(side_by_side(halves), np.uint8)


def _looked_at(picture: images.Picture, levels: images.Levels) -> images.Pixels:
    """(h,w,3) uint8 sRGB of samples in the photo's own space, at a size that fits a screen."""
    assert picture.own is not None
    height, width = levels.shape[:2]
    shrink = min(1.0, _LARGEST_COMPARED_PX / max(height, width))
    size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
    if size != (height, width):
        levels = cv2.resize(levels, size[::-1], interpolation=cv2.INTER_AREA)
    pixels = images.reduced(picture.own.to_srgb(levels))
    return np.array(pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2))


def _draw_boxes(pixels: images.Pixels, photo: PreparedPhoto, scale: float) -> None:
    width_px = max(1, round(min(pixels.shape[:2]) / 300))
    for face in photo.faces:
        x, y, width, height = (value * scale for value in face.face.box)
        corners = (round(x), round(y)), (round(x + width), round(y + height))
        cv2.rectangle(pixels, *corners, _BOX_COLOUR, width_px)
