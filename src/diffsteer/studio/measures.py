"""Tabs that look at a model and measure recipes: schedule, doctor, evaluate and tune."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from diffsteer.studio.engine import Engine
from diffsteer.studio.expression import numbers
from diffsteer.studio.jobs import References, evaluated, job, tuned
from diffsteer.studio.runs import Runs, guarded, one_line
from diffsteer.studio.schedule import draw
from diffsteer.studio.settings import CONTROLS, Settings
from diffsteer.studio.view import error, files_of, note

KEPT = 40
"""Lines of a job that the page shows."""
NAMES = "wvusrqpo"
"""Names of numbers in a search space."""


def model_tab(engine: Engine, inputs: Sequence[Any], options: dict[str, Any]) -> None:
    """Page of the model: schedule with SNR, nodes and brightness, and the doctor's verdict."""
    with gr.Tab("Model") as tab:
        _verdict(engine, inputs, options, tab)
        text = gr.HTML(note("Noise levels of the settings"), elem_id="schedule-text")
        plot = gr.Image(label="Schedule", show_label=False, format="png", interactive=False,
                        buttons=["download"], elem_id="schedule")  # fmt: skip
        again = gr.Button("Draw the schedule of the settings", elem_id="draw")

    def drawn(*values: Any) -> tuple[Any, Any]:
        try:
            recipe = Settings.of(values).recipe
            model = engine.model(recipe.model)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "schedule.png"
                words = draw(recipe, model, path)
                with Image.open(path) as image:
                    return note(words), files_of(image)
        except (ValueError, OSError, ModuleNotFoundError) as problem:
            return error(one_line(problem)), gr.skip()

    for event in (tab.select, again.click):
        event(drawn, list(inputs), [text, plot], **options)


def _verdict(engine: Engine, inputs: Sequence[Any], options: dict[str, Any], tab: Any) -> None:
    """Verdict of the doctor on the model."""
    verdict = gr.HTML(note("What the model is, and what goes wrong with it"), elem_id="verdict")
    with gr.Accordion("The doctor's whole report", open=False):
        text = gr.Code(interactive=False, show_line_numbers=False, wrap_lines=True)

    def asked(name: str) -> tuple[Any, Any]:
        from diffsteer.doctor.diagnosis import diagnose
        from diffsteer.doctor.present import text as report

        try:
            engine.model(name)
            diagnosis = diagnose(name)
        except (ValueError, OSError) as problem:
            return error(one_line(problem)), gr.skip()
        bad = [f for f in diagnosis.findings if f.severity == "problem"]
        judged = (
            f"{name} predicts {diagnosis.prediction.value}, terminal SNR {diagnosis.snr.value}. "
        )
        judged += f"{len(bad)} problems: {bad[0].text}" if bad else "No problem found."
        return (error if bad else note)(judged), report(diagnosis)

    tab.select(asked, inputs[CONTROLS.index("model")], [verdict, text], **options)


def measure_tab(engine: Engine, runs: Runs, inputs: Sequence[Any], options: dict[str, Any]) -> None:
    """Evaluate and tune as jobs."""
    references = References(engine.history.folder / "jobs", engine.data)
    start = engine.model(engine.models[0]).defaults.guidance
    with gr.Tab("Measure"):
        gr.Markdown(
            "Compare many images of the settings with real ones, or search for better settings. "
            "Each is a command of diffsteer in a process of its own."
        )
        offered = references.offered(engine.models[0])
        reference = gr.Dropdown(**offered, label="Real images", elem_id="reference")
        prompts = gr.Textbox("", lines=2, label="Prompts, one a line",
                             info="Empty: captions of the real images, or the prompt")  # fmt: skip
        count = gr.Slider(20, 1000, 50, step=10, label="Images", elem_id="count")
        with gr.Row():
            space = gr.Textbox(space_of(start), label="Search space", elem_id="space")
            minutes = gr.Slider(1, 120, 5, step=1, label="Minutes of search", elem_id="minutes")
        with gr.Row():
            evaluate = gr.Button("Evaluate", variant="primary", elem_id="evaluate", min_width=90)
            tune = gr.Button("Tune", elem_id="tune", min_width=90)
            stop = gr.Button("Cancel the job", elem_id="stop", min_width=90)
        state = gr.HTML(note("No job"), elem_id="job")
        log = gr.Code(label="What it prints", interactive=False, show_line_numbers=False,
                      wrap_lines=True, elem_id="log")  # fmt: skip

    def run(
        words: Callable[..., list[str]], tab: str, values: Sequence[Any], name: str, texts: str
    ) -> Iterator[Any]:
        settings, out = Settings.of(tuple(values)), references.out
        out.mkdir(parents=True, exist_ok=True)
        path, captions = references.path(settings.recipe.model, name)
        lines = [line.strip() for line in texts.splitlines() if line.strip()] or captions
        made = words(settings, path, lines)
        printed: list[str] = []
        yield note(f"diffsteer {made[0]} is running ..."), ""
        for line in job(made, out, runs.begin(f"job {tab}")):
            printed.append(line)
            yield note(f"diffsteer {made[0]} is running ..."), "\n".join(printed[-KEPT:])
        yield note(f"diffsteer {made[0]} has finished; its files are in {out}"), gr.skip()

    def measured(request: gr.Request, name: str, texts: str, n: int, *values: Any) -> Iterator[Any]:
        def words(settings: Settings, path: Path, lines: Sequence[str]) -> list[str]:
            return evaluated(settings, path, lines, int(n), references.out)

        yield from _guarded(run(words, str(request.session_hash), values, name, texts))

    def searched(
        request: gr.Request, name: str, texts: str, n: int, text: str, time: float, *values: Any
    ) -> Iterator[Any]:
        def words(settings: Settings, path: Path, lines: Sequence[str]) -> list[str]:
            return tuned(settings, path, lines, text, time, int(n), references.out)

        yield from _guarded(run(words, str(request.session_hash), values, name, texts))

    common, outputs = [reference, prompts, count], [state, log]
    evaluate.click(measured, [*common, *inputs], outputs, concurrency_limit=None, **options)
    tune.click(
        searched, [*common, space, minutes, *inputs], outputs, concurrency_limit=None, **options
    )

    def stopped(request: gr.Request) -> None:
        runs.cancel(f"job {request.session_hash}")

    def followed(model: str, chosen: str | None) -> Any:
        return gr.update(**references.offered(model, chosen))

    model = inputs[CONTROLS.index("model")]
    model.change(followed, [model, reference], reference, **options)
    expression = inputs[CONTROLS.index("guidance")]
    expression.change(_space_or_skip, expression, space, **options)
    stop.click(stopped, None, None, queue=False, **options)


def _guarded(shown: Iterator[Any]) -> Iterator[Any]:
    text = "Cancelled; what was finished is kept, and the same button goes on"
    return guarded(shown, lambda status: (status, gr.skip()), text)


def _space_or_skip(text: str) -> Any:
    try:
        return space_of(text)
    except ValueError:  # it is being typed
        return gr.skip()


def space_of(text: str) -> str:
    """Search space around an expression: each number from half of it to its double, and steps."""
    text, ranges = text or "CFG(3)", list[str]()
    for number, name in reversed([*zip(numbers(text), NAMES, strict=False)]):
        if number.value > 0 and number.step != 1:
            first, last = number.place
            text = f"{text[:first]}{name}{text[last:]}"
            ranges.insert(0, f"{name}={number.value / 2:g}..{min(number.value * 2, number.hi):g}")
    return ", ".join([text, *ranges, "steps=8..24"])
