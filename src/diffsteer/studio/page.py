"""The page: controls at the left, images and tabs at the right, and what happens on which event."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from diffsteer.generate.recipe import Recipe
from diffsteer.studio import controls as left
from diffsteer.studio import snippets
from diffsteer.studio.engine import Engine
from diffsteer.studio.history import restored
from diffsteer.studio.look import CSS, INTRODUCTION, TO_STATUS, theme
from diffsteer.studio.measures import measure_tab, model_tab
from diffsteer.studio.runs import Runs, Shown, guarded, one_line
from diffsteer.studio.settings import STEPS, Settings
from diffsteer.studio.view import error, files_of, label, note

HIDDEN: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
MODEL: dict[str, Any] = {**HIDDEN, "concurrency_limit": None, "trigger_mode": "multiple"}
"""Options of events: no spinner over the image, and no name in an API."""


class Page:
    """Builds the page of an engine.

    Args:
        engine: What the tabs share.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine, self.runs = engine, Runs(engine)
        self.model = engine.model(engine.models[0])

    def build(self) -> Any:
        """Make the page."""
        with gr.Blocks(title="diffsteer studio", delete_cache=(600, 3600)) as page:
            gr.HTML(INTRODUCTION)
            with gr.Row(equal_height=False):
                with gr.Column(scale=5, min_width=320):
                    self.controls = left.build(self.engine, self.model)
                    self._copies()
                with gr.Column(scale=7, min_width=320, elem_id="results"):
                    self.status = gr.HTML(note("Ready: press Generate"), elem_id="status")
                    with gr.Tabs() as self.tabs:
                        self._image_tab()
                        self._compare_tab()
                        self._grid_tab()
                        self._history_tab()
                        inputs = self.controls.inputs
                        model_tab(self.engine, inputs, HIDDEN)
                        measure_tab(self.engine, self.runs, inputs, HIDDEN)
            self._bind_controls()
            page.load(self.engine.history.entries, None, self.history, **HIDDEN)
            page.load(self._described, self.controls.inputs, self.described, **HIDDEN)
            page.unload(self._closed)
        page.look = {"theme": theme(), "css": CSS}
        return page

    def _copies(self) -> None:
        with gr.Accordion("Copy these settings", open=False):
            kinds = (("Python", "python"), ("Command", "shell"), ("ComfyUI", "json"))
            labels = {"ComfyUI": "Workflow: choose your checkpoint in its first node"}
            self.copies = []
            for name, language in kinds:
                with gr.Tab(name):
                    code = gr.Code(
                        language=language,
                        label=labels.get(name, f"Makes the same images: {name}"),
                        elem_id=f"copy-{name.lower()}",
                        interactive=False,
                        wrap_lines=True,
                    )
                    self.copies.append(code)
        self.described = [self.controls.cost, *self.copies]

    def _image_tab(self) -> None:
        with gr.Tab("Image", id="image"):
            image = gr.Image(**_image_options("Image", "image"))
            batch = gr.Gallery(
                label="All seeds", columns=4, height=220, visible=False, format="png"
            )
            strip = gr.Image(**_image_options("What each step predicts", "strip"), show_label=False)
        outputs = [self.status, image, batch, strip]

        def run(request: gr.Request, *values: Any) -> Iterator[Any]:
            for shown in guarded(self.runs.generate(_tab(request), values)):
                many = shown.batch is not None and len(shown.batch) > 1
                batch = files_of(shown.batch)
                gallery = gr.update(value=batch, visible=True) if many else gr.skip()
                if shown.batch is not None and not many:
                    gallery = gr.update(visible=False)
                yield _status(shown), _or_skip(shown.image), gallery, _or_skip(shown.strip)

        button = self.controls.generate
        button.click(lambda: gr.Tabs(selected="image"), None, self.tabs, queue=False, **HIDDEN)
        button.click(None, None, None, js=TO_STATUS)
        event = button.click(run, self.controls.inputs, outputs, **MODEL)
        self.image, self._after = image, [event]

    def _compare_tab(self) -> None:
        with gr.Tab("Compare"):
            gr.Markdown(
                "Two settings on the same noise: **A**, which you keep here, and **B**, the "
                "settings now. Without an A, it is no guidance."
            )
            pinned = gr.State(None)
            kept = gr.HTML(note("A: no guidance"))
            with gr.Row():
                keep = gr.Button("Keep the settings as A", elem_id="keep")
                compare = gr.Button("Compare", variant="primary", elem_id="compare")
            slider = gr.ImageSlider(
                label="A | B", format="png", interactive=False, elem_id="slider", max_height=560
            )

        def pin(*values: Any) -> tuple[Any, str]:
            try:
                recipe = Settings.of(values).recipe
            except ValueError as problem:
                return None, error(one_line(problem))
            return recipe, note(f"A: {label(recipe)}")

        def run(request: gr.Request, pinned: Recipe | None, *values: Any) -> Iterator[Any]:
            for shown in guarded(self.runs.compare(_tab(request), values, pinned)):
                yield _status(shown), _or_skip(shown.image)

        inputs = self.controls.inputs
        keep.click(pin, inputs, [pinned, kept], **HIDDEN)
        event = compare.click(run, [pinned, *inputs], [self.status, slider], **MODEL)
        self._after.append(event)

    def _grid_tab(self) -> None:
        start = self.model.defaults.guidance
        x, y = left.axes_of(start, "", STEPS)
        with gr.Tab("Grid"):
            gr.Markdown("One image for each pair of values, all of the first seed.")
            with gr.Row():
                self.x = gr.Dropdown(x["choices"], value=x["value"], label="Across", elem_id="x")
                self.columns = gr.Textbox(
                    left.around(start, x["value"]), label="Values", elem_id="columns"
                )
            with gr.Row():
                self.y = gr.Dropdown(y["choices"], value=y["value"], label="Down", elem_id="y")
                self.lines = gr.Textbox(left.around(start, STEPS), label="Values", elem_id="rows")
            button = gr.Button("Make the grid", variant="primary", elem_id="make-grid")
            sheet = gr.Image(**_image_options("Grid", "grid"), show_label=False)

        def run(
            request: gr.Request, x: str, xs: str, y: str, ys: str, *values: Any
        ) -> Iterator[Any]:
            for shown in guarded(self.runs.grid(_tab(request), values, x, xs, y, ys)):
                yield _status(shown), _or_skip(shown.image)

        axes = [self.x, self.columns, self.y, self.lines]
        button.click(run, [*axes, *self.controls.inputs], [self.status, sheet], **MODEL)
        for axis, values in ((self.x, self.columns), (self.y, self.lines)):
            texts = [self.controls.fields["guidance"], axis]
            axis.input(_quietly(left.around, ""), texts, values, **HIDDEN)

    def _history_tab(self) -> None:
        with gr.Tab("History"):
            gr.Markdown("Click an image to take over its settings, or drop a PNG that diffsteer "
                        f"made. Files: `{self.engine.history.folder}`")  # fmt: skip
            drop = gr.File(label="Drop a PNG here", file_types=[".png"], height=150, elem_id="drop")
            self.history = gr.Gallery(
                label="Newest first",
                columns=4,
                height=460,
                allow_preview=False,
                elem_id="history",
                type="filepath",
                interactive=False,
                format="png",
            )

        def chosen(shown: list[tuple[str, str]], picked: gr.SelectData) -> list[Any]:
            return self._restored(Path(shown[picked.index][0]))  # other tabs may have added more

        def dropped(path: str | None) -> list[Any]:
            return self._restored(Path(path)) if path else [gr.skip()] * len(outputs)

        outputs = [self.status, self.image, *self.controls.inputs, *self.controls.sliders]
        self.history.select(chosen, [self.history], outputs, **HIDDEN)
        drop.upload(dropped, [drop], outputs, **HIDDEN)
        for event in self._after:
            event.then(self.engine.history.entries, None, self.history, **HIDDEN)
            event.then(self._described, self.controls.inputs, self.described, **HIDDEN)

    def _restored(self, path: Path) -> list[Any]:
        """Updates of status, image, controls and sliders from an image."""
        rest = len(self.controls.inputs) + len(self.controls.sliders)
        try:
            recipe, seed = restored(path, self.engine.trusted)
            settings = Settings(recipe, (seed,))
            settings.require_complete()
            sliders = left.sliders_of(recipe.guidance)
        except (ValueError, OSError) as problem:
            return [error(one_line(problem)), gr.skip(), *[gr.skip()] * rest]
        text = f"Settings of {path.name} restored: press Generate for the same image"
        return [note(text), str(path), *settings.values(), *sliders]

    def _bind_controls(self) -> None:
        c = self.controls
        text, sliders = c.fields["guidance"], c.sliders
        axes = [self.x, self.y]
        c.cancel.click(self._cancelled, None, None, queue=False, **HIDDEN)
        c.menu.input(lambda t: (t, *left.sliders_of(t)), c.menu, [text, *sliders], **HIDDEN)
        typed = _quietly(left.sliders_of, [gr.skip()] * len(sliders))
        text.input(typed, text, sliders, trigger_mode="always_last", **HIDDEN)
        for slider in sliders:
            slider.input(
                _quietly(left.moved, gr.skip()), [text, *sliders], text,
                trigger_mode="always_last", **HIDDEN,
            )  # fmt: skip
        text.change(_quietly(left.axes_of, [gr.skip()] * 2), [text, *axes], axes, **HIDDEN)
        for words in c.words.values():
            for menu in words.menus:
                menu.input(words.composed, words.menus, c.fields["prompt"], **HIDDEN)
        follow = _quietly(partial(left.followed, self.engine, c), [gr.skip()] * (1 + len(c.words)))
        boxes = [words.box for words in c.words.values()]
        c.fields["model"].change(follow, [c.fields["model"], text], [c.menu, *boxes], **HIDDEN)
        changes = [component.change for component in c.inputs]
        gr.on(
            changes, self._described, c.inputs, self.described, trigger_mode="always_last", **HIDDEN
        )

    def _described(self, *values: Any) -> list[Any]:
        """Cost of the settings, and their texts."""
        try:
            settings = Settings.of(values)
            one = self.engine.cost(settings.recipe)
            n, seeds = len(settings.seeds), list(settings.seeds)
            each = f"{n} images, each: " if n > 1 else "Before you press: "
            texts = [kind(settings.recipe, seeds) for kind in (snippets.python, snippets.command)]
        except (ValueError, OSError) as problem:
            return [error(one_line(problem)), *[gr.skip()] * len(self.copies)]
        return [note(f"{each}{one}"), *texts, self._workflow(settings.recipe, seeds)]

    def _workflow(self, recipe: Recipe, seeds: list[int]) -> str:
        """Workflow of ComfyUI, or why there is none."""
        model = self.engine.model(recipe.model)
        latent = model.latent if model.unet else ()
        try:
            return snippets.comfyui(recipe, seeds, model.scheduler, latent)
        except ValueError as problem:
            return one_line(problem)

    def _cancelled(self, request: gr.Request) -> None:
        self.runs.cancel(_tab(request))

    def _closed(self, request: gr.Request) -> None:
        self.runs.close(_tab(request))
        self.runs.close(f"job {_tab(request)}")


def _tab(request: gr.Request) -> str:
    return str(request.session_hash)


def _status(shown: Shown) -> Any:
    return shown.status or gr.skip()


def _or_skip(value: Any) -> Any:
    return gr.skip() if value is None else files_of(value)


def _quietly(act: Callable[..., Any], otherwise: Any) -> Callable[..., Any]:
    """The same, which leaves the page as it is while an expression is being typed."""

    def quiet(*values: Any) -> Any:
        try:
            return act(*values)
        except (ValueError, OSError):  # of a model that is not there, which the costs say
            return otherwise

    return quiet


def _image_options(label: str, name: str) -> dict[str, Any]:
    look = {"label": label, "elem_id": name, "buttons": ["download", "fullscreen"]}
    return {**look, "format": "png", "interactive": False}
