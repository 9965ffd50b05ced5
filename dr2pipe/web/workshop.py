"""The work behind the page: find faces, restore, tune. Nothing here knows gradio."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from dr2pipe.core import files, images
from dr2pipe.core.config import load_config, stable_hash, stable_seed, to_dict
from dr2pipe.core.errors import PictureError
from dr2pipe.core.models import find_file
from dr2pipe.core.processes import process_state
from dr2pipe.restoration.photos import PhotoEngine
from dr2pipe.restoration.placing import PlacedFace
from dr2pipe.restoration.settings import RestorationConfig, load_photo_engine
from dr2pipe.restoration.tuning import Tried, try_settings
from dr2pipe.runs.explain import SOME_BLOCKS, SOME_NOISE
from dr2pipe.runs.restore import restore_folder
from dr2pipe.runs.restore_config import RestoreConfig, check_config
from dr2pipe.web.results import Done, Outcome, add_spreads, record_of, sentences, zip_results
from dr2pipe.web.visits import FoundFace, Limits, Photo, Visit, take_upload, write_preview
from dr2pipe.web.wishes import Wish, command_of, overrides_of

Say = Callable[[float, str], None]

_MOST_ENGINES = 2  # in memory
_BOX_COLOUR, _LEFT_COLOUR = (255, 208, 0), (150, 150, 150)
_LARGEST_BOXES_PX = 1600


class Workshop:
    """Engines by their settings, and what is done with them. One call at a time works.

    Args:
        limits: of uploads.
    """

    def __init__(self, limits: Limits | None = None):
        self.limits = limits or Limits()
        self._engines: dict[str, tuple[PhotoEngine, dict[str, str]]] = {}
        self._lock = threading.Lock()

    def engine(self, config: RestorationConfig) -> tuple[PhotoEngine, dict[str, str]]:
        """What restores with these settings; loaded once."""
        values = to_dict(config)
        of_no_engine = ("seed", "contrast")
        names = [f.name for f in dataclasses.fields(RestorationConfig)]
        key = stable_hash({name: values[name] for name in names if name not in of_no_engine})
        with self._lock:
            if key not in self._engines:
                while len(self._engines) >= _MOST_ENGINES:
                    self._engines.pop(next(iter(self._engines)))
                self._engines[key] = load_photo_engine(config, process_state().device)
            self._engines[key] = self._engines.pop(key)  # the latest is last
            return self._engines[key]

    def warm_up(self, preset: str) -> None:
        """Load a preset, and run its networks once, so that the first visitor does not wait.

        Raises:
            Dr2pipeError: no such preset, or missing weights.
        """
        path = find_file("configs/restore", preset, what="preset")
        engine, _ = self.engine(load_config(RestorationConfig, path))
        restorer = engine.restorer.restorer
        restorer(torch.zeros(1, 3, restorer.input_size, restorer.input_size), [0])

    # -- finding -----------------------------------------------------------------------------

    def take(self, visit: Visit, uploads: Sequence[str], preset: str, say: Say) -> list[str]:
        """Take photos over from uploads, in the place of those before, and find their faces.

        Returns:
            Sentences about uploads that were refused.

        Raises:
            PictureError: none of them could be taken, or there are too many; those before stay.
        """
        if len(uploads) > self.limits.photos:
            raise PictureError(
                f"{len(uploads)} photos are too many at a time: choose up to {self.limits.photos}"
            )
        visit.takes += 1
        folder = visit.new_folder(f"photos{visit.takes}")
        uploaded, shown = folder / "uploads", folder / "shown"
        path = find_file("configs/restore", preset, what="preset")
        engine, _ = self.engine(load_config(RestorationConfig, path))
        refused, photos = [], dict[str, Photo]()
        for number, upload in enumerate(uploads):
            say(number / len(uploads), f"finding faces: {Path(upload).name}")
            try:
                if Path(upload).name in photos:
                    raise PictureError(
                        f"{Path(upload).name}: another photo has the same name: rename it"
                    )
                target, picture = take_upload(upload, uploaded, self.limits)
                photo = self._look(engine, target, picture, shown / str(number))
            except PictureError as error:
                refused.append(str(error))
                continue
            photos[photo.name] = photo
        if not photos:
            shutil.rmtree(folder, ignore_errors=True)
            raise PictureError(" ".join(refused) or "choose a photo first")
        visit.replace_photos(photos, folder)
        return refused

    def _look(self, engine: PhotoEngine, path: Path, picture: images.Picture, shown: Path) -> Photo:
        before = write_preview(picture.pixels, shown.with_suffix(".png"))
        pixels = picture.pixels
        placed = engine.prepare(picture, path.name).faces
        faces = [FoundFace(one.face, _about(one), one.skipped, one.degraded) for one in placed]
        boxes = write_preview(
            _with_boxes(pixels, faces), shown.with_name(f"{shown.name}_boxes.png")
        )
        height, width = pixels.shape[:2]
        return Photo(path.name, path, (height, width), before, boxes, faces)

    # -- restoring ---------------------------------------------------------------------------

    def restore(self, visit: Visit, wish: Wish, say: Say) -> Outcome:
        """Restore all photos of a visit, as ``dr2pipe restore`` would.

        Raises:
            ConfigError: wishes that do not fit.
            PictureError: there is no photo.
        """
        if not visit.photos:
            raise PictureError("choose a photo first")
        wish = dataclasses.replace(wish, references=visit.references is not None)
        overrides_of(wish)  # raises before anything begins
        folder = visit.new_folder(f"run{visit.runs}")
        visit.runs += 1
        try:
            outcome = self._restore_all(visit, wish, folder, say)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        visit.outcome = outcome
        for former in visit.folder.glob("run*"):  # not before: the page shows them until now
            if former != folder:
                shutil.rmtree(former, ignore_errors=True)
        return outcome

    def _restore_all(self, visit: Visit, wish: Wish, folder: Path, say: Say) -> Outcome:
        # As they are now: what is chosen and marked while this works is for the next time.
        photos = [dataclasses.replace(photo) for photo in visit.photos.values()]
        steps = wish.variants * len(photos)
        outcome = Outcome([])
        for variant in range(wish.variants):
            this = dataclasses.replace(wish, seed=wish.seed + variant)
            done = []
            for number, photo in enumerate(photos):
                at = (variant * len(photos) + number) / steps
                try:
                    watch = functools.partial(say, at)
                    found = self._restore_one(visit, photo, this, folder / str(variant), watch)
                except PictureError as error:
                    if variant == 0:
                        outcome.failures.append(f"{photo.name}: {error}")
                    continue
                done.append(found)
            outcome.done.append(done)
        outcome.done = [done for done in outcome.done if done]
        if not outcome.done:
            raise PictureError(" ".join(outcome.failures))
        if wish.variants > 1:
            add_spreads(outcome, folder)
        outcome.zip = zip_results(folder, outcome, photos)
        return outcome

    def _restore_one(
        self, visit: Visit, photo: Photo, wish: Wish, output: Path, say: Callable[[str], None]
    ) -> Done:
        listed = self._list_faces(photo, wish.faces.get(photo.name), output)
        settings = [*overrides_of(wish), "save_faces=true"]
        settings += [f"input={photo.path}", f"output={output}", f"max_pixels={self.limits.pixels}"]
        settings += [] if listed is None else ["faces.name=file", f"faces.file={listed}"]
        settings += [f"repair.mask={photo.marks}"] if wish.marks and photo.marks else []
        settings += [f"identity.reference={visit.references}"] if wish.references else []
        path = find_file("configs/restore", wish.preset, what="preset")
        config = load_config(RestoreConfig, path, settings)
        check_config(config)
        say("loading the networks")
        restore_folder(config, loaded=self.engine(config), watch=say)
        record = record_of(output, photo)
        # Without a list the faces are found again, in a photo that may be lighter now.
        count = len(record.get("faces", [])) if listed is None else len(photo.faces)
        numbers = range(1, count + 1) if listed is None else _numbers_of(record, photo)
        restored = output / record["output"]
        shown = images.decode_result(images.read_file(restored))
        after = write_preview(shown.pixels, output / "shown" / f"{restored.name}.png")
        faces = sorted((output / "faces").glob(f"{restored.stem}/*_restored.png"))
        marked = bool(wish.marks and photo.marks)
        return Done(
            photo.name,
            wish.seed,
            photo.before,
            after,
            restored,
            faces,
            sentences(record, numbers, count),
            command_of(wish, photo.name, listed=listed is not None, marked=marked),
        )

    def _list_faces(self, photo: Photo, chosen: list[int] | None, output: Path) -> Path | None:
        """A list of the chosen faces, as ``faces.file`` takes it; None where all were chosen."""
        if chosen is None or set(chosen) == set(range(len(photo.faces))):
            return None
        faces = [photo.faces[number].face for number in sorted(chosen)]
        entry = [
            {
                "landmarks": face.landmarks.tolist(),
                "box": list(face.box),
                "score": float(face.score),
            }
            for face in faces
        ]
        path = output.parent / "faces.json"
        known = json.loads(path.read_bytes()) if path.exists() else {}
        files.write_bytes(path, json.dumps(known | {photo.name: entry}, indent=1).encode())
        return path

    # -- tuning ------------------------------------------------------------------------------

    def tune(self, visit: Visit, name: str, number: int, wish: Wish) -> list[tuple[Path, Tried]]:
        """Coarse faces of one face over N and τ, each with a picture's file.

        Raises:
            PictureError: there is no such face.
        """
        photo = visit.photos.get(name)
        if photo is None or not 0 <= number < len(photo.faces):
            raise PictureError("choose a photo with a face first")
        path = find_file("configs/restore", wish.preset, what="preset")
        engine, _ = self.engine(load_config(RestorationConfig, path))
        face = photo.faces[number]
        seed = stable_seed(wish.seed, name, number)
        grid = try_settings(engine.restorer.restorer, face.degraded, seed)
        folder = visit.new_folder("shown_grid")
        found = []
        for one in (tried for row in grid for tried in row):
            pixels = images.resize_pixels(images.to_uint8(one.coarse)[0], (256, 256))
            found.append((write_preview(pixels, folder / f"{one.factor}_{one.tau}.png"), one))
        return found


# -- faces -----------------------------------------------------------------------------------


def _numbers_of(record: dict[str, Any], photo: Photo) -> list[int]:
    """The numbers on the page of the faces that a record has; a preset may have chosen among them."""
    known = np.stack([one.face.landmarks for one in photo.faces])
    points = [np.array(face["landmarks"]) for face in record.get("faces", [])]
    return [int(np.abs(known - one).sum(axis=(1, 2)).argmin()) + 1 for one in points]


def _about(face: PlacedFace) -> str:
    if face.skipped is not None:
        return "good as it is"
    quality = face.quality
    blur = quality.side_px / quality.effective_px
    words = [f"blurred {blur:.1f} times"] if blur > 1 / 0.7 else []
    words = ["printed dots or squares"] if quality.has_screen else words
    words += ["noisy"] if quality.noise >= SOME_NOISE else []
    words += ["JPEG blocks"] if quality.blockiness >= SOME_BLOCKS else []
    return ", ".join(words) or "small"


def _with_boxes(pixels: images.Pixels, faces: Sequence[FoundFace]) -> images.Pixels:
    """(h,w,3), the photo at a size for the screen, its faces in boxes with numbers from 1."""
    height, width = pixels.shape[:2]
    shrink = min(1.0, _LARGEST_BOXES_PX / max(height, width))
    size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
    small = pixels if shrink == 1 else images.resize_pixels(pixels, size)
    canvas = Image.fromarray(np.array(small))
    draw = ImageDraw.Draw(canvas)
    line_px = max(2, round(max(size) / 300))
    font_px = max(14, round(max(size) / 32))
    font = ImageFont.load_default(font_px)
    for number, found in enumerate(faces, 1):
        x, y, w, h = (value * shrink for value in found.face.box)
        colour = _BOX_COLOUR if found.skipped is None else _LEFT_COLOUR
        draw.rectangle((x, y, x + w, y + h), outline=colour, width=line_px)
        top = y - 1.2 * font_px if y > 1.2 * font_px else y + h  # above the face, or below it
        draw.rectangle(
            (x, top, x + font_px * (0.6 + 0.6 * len(str(number))), top + 1.2 * font_px), fill=colour
        )
        draw.text((x + 0.3 * font_px, top), str(number), fill="black", font=font)
    return np.asarray(canvas)
