"""The controls of the page: what is made, and how."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from diffsteer.core.spacing import SPACINGS
from diffsteer.generate.recipe import Recipe
from diffsteer.hf.shipped import Shipped, shipped
from diffsteer.io.seeds import format_number
from diffsteer.studio.engine import Engine, Model
from diffsteer.studio.expression import Number, numbers, with_numbers
from diffsteer.studio.settings import CONTROLS, SEED, STEPS

SLIDERS = 8
"""Most numbers of an expression that have a slider."""
SAMPLERS = ("", "DDIM()", "DPMpp2M()", "UniPC()", "Euler", "EulerAncestral", "DDPM")


@dataclass(frozen=True, eq=False)
class Words:
    """Menus of the words that a model knows.

    Attributes:
        about: The model.
        box: What is shown while the model is chosen.
        menus: One for each word of a prompt.
    """

    about: Shipped
    box: Any
    menus: list[Any]

    def composed(self, *chosen: str) -> str:
        """Prompt of the words that were chosen."""
        names = self.about.words()
        compose = self.about.compose
        return compose(**dict(zip(names, chosen, strict=True))) if compose else ""


@dataclass(frozen=True, eq=False)
class Controls:
    """Components whose values make the settings.

    Attributes:
        fields: By the names of `settings.CONTROLS`, in their order.
        words: Menus of the words of a prompt, of each model that knows some.
        menu: Catalogue of guidances.
        sliders: For the numbers of the expression.
        generate: Button.
        cancel: Button.
        cost: Line with the cost of the run.
    """

    fields: dict[str, Any]
    words: dict[str, Words]
    menu: Any
    sliders: list[Any]
    generate: Any
    cancel: Any
    cost: Any

    @property
    def inputs(self) -> list[Any]:
        """Components in the order of `settings.CONTROLS`."""
        return list(self.fields.values())


def build(engine: Engine, model: Model) -> Controls:
    """Add the controls to the page that is being made."""
    start = model.defaults
    fields: dict[str, Any] = {}
    fields["model"] = gr.Dropdown(
        list(engine.models), value=model.name, label="Model", visible=len(engine.models) > 1
    )
    fields["prompt"] = gr.Textbox(start.prompt, label="Prompt: what to show", lines=2)
    with gr.Row(elem_id="actions"):
        generate = gr.Button("Generate", variant="primary", elem_id="generate", min_width=120)
        cancel = gr.Button("Cancel", elem_id="cancel", min_width=80)
    cost = gr.HTML("", elem_id="cost")
    words = {name: made for name in engine.models if (made := _words(name, name == model.name))}
    menu = gr.Dropdown(
        **_menu(model, start.guidance),
        label="Guidance",
        info="What makes the image follow the prompt; each entry brings values that suit the model",
        elem_id="menu",
    )
    looks = map(_look, padded(start.guidance))
    sliders = [gr.Slider(**look, elem_classes=["number"]) for look in looks]
    fields["guidance"] = gr.Textbox(
        start.guidance,
        label="Expression",
        info="Edit it freely: guidances add up, such as CFG(3) + SAG(0.25)",
        elem_id="expression",
    )
    fields["steps"] = gr.Slider(1, 100, start.steps, step=1, label="Steps", elem_id="steps")
    fields["seeds"] = gr.Textbox(
        "0", label="Seeds: one image each", info="7, or 0-3, or 1, 5", elem_id="seeds"
    )
    with gr.Accordion("Sampler and schedule", open=False):
        _sampler(fields)
    with gr.Accordion("Refined noise, negative prompt, size", open=False):
        _more(fields, engine)
    fields = {name: fields[name] for name in CONTROLS}
    return Controls(fields, words, menu, sliders, generate, cancel, cost)


def _words(model: str, shown: bool) -> Words | None:
    """Menus of the words that a model knows; None where it takes any text."""
    about = shipped(model)
    if about is None or not (words := about.words()):
        return None
    with gr.Column(visible=shown) as box:
        gr.Markdown("Words that this model knows:")
        with gr.Row():
            menus = [
                gr.Dropdown(
                    list(given), value=about.start.get(name, given[0]), label=name, min_width=150,
                    elem_id=name if shown else f"{model}-{name}",
                )
                for name, given in words.items()
            ]  # fmt: skip
    return Words(about, box, menus)


def _menu(model: Model, text: str) -> dict[str, Any]:
    """Guidances of a model, and the one that an expression is."""
    value = text if text in {entry.text for entry in model.menu} else None
    return {"choices": [(entry.label, entry.text) for entry in model.menu], "value": value}


def followed(engine: Engine, controls: Controls, name: str, text: str) -> list[Any]:
    """Updates of the menu of guidances and of the boxes of words for another model."""
    boxes = [gr.update(visible=each == name) for each in controls.words]
    return [gr.update(**_menu(engine.model(name), text)), *boxes]


def _sampler(fields: dict[str, Any]) -> None:
    fields["sampler"] = gr.Dropdown(
        [("the model's own", ""), *((s, s) for s in SAMPLERS[1:])],
        value="",
        label="Sampler",
        info="How each step is taken; an expression such as DDIM(eta=0.5) works too",
        allow_custom_value=True,
    )
    fields["spacing"] = gr.Dropdown(
        list(SPACINGS),
        value=Recipe.spacing,
        label="Spacing: which noise levels are visited",
        info="With a sampler chosen above",
    )
    fields["zero_snr"] = gr.Checkbox(
        False,
        label="Repair the schedule to zero terminal SNR",
        info="For networks that were trained so; needs a sampler chosen above",
    )


def _more(fields: dict[str, Any], engine: Engine) -> None:
    refiners = [("none", ""), *((name, name) for name in engine.refiners)]
    fields["refiner"] = gr.Dropdown(
        [*refiners, ("noise level guidance, NLG(20)", "NLG(20)")],
        value="",
        label="Refiner: better initial noise, in place of guidance",
    )
    fields["strength"] = gr.Slider(0, 2, 1, step=0.05, label="Strength of the refiner")
    fields["guide"] = gr.Dropdown(
        [("the model's own", ""), *((name, name) for name in engine.guides)],
        value="" if not engine.guides else engine.guides[0],
        label="Guide: the weaker network that Auto asks",
        visible=bool(engine.guides),
    )
    fields["negative"] = gr.Textbox("", label="Negative prompt: what to stay away from")
    with gr.Row():
        for side in ("width", "height"):
            fields[side] = gr.Number(
                0, label=f"{side.capitalize()} in pixels", info="0: the model's own", precision=0
            )


def padded(text: str) -> list[Number | None]:
    """Numbers of an expression, filled up to the number of sliders."""
    given = numbers(text)[:SLIDERS]
    return [*given, *[None] * (SLIDERS - len(given))]


def _look(number: Number | None) -> dict[str, Any]:
    if number is None:
        return {"visible": False, "minimum": 0, "maximum": 1, "value": 0, "label": ""}
    ends = {"minimum": number.lo, "maximum": number.hi, "step": number.step}
    return {**ends, "value": number.value, "label": number.name, "visible": True}


def sliders_of(text: str) -> list[Any]:
    """Updates of the sliders for an expression."""
    return [gr.update(**_look(number)) for number in padded(text)]


def moved(text: str, *values: float) -> str:
    """Expression with the values of the sliders."""
    given = numbers(text)
    chosen = [None if value == n.value else value for n, value in zip(given, values, strict=False)]
    return with_numbers(text, [*chosen, *[None] * (len(given) - len(chosen))])


def axes_of(text: str, x: str, y: str) -> list[Any]:
    """Updates of the menus of the axes for an expression."""
    names = [number.name for number in numbers(text)]
    every = [*names, STEPS, SEED]
    x = x if x in every else every[0]
    y = y if y in every and y != x else ""
    return [
        gr.update(choices=every, value=x),
        gr.update(choices=[("none", ""), *((n, n) for n in every)], value=y),
    ]


def around(text: str, axis: str) -> str:
    """Values of an axis to begin with."""
    number = next((n for n in numbers(text) if n.name == axis), None)
    if number is None:
        return {STEPS: "4, 8, 16", SEED: "0, 1, 2, 3"}.get(axis, "")
    factors: Sequence[float] = (0, 0.5, 1, 2) if number.step != 1 else (1, 2, 3)
    base = number.value or 1.0
    return ", ".join(
        format_number(round(min(max(base * f, number.lo), number.hi), 4)) for f in factors
    )
