"""What happens when the controls of the page are used."""

from __future__ import annotations

import contextvars
import functools
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from dr2pipe.core import files, images
from dr2pipe.core.errors import Dr2pipeError, describe_error, is_out_of_memory
from dr2pipe.core.extras import needs_extra
from dr2pipe.web.results import NO_FACE_FOUND, Done, Outcome
from dr2pipe.web.visits import Photo, Visit, Visits, describe_disk, take_upload
from dr2pipe.web.wishes import Wish
from dr2pipe.web.workshop import Workshop

with needs_extra("web"):
    import gradio as gr

logger = logging.getLogger(__name__)


class Page:
    """The functions behind the page; each takes the values of its controls.

    Args:
        workshop: does the work.
        visits: the visitors.
    """

    def __init__(self, workshop: Workshop, visits: Visits):
        self.workshop, self.visits = workshop, visits

    # -- photos ------------------------------------------------------------------------------

    def ask(self, uploads: list[str] | None, request: gr.Request) -> None:
        """Keep what waits for its turn; called at once, before the turn comes."""
        self.visits.ask(str(request.session_hash), uploads or [])

    def find(
        self, uploads: list[str] | None, preset: str, request: gr.Request, progress: Any
    ) -> Any:
        """Take photos over and show the faces of the first."""
        with self._at_work(request, uploads) as visit:
            refused = self.workshop.take(visit, uploads or [], preset, _sayer(progress))
        names = list(visit.photos)
        faces = sum(len(photo.faces) for photo in visit.photos.values())
        without = [photo.name for photo in visit.photos.values() if not photo.faces]
        lines = [f"Photos: {len(names)}, faces found: {faces}. Press Restore."] if faces else []
        lines += [f"{name}: {NO_FACE_FOUND}" for name in without] + refused
        return [
            gr.Dropdown(choices=names, value=names[0], visible=len(names) > 1),
            *self.show(names[0], request),
            *_no_results("\n\n".join(lines)),
            gr.Button(interactive=bool(faces)),
        ]

    def show(self, name: str, request: gr.Request) -> list[Any]:
        """The photo with its numbered faces, the choice of faces, and the place for marks."""
        visit = self._visit(request)
        photo = _photo(visit, name)
        visit.shown = name
        labels = [
            (f"{number}: {found.about}", number - 1) for number, found in enumerate(photo.faces, 1)
        ]
        chosen = visit.chosen.get(name, list(range(len(labels))))
        return [
            gr.Image(value=str(photo.boxes), visible=True),
            gr.CheckboxGroup(choices=labels, value=chosen, visible=bool(labels)),
            gr.Dropdown(choices=labels, value=0 if labels else None, label=f"Face of {name}"),
            None,  # coarse faces of another photo
            gr.Accordion(open=False),  # the photo to paint on comes when it is opened again
            "This photo is marked." if photo.marks else "Nothing is marked.",
        ]

    def choose(self, name: str, chosen: list[int], request: gr.Request) -> None:
        """Remember which faces of a photo are restored."""
        visit = self._visit(request)
        _photo(visit, name)
        visit.chosen[name] = sorted(int(number) for number in chosen)
        _check_chosen(visit)

    def canvas(self, name: str | None, request: gr.Request) -> Any:
        """The photo to paint on; nothing before there is one."""
        if not name:
            return gr.ImageEditor(value=None)
        photo = _photo(self._visit(request), name)
        return gr.ImageEditor(
            value={"background": str(photo.before), "layers": [], "composite": None}
        )

    def mark(self, name: str | None, painted: dict[str, Any] | None, request: gr.Request) -> str:
        """Keep what was painted as the mask of a photo."""
        photo = _photo(self._visit(request), name)
        layers = [] if painted is None else painted["layers"]
        alphas = [layer[..., 3] for layer in layers if layer is not None and layer[..., 3].any()]
        if not alphas:
            photo.marks = None
            return "Nothing is marked."
        alpha = np.maximum.reduce(alphas)
        mask = images.resize_pixels(np.repeat(alpha[..., None], 3, axis=2), photo.size)
        folder = photo.path.parents[1] / "marks"
        number = len(list(folder.glob("*")))  # a run may still use the marks before: they stay
        path = folder / str(number) / f"{photo.name}.png"
        files.write_bytes(path, images.encode_png(np.where(mask > 31, 255, 0).astype(np.uint8)))
        photo.marks = path
        return f"Marked: {100 * (mask[..., 0] > 31).mean():.1f} % of the photo. It is filled in its faces."

    def refer(self, uploads: list[str] | None, request: gr.Request) -> str:
        """Keep photos of the person."""
        limits = self.workshop.limits
        with self._at_work(request, uploads) as visit:
            visit.references = None
            if not uploads:
                return "No reference photos."
            if len(uploads) > limits.photos:
                raise Dr2pipeError(
                    f"choose up to {limits.photos} reference photos, not {len(uploads)}"
                )
            folder = visit.new_folder("references")
            for number, upload in enumerate(uploads):
                taken, _ = take_upload(upload, folder / "taken", limits)
                taken.rename(folder / f"{number}{taken.suffix.lower()}")
            (folder / "taken").rmdir()
            visit.references = folder
        return f"Reference photos: {len(uploads)}. Of four results, the most alike is taken."

    # -- restoring ---------------------------------------------------------------------------

    def restore(self, request: gr.Request, progress: Any, name: str, wish: Wish) -> list[Any]:
        """Restore all photos and show the one that is chosen."""
        with self._at_work(request) as visit:
            _check_chosen(visit)
            before = visit.shown
            wish.faces = dict(visit.chosen)
            wish.marks = any(photo.marks for photo in visit.photos.values())
            self.workshop.restore(visit, wish, _sayer(progress))
        # Another photo may have been chosen meanwhile.
        chosen = name if visit.shown in (None, before) else visit.shown
        return self.results(chosen, 0, request)

    def results(self, name: str, variant: int, request: gr.Request) -> list[Any]:
        """A photo before and after, the variants, the files, and what became of it."""
        outcome: Outcome | None = self._visit(request).outcome
        if outcome is None:
            return [gr.skip()] * 6
        found = [_of(done, name) for done in outcome.done]
        variants = [(str(_thumbnail(one)), f"seed {one.seed}") for one in found if one is not None]
        if name in outcome.spread:
            variants.append((str(outcome.spread[name]), "where they differ"))
        if len(found) <= variant:  # the picture of where they differ
            return [gr.skip()] * 6
        done = found[variant]
        if done is None:
            return _no_results("\n\n".join(outcome.failures))
        return [
            gr.ImageSlider(value=(str(done.before), str(done.after)), visible=True),
            gr.Gallery(value=variants, visible=len(outcome.done) > 1),
            gr.DownloadButton(value=str(done.restored), interactive=True),
            gr.Files(value=[str(outcome.zip), *map(str, done.faces)], visible=True),
            "\n\n".join([*done.lines, *outcome.failures]),
            done.command,
        ]

    def tune(self, name: str, face: int | None, preset: str, seed: int, request: gr.Request) -> Any:
        """Coarse faces over N and τ."""
        number = -1 if face is None else face
        with self._at_work(request) as visit:
            found = self.workshop.tune(visit, name or "", number, Wish(preset, seed=seed))
        return [
            (str(path), f"N {t.factor}, τ {t.tau}: {t.calls} calls, {t.seconds:.1f} s")
            for path, t in found
        ]

    def leave(self, request: gr.Request) -> None:
        """Delete all that a visitor left."""
        self.visits.end(str(request.session_hash))

    def _at_work(
        self, request: gr.Request, uploads: list[str] | None = None
    ) -> AbstractContextManager[Visit]:
        return self.visits.at_work(str(request.session_hash), uploads or [])

    def _visit(self, request: gr.Request) -> Visit:
        return self.visits.of(str(request.session_hash))


# -- small things ----------------------------------------------------------------------------


def told(function: Callable[..., Any], *values: Any) -> Any:
    """Call a function; what a person can mend becomes a message, without paths of the server.

    Anything else is a bug: its traceback goes to the server's log.
    """
    try:
        return function(*values)
    except OSError as error:
        logger.warning("%s", describe_error(error))
        raise gr.Error(
            f"the files cannot be kept: {describe_disk(error)}", print_exception=False
        ) from None
    except Dr2pipeError as error:
        raise gr.Error(str(error), print_exception=False) from None
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise gr.Error(
            "there is not enough memory: take a smaller photo or scale", print_exception=False
        ) from None


def event(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of the page as gradio calls it, with its messages."""

    @functools.wraps(method)
    def call(*values: Any, **named: Any) -> Any:
        return told(functools.partial(method, **named), *values)

    return call


def _sayer(progress: Any) -> Callable[[float, str], None]:
    """Shows a stage in the progress bar; threads of a run may call it."""
    context = contextvars.copy_context()

    def say(share: float, stage: str) -> None:
        # Gradio knows by context variables whose bar it is.
        context.copy().run(progress, share, stage)

    return say


def _no_results(status: str) -> list[Any]:
    """The controls of results where there are none."""
    return [
        None,
        gr.Gallery(value=None, visible=False),
        gr.DownloadButton(value=None, interactive=False),
        gr.Files(value=None, visible=False),
        status,
        "",
    ]


def _photo(visit: Visit, name: str | None) -> Photo:
    if not name:
        raise Dr2pipeError("there is no photo yet: add one first")
    if name not in visit.photos:
        raise Dr2pipeError("this photo is not here any more: add it again")
    return visit.photos[name]


def _check_chosen(visit: Visit) -> None:
    for name, numbers in visit.chosen.items():
        if not numbers:
            raise Dr2pipeError(f"choose at least one face of {name}, or other photos")


def _of(done: list[Done], name: str) -> Done | None:
    return next((one for one in done if one.name == name), None)


def _thumbnail(done: Done) -> Path:
    """The largest restored face, or the photo."""
    return done.faces[0] if done.faces else done.after
