"""The page: its controls, where they are, and which function each one calls."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from dr2pipe.core.extras import needs_extra
from dr2pipe.runs.presets import list_presets
from dr2pipe.web.about import TERMS, cards, installation, presets_table
from dr2pipe.web.page import Page, event, told
from dr2pipe.web.wishes import MOST_VARIANTS, Wish, usual_damage, usual_sharpness, usual_tau

with needs_extra("web"):
    import gradio as gr

# Networks work for one visitor at a time; the others wait in a queue.
_ONE_AT_A_TIME: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "device"}
_DAMAGES = [
    ("chosen for each face (auto)", "auto"),
    ("mild: a little soft or grainy", "mild"),
    ("medium", "medium"),
    ("severe: hardly a face", "severe"),
]
STYLE = """
.gradio-container { max-width: min(1200px, 100%) !important; margin: auto !important; }
#grid .caption-label { white-space: normal; max-width: 100%; font-size: 12px; }
#grid .grid-wrap { max-height: none; }
/* Words stay whole; a table that is too wide is moved inside its frame. */
.gradio-container .prose table { display: block; overflow-x: auto; border: 0; margin-left: 0; }
.gradio-container .prose :is(td, th) { overflow-wrap: normal; word-break: normal; }
#presets-table :is(td, th) { overflow-wrap: anywhere !important; padding: 8px; }
@media (max-width: 640px) { #grid .grid-container, #variants .grid-container { --grid-cols: 2 !important; } }
/* Room for the progress bar, which lies over the status. */
#status { min-height: 6em; }
.gradio-container :focus-visible { outline: 3px solid #f59e0b !important; outline-offset: 2px; }
/* Results cannot be got back: they are not removed by a slip. */
#files [aria-label="Remove this file"] { display: none; }
.dr2-command textarea { font-family: ui-monospace, monospace; }
"""
_INTRO = """# Restore old and damaged photos
Add a photo. Its faces are found, restored and put back; nothing else changes. The networks draw what
fits: where the damage has taken the likeness away, a face may come out as somebody else's. Photos stay
on the computer that serves this page, and are deleted soon after you close it."""
_TUNE = """Coarse faces of one face over N (how much detail of the input is ignored) and τ (how much is
removed), with the calls of the network and the time. Add a photo in the first tab."""


def build_page(page: Page, *, preset: str = "default") -> gr.Blocks:
    """The page, with ``preset`` chosen at first."""
    on = SimpleNamespace()  # the controls by name
    blocks: gr.Blocks
    with gr.Blocks(title="dr2pipe", analytics_enabled=False) as blocks:
        gr.Markdown(_INTRO)
        with gr.Tab("Restore"):
            with gr.Row():
                with gr.Column(scale=1):
                    _photos(on, preset)
                with gr.Column(scale=2):
                    _results(on)
            with gr.Accordion("More settings", open=False):
                _settings(on, preset)
            with gr.Accordion("Mark scratches with a brush", open=False) as on.scratches:
                _brush(on)
            with gr.Accordion("Photos of the same person", open=False):
                on.references = gr.File(
                    label="Reference photos",
                    file_count="multiple",
                    height=150,
                    elem_id="references",
                )
                on.referred = gr.Markdown("No reference photos.")
        with gr.Tab("Tune"):
            gr.Markdown(_TUNE)
            with gr.Row(equal_height=True):
                on.face = gr.Dropdown([], label="Face", elem_id="tune-face")
                on.tune = gr.Button("Show the grid", elem_id="tune")
            on.grid = gr.Gallery(label="Coarse faces", columns=4, height="auto", elem_id="grid")
        with gr.Tab("About"):
            _about()
        _connect_photos(on, page)
        _connect_work(on, page)
        blocks.unload(page.leave)
    return blocks


# -- controls --------------------------------------------------------------------------------


def _photos(on: SimpleNamespace, preset: str) -> None:
    on.upload = gr.File(label="Photos", file_count="multiple", height=150, elem_id="photos")
    on.photo = gr.Dropdown([], label="Photo", visible=False, elem_id="photo")
    on.boxes = gr.Image(
        label="Faces found",
        show_label=False,  # it would lie over the numbers of faces
        interactive=False,
        visible=False,
        buttons=["fullscreen"],
        elem_id="boxes",
    )
    on.faces = gr.CheckboxGroup(label="Faces to restore", visible=False, elem_id="faces")
    on.skip_good = gr.Checkbox(
        True,
        label="Leave good faces alone",
        info="Faces with more detail than the networks give stay as they are",
        elem_id="skip-good",
    )
    on.contrast = gr.Checkbox(
        False,
        label="Mend dark and faded photos",
        info="Photos without black or white get it, with all that is around the faces",
        elem_id="contrast",
    )
    on.damage = gr.Radio(
        _DAMAGES, value=usual_damage(preset), label="How damaged is it? (N, τ, ω)", elem_id="damage"
    )
    on.restore = gr.Button("Restore", variant="primary", interactive=False, elem_id="restore")


def _results(on: SimpleNamespace) -> None:
    on.slider = gr.ImageSlider(
        label="Before | after",
        interactive=False,
        type="filepath",
        max_height=640,
        buttons=["fullscreen"],
        elem_id="slider",
    )
    on.compare = gr.Slider(  # the same by keyboard
        0, 100, value=50, step=1, label="Before | after, by keyboard", elem_id="compare"
    )
    on.status = gr.Markdown("Add a photo to begin.", elem_id="status")
    on.variants = gr.Gallery(
        label="Variants: choose one", visible=False, columns=4, height="auto", elem_id="variants"
    )
    on.download = gr.DownloadButton("Download the photo", interactive=False, elem_id="download")
    on.files = gr.Files(
        label="All results (zip), and single faces",
        visible=False,
        interactive=False,
        elem_id="files",
    )
    on.command = gr.Textbox(
        label="The same by a command",
        interactive=False,
        buttons=["copy"],
        elem_id="command",
        elem_classes="dr2-command",
    )


def _settings(on: SimpleNamespace, preset: str) -> None:
    with gr.Row():
        on.tau = gr.Slider(
            0,
            50,
            value=usual_tau(Wish(preset)),
            step=1,
            label="Likeness (low) against cleanness (high): τ",
            info="Not used where it is chosen for each face",
        )
        on.sharpness = sharpness_slider(preset)
    with gr.Row():
        on.scale = gr.Radio([1, 2, 4], value=1, label="Enlarge the photo")
        on.seed = gr.Number(0, label="Seed of the noise", precision=0, minimum=0, elem_id="seed")
        on.samples = gr.Slider(
            1, MOST_VARIANTS, value=1, step=1, label="Variants to choose from (samples)"
        )
    here = [one.name for one in list_presets() if not one.missing]
    here += [] if preset in here else [preset]  # a file of the one who serves the page
    on.preset = gr.Dropdown(
        here,
        value=preset,
        label="Preset",
        info="Others need a download: see the page About",
        elem_id="preset",
    )


def usual_controls(preset: str) -> list[Any]:
    """The damage, τ and the sharpness that a preset has, for their controls."""
    damage = usual_damage(preset)
    return [damage, usual_tau(Wish(preset, damage)), sharpness_slider(preset)]


def sharpness_slider(preset: str) -> gr.Slider:
    """The sharpness of a preset; hidden where its enhancer has no sharp variant."""
    usual = usual_sharpness(preset)
    return gr.Slider(
        0,
        1,
        value=usual or 0.0,
        step=0.05,
        label="Sharpness",
        info="High: crisper and less faithful",
        visible=usual is not None,
        elem_id="sharpness",
    )


def _brush(on: SimpleNamespace) -> None:
    gr.Markdown(
        "Paint over scratches in faces with the brush (the first button beside the photo), then press "
        "*Use these marks*."
    )
    on.editor = gr.ImageEditor(
        label="Photo to paint on",
        show_label=False,  # the buttons above the photo would lie over it
        sources=[],
        transforms=[],
        brush=gr.Brush(colors=["#ff0000"], default_size=12, color_mode="fixed"),
        layers=False,
        image_mode="RGBA",
        elem_id="editor",
    )
    on.keep = gr.Button("Use these marks")
    on.marked = gr.Markdown("Nothing is marked.")


def _about() -> None:
    gr.Markdown(f"{TERMS}\n\n{presets_table()}", elem_id="presets-table")
    gr.Markdown("### Models that come with dr2pipe")
    for name, card in cards().items():
        with gr.Accordion(name, open=False):
            gr.Markdown(card)
    with gr.Accordion("This installation", open=False):
        gr.Markdown(installation())


# -- events ----------------------------------------------------------------------------------


def _connect_photos(on: SimpleNamespace, page: Page) -> None:
    """Uploads, the choice of a photo and of its faces, marks and references."""
    shown = [on.boxes, on.faces, on.face, on.grid, on.scratches, on.marked]

    def find(  # type: ignore[no-untyped-def]
        files,
        preset,
        request: gr.Request,
        progress=gr.Progress(),  # noqa: B008  gradio fills it in where it is a default
    ):
        return told(page.find, files, preset, request, progress)

    def show(name, request: gr.Request):  # type: ignore[no-untyped-def]
        return [*told(page.show, name, request), *told(page.results, name, 0, request)]

    for control in (on.upload, on.references):
        control.upload(event(page.ask), control, None, queue=False, api_visibility="private")
    found = on.upload.upload(
        find,
        [on.upload, on.preset],
        [on.photo, *shown, *_result_controls(on), on.restore],
        api_name="find",
        show_progress_on=[on.status],
        **_ONE_AT_A_TIME,
    )
    # Room for the next upload, whatever became of this one.
    # The browser empties it by itself: for the server it is empty after a refused one already.
    for done in (found.success, found.failure):
        done(None, None, on.upload, js="() => null", api_visibility="private")
    on.photo.input(show, on.photo, [*shown, *_result_controls(on)], api_name="show")
    on.faces.input(event(page.choose), [on.photo, on.faces], None, api_name="choose")
    on.scratches.expand(event(page.canvas), on.photo, on.editor, api_visibility="private")
    on.keep.click(event(page.mark), [on.photo, on.editor], on.marked, api_name="mark")
    on.references.change(
        event(page.refer), on.references, on.referred, api_name="refer", **_ONE_AT_A_TIME
    )


def _connect_work(on: SimpleNamespace, page: Page) -> None:
    """What the networks do, and the controls that depend on each other."""

    def restore(  # type: ignore[no-untyped-def]
        name,
        preset,
        damage,
        tau,
        sharpness,
        skip_good,
        contrast,
        scale,
        seed,
        samples,
        request: gr.Request,
        progress=gr.Progress(),  # noqa: B008
    ):
        wish = Wish(
            preset=preset,
            damage=damage,
            tau=int(tau),
            sharpness=None if usual_sharpness(preset) is None else float(sharpness),
            skip_good=bool(skip_good),
            stretch_contrast=bool(contrast),
            scale=int(scale),
            seed=int(seed or 0),
            variants=int(samples),
        )
        return told(page.restore, request, progress, name, wish)

    def ask(request: gr.Request):  # type: ignore[no-untyped-def]
        told(page.ask, None, request)

    def pick(name, request: gr.Request, chosen: gr.SelectData):  # type: ignore[no-untyped-def]
        return told(page.results, name, chosen.index, request)

    def set_tau(preset, damage):  # type: ignore[no-untyped-def]
        return told(usual_tau, Wish(preset, damage))

    values = [on.photo, on.preset, on.damage, on.tau, on.sharpness, on.skip_good, on.contrast]
    values += [on.scale, on.seed]
    for button in (on.restore, on.tune):
        button.click(ask, None, None, queue=False, api_visibility="private")
    on.restore.click(
        restore,
        [*values, on.samples],
        _result_controls(on),
        api_name="restore",
        show_progress_on=[on.status],
        **_ONE_AT_A_TIME,
    )
    on.compare.input(
        lambda position: gr.ImageSlider(slider_position=position),
        on.compare,
        on.slider,
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
    on.variants.select(pick, on.photo, _result_controls(on), api_visibility="private")
    on.damage.change(set_tau, [on.preset, on.damage], on.tau, api_visibility="private")
    on.preset.change(
        event(usual_controls),
        on.preset,
        [on.damage, on.tau, on.sharpness],
        api_visibility="private",
    )
    on.face.input(lambda: None, None, on.grid, queue=False, api_visibility="private")
    on.tune.click(
        event(page.tune),
        [on.photo, on.face, on.preset, on.seed],
        on.grid,
        api_name="tune",
        **_ONE_AT_A_TIME,
    )


def _result_controls(on: SimpleNamespace) -> list[Any]:
    return [on.slider, on.variants, on.download, on.files, on.status, on.command]
