"""``dr2pipe explain``: what is wrong with a photo, and which settings fit it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from dr2pipe.core import images
from dr2pipe.core.config import load_config, stable_seed
from dr2pipe.core.errors import ConfigError, picture_named
from dr2pipe.core.models import find_file
from dr2pipe.core.processes import process_state
from dr2pipe.core.sheets import check_sheet, contact_sheet, write_sheet
from dr2pipe.diffusion.auto import AutoSetting, load_auto, unfamiliar_damage, unusual_features
from dr2pipe.faces import Quality
from dr2pipe.restoration.photos import NO_FACE, PhotoEngine
from dr2pipe.restoration.placing import PlacedFace
from dr2pipe.restoration.settings import RestorationConfig, check_restoration, load_photo_engine
from dr2pipe.restoration.tuning import Tried, try_settings

# From these levels on people see noise in a print, and JPEG's blocks (faces/quality.py).
SOME_NOISE, _MUCH_NOISE = 5.0, 15.0
SOME_BLOCKS, _MANY_BLOCKS = 0.25, 0.7
_CELL_PX, _LABEL_PX = 160, 18
_NAMES = {
    "detail_1": "the finest detail",
    "detail_2": "fine detail",
    "detail_3": "coarse detail",
    "detail_4": "the coarsest detail",
    "colour_noise": "colour noise",
    "direction": "blur along one direction",
}


@dataclass
class Explanation:
    """What ``dr2pipe explain`` says.

    Attributes:
        lines: sentences, one a line.
        sheet: (H,W,3) uint8, coarse faces of the largest face; None without one.
    """

    lines: list[str]
    sheet: images.Pixels | None


def explain(
    photo: str,
    *,
    preset: str = "default",
    sheet: str | None = None,
    overrides: Sequence[str] = (),
) -> Explanation:
    """Look at the faces of a photo, and try settings of stage 1 on the largest.

    Args:
        photo: its path.
        preset: name in ``configs/restore``, or a YAML file.
        sheet: where the sheet of coarse faces is written (PNG); None: nowhere.
        overrides: ``key=value`` settings that change those of the preset.

    Raises:
        PictureError: the photo cannot be read.
        ConfigError: an aligned preset, an invalid setting, or missing weights.
    """
    path = find_file("configs/restore", preset, what="preset")
    config = load_config(RestorationConfig, path, overrides)
    check_restoration(config)
    if config.faces.mode != "photos":
        raise ConfigError("explain takes a preset for whole photos")
    if sheet is not None:
        check_sheet(sheet, photo)
    engine, hashes = load_photo_engine(config, process_state().device)
    with picture_named(photo):
        data = images.read_file(photo)
        picture = images.decode_image(data, keep_own=True, whole_photo=True)
    is_faded = images.find_stretch(picture.pixels) is not None
    if config.contrast == "stretch":
        picture.stretch_contrast()
    faces = engine.prepare(picture, Path(photo).name).faces
    height, width = picture.pixels.shape[:2]
    lines = [f"{photo}: {width} x {height} pixels, faces: {len(faces)}"]
    if is_faded and config.contrast == "keep":
        lines.append("the photo is dark, hazy or faded: --set contrast=stretch mends that first")
    if not faces:
        lines += [
            f"{NO_FACE}. Is it small or very blurred? Enlarge or sharpen the photo, lower the limit "
            "(--set faces.min_score=0.4), or list the face by hand (docs/restore.md, a list of faces)."
        ]
        return Explanation(lines, None)
    auto = _auto_of(config, hashes)
    for number, face in enumerate(faces):
        lines += describe_damage(face, number, engine)
        if auto is not None and face.skipped is None:
            lines += _describe_choice(auto, face.degraded)
    grid = None
    if engine.restorer.restorer.remover is not None:
        seed = stable_seed(config.seed, faces[0].place)
        grid = try_settings(engine.restorer.restorer, faces[0].degraded, seed)
    pixels = None if grid is None else draw_sheet(faces[0].degraded, grid)
    if pixels is not None and sheet is not None:
        write_sheet(sheet, pixels)
        lines.append(f"coarse faces of face 0 over N (rows) and tau (columns): {sheet}")
    chosen = [] if preset == "default" else ["--preset", preset]
    chosen += ["--set", *overrides] if overrides else []
    lines.append("run: " + shlex.join(["dr2pipe", "restore", photo, "OUTPUT", *chosen]))
    return Explanation(lines, pixels)


def describe_damage(face: PlacedFace, number: int, engine: PhotoEngine) -> list[str]:
    """Sentences about what is wrong with a face."""
    quality = face.quality
    gives = engine.restorer.output_size
    found = (
        f"face {number}: {quality.side_px:.0f} pixels wide with its surroundings, with the detail of "
        f"{quality.effective_px:.0f}: {_blur(quality)}"
    )
    noise = _degree(quality.noise, SOME_NOISE, _MUCH_NOISE)
    blocks = _degree(quality.blockiness, SOME_BLOCKS, _MANY_BLOCKS)
    lines = [
        found,
        f"    noise: {noise} ({quality.noise:.1f} of 255); JPEG blocks: {blocks} "
        f"({quality.blockiness:.2f})",
    ]
    if face.skipped is not None:
        lines.append(f"    left alone: {face.skipped}")
    elif quality.side_px > 2 * gives:
        lines.append(
            f"    the networks of this preset give {gives} pixels: in the photo, the face stays soft; "
            "a larger preset helps (dr2pipe presets)"
        )
    return lines


def draw_sheet(degraded: torch.Tensor, grid: list[list[Tried]]) -> images.Pixels:
    """The input, and beside it coarse faces with their N, τ, ω and network calls below."""
    first = _cell(degraded, "input")
    rows = [[_cell(one.coarse, _label(one)) for one in row] for row in grid]
    white = np.full_like(first, 255)
    return contact_sheet([[first if i == 0 else white, *row] for i, row in enumerate(rows)])


def _label(one: Tried) -> str:
    return f"N {one.factor}, tau {one.tau}, omega {one.omega}: {one.calls} calls"


def _cell(face: torch.Tensor, label: str) -> images.Pixels:
    pixels = images.resize_pixels(images.to_uint8(face)[0], (_CELL_PX, _CELL_PX))
    cell = Image.new("RGB", (_CELL_PX, _CELL_PX + _LABEL_PX), "white")
    cell.paste(Image.fromarray(pixels))
    font = ImageFont.load_default(10)
    ImageDraw.Draw(cell).text((2, _CELL_PX + 3), label, fill="black", font=font)
    return np.asarray(cell)


def _blur(quality: Quality) -> str:
    if quality.effective_px >= quality.side_px * 0.7:
        return "sharp for its size"
    if quality.has_screen:
        return "printed dots or square pixels hide finer detail"
    return f"blurred, about {quality.side_px / quality.effective_px:.1f} times"


def _degree(value: float, some: float, much: float) -> str:
    return "little" if value < some else "some" if value < much else "much"


def _auto_of(config: RestorationConfig, hashes: dict[str, str]) -> AutoSetting | None:
    """The automatic setting, if it is fitted for the preset's stage 1."""
    if not config.dr2.enabled:
        return None
    setting, _ = load_auto(config.dr2.auto)
    return setting if setting.model_sha256 == hashes["dr2"] else None


def _describe_choice(setting: AutoSetting, degraded: torch.Tensor) -> list[str]:
    ((place, confidence),) = setting.choose(degraded)
    chosen = setting.candidates[place]
    what = "no stage 1: the enhancer alone"
    if chosen["enabled"]:
        what = f"N {chosen['factor']}, τ {chosen['tau']}, ω {chosen['omega']}"
    odd = [_NAMES.get(name, name) for name in unfamiliar_damage(setting, degraded)]
    if odd:
        why = f"its damage is unlike all that auto has seen ({', '.join(odd)}): the safe choice"
    else:
        far = list(unusual_features(setting, degraded).items())[:2]
        named = [
            f"{_NAMES.get(name, name)} {'above' if z > 0 else 'below'} the usual by {abs(z):.1f} "
            "deviations"
            for name, z in far
        ]
        why = f"{', '.join(named)}; confidence {confidence:.2f}"
    return [f"    auto would choose {what}: {why}"]
