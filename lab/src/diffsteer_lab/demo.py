"""Every guidance and both schedules on the critter model, side by side: `diffsteer demo`."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from diffsteer.generate.pipelines import open_pipeline
from diffsteer.generate.recipe import Recipe
from diffsteer.io.atomic import atomic_write, put, write_json
from diffsteer.io.sheet import sheet
from diffsteer.metrics.background import errors
from diffsteer.report.page import render
from diffsteer_lab.critters.grammar import BACKGROUNDS, parse_caption
from diffsteer_lab.critters.judge import right
from diffsteer_lab.models import GUIDANCES as VALUES

if TYPE_CHECKING:
    from PIL.Image import Image

CREDIT = (
    "The model learned from renderings of the style Critters by DiceBear "
    "(https://www.dicebear.com), CC0 1.0."
)
"""Where the model's images come from."""
BASE = Recipe(model="critters", steps=25)
PROMPTS = (
    "a purple three-eyed tower critter with green antennae, grinning, on an orange background",
    "a yellow happy squat critter with red horns, frowning, on a blue background",
    "a green one-eyed bell critter with pink floppy ears, licking, on a white background",
    "a red angry dome critter with cyan antennae, toothy, on a yellow background",
    "a cyan four-eyed steps critter with an orange bobble, gasping, on a pink background",
    "a pink sleepy wedge critter with purple round ears, smiling, on a green background",
    "an orange squinting block critter with a blue spike, stern, on a purple background",
    "a blue two-eyed funnel critter with yellow pointed ears, grimacing, on a red background",
)
EXTREMES = (
    "a red one-eyed dome critter with yellow antennae, smiling, on a black background",
    "a cyan happy block critter with pink horns, toothy, on a black background",
    "a yellow four-eyed bell critter with green round ears, gasping, on a black background",
    "a purple two-eyed tower critter with an orange bobble, stern, on a black background",
    "a red one-eyed dome critter with yellow antennae, smiling, on a white background",
    "a cyan happy block critter with pink horns, toothy, on a white background",
    "a yellow four-eyed bell critter with green round ears, gasping, on a white background",
    "a purple two-eyed tower critter with an orange bobble, stern, on a white background",
)


@dataclass(frozen=True)
class Row:
    """One way to sample.

    Attributes:
        name: For people.
        why: What it is, in a sentence.
        recipe: All of it.
    """

    name: str
    why: str
    recipe: Recipe


WHY = {
    "no guidance": "The prediction of the network, unchanged.",
    "CFG": "Away from that of the null prompt (Ho and Salimans 2022).",
    "CFG, rescaled": "Its contrast brought back to that of the prediction (Lin et al. 2023).",
    "CFG, in an interval": (
        "Only at middle noise levels, where it helps (Kynkäänniemi et al. 2024)."
    ),
    "SAG": "Away from a prediction blurred where the network looks (Hong et al. 2022).",
    "CFG + SAG": "Both of them: guidances add up.",
    "PAG": "Away from a network that attends to nothing but itself (Ahn et al. 2024).",
    "SEG": "Away from a network with blurred attention (Hong 2024).",
    "autoguidance": "Away from a smaller, less trained version of itself (Karras et al. 2024).",
}
"""What a guidance does, by its name."""
ALIASES = {"CFG, in an interval": "CFG in an interval", "autoguidance": "Auto"}
"""Names of guidances among VALUES, where they are others."""


def guided(name: str, why: str) -> Row:
    """The model with a guidance at the value that suits it."""
    key = ALIASES.get(name, name)
    guide = "critters-guide" if key == "Auto" else ""
    recipe = replace(BASE, prompts=PROMPTS, guidance=VALUES.get(key, ""), guide=guide)
    return Row(name, why, recipe)


GUIDANCES = (
    *(guided(name, why) for name, why in WHY.items()),
    Row(
        "refined noise",
        "No guidance: refined initial noise, at one more NFE (Ahn et al. 2024).",
        replace(BASE, prompts=PROMPTS, refiner="critters-refiner"),
    ),
    Row(
        "guidance in a LoRA",
        "No guidance: an adapter that learned what CFG makes (Perez Jensen and Sadat 2025).",
        replace(BASE, prompts=PROMPTS, lora=("critters-agd",)),
    ),
)
SCHEDULES = tuple(
    Row(name, why, replace(BASE, model=model, prompts=EXTREMES))
    for name, model, why in (
        (
            "flawed schedule",
            "critters-eps",
            "Trained as Stable Diffusion was: it never saw pure noise, and starts from it.",
        ),
        (
            "repaired schedule",
            "critters",
            "The same network fine-tuned: v-prediction, zero terminal SNR, from the last step.",
        ),
    )
)


@dataclass(frozen=True)
class RowSamples:
    """The images of a row, uint8 `(N, 3, H, W)`, and their metrics by name."""

    row: Row
    images: Tensor
    metrics: dict[str, float]

    @property
    def thumbnails(self) -> "list[Image]":
        """The images for the page, of twice the size."""
        from PIL import Image

        small = (Image.fromarray(image.permute(1, 2, 0).numpy()) for image in self.images)
        return [
            each.resize((2 * each.width, 2 * each.height), Image.Resampling.NEAREST)
            for each in small
        ]


def demo(out: Path, models: Path | None = None) -> None:
    """Draw all rows; write grid.png, index.html and results.json, after each row anew.

    Args:
        out: Folder for them.
        models: Folder of the finished runs of the critters presets; None for the models that ship.
    """
    from tqdm import tqdm

    done: list[RowSamples] = []
    rows = [*GUIDANCES, *SCHEDULES]
    with tqdm(total=len(rows), unit="row") as bar:
        for samples in _sample(rows, models):
            done.append(samples)
            bar.set_postfix_str(samples.row.name)
            bar.update()
            _write(done, out)
            if len(done) == 1:
                bar.write(f"{out / 'grid.png'} has its first row")


def _sample(rows: Sequence[Row], models: Path | None) -> Iterator[RowSamples]:
    for row in rows:
        seeds = range(len(row.recipe.prompts))
        with open_pipeline(located(row.recipe, models), "cpu") as generate:
            begin = time.perf_counter()
            images = generate(seeds)
            seconds = time.perf_counter() - begin
            costs = {name: n / len(seeds) for name, n in generate.nfe().items()}
        yield RowSamples(row, images, _metrics(images, row.recipe.prompts, costs, seconds))


def located(recipe: Recipe, models: Path | None) -> Recipe:
    """The recipe with the folders of trained models in place of the names of those that ship."""
    if models is None:
        return recipe
    guide = str(models / recipe.guide / "model" / "unet") if recipe.guide else ""
    refiner = str(models / recipe.refiner / "model") if recipe.refiner else ""
    lora = tuple(str(models / name / "model") for name in recipe.lora)
    model = str(models / recipe.model / "model")
    return replace(recipe, model=model, guide=guide, refiner=refiner, lora=lora)


def _metrics(
    images: Tensor, prompts: Sequence[str], costs: dict[str, float], seconds: float
) -> dict[str, float]:
    """Metrics that a few images allow, and the cost of an image."""
    shown = right(images, prompts)
    grounds = [BACKGROUNDS[parse_caption(prompt).background] for prompt in prompts]
    return {
        "attributes right": shown.sum().item(),
        "attributes": float(shown.numel()),
        "all right": shown.all(1).sum().item(),
        "of": float(len(prompts)),
        "background error": errors(images, grounds).mean().item(),
        "seconds": seconds / len(prompts),
        **costs,
    }


def _write(done: Sequence[RowSamples], out: Path) -> None:
    with atomic_write(out / "grid.png") as file:
        _grid(done).save(file, "PNG")
    results = [
        {"name": d.row.name, "recipe": d.row.recipe.to_dict(), "figures": d.metrics} for d in done
    ]
    write_json(out / "results.json", results)
    put(out / "index.html", _page(done).encode())


def _grid(done: Sequence[RowSamples]) -> "Image":
    """Images of all rows, those of the same prompts under one line of labels."""
    from PIL import Image

    sheets = [
        sheet([s.thumbnails for s in group], prompts, [s.row.name for s in group])
        for prompts, group in _by_prompts(done).items()
    ]
    whole = Image.new("RGB", (sheets[0].width, sum(each.height for each in sheets)), "white")
    top = 0
    for each in sheets:
        whole.paste(each, (0, top))
        top += each.height
    return whole


def _by_prompts(done: Sequence[RowSamples]) -> dict[tuple[str, ...], list[RowSamples]]:
    groups: dict[tuple[str, ...], list[RowSamples]] = {}
    for samples in done:
        groups.setdefault(samples.row.recipe.prompts, []).append(samples)
    return groups


def _page(done: Sequence[RowSamples]) -> str:
    return render(
        "demo.html",
        package="diffsteer_lab",
        guidances=[samples for samples in done if samples.row in GUIDANCES],
        schedules=[samples for samples in done if samples.row in SCHEDULES],
        steps=BASE.steps,
        prompts=len(PROMPTS),
        credit=CREDIT,
    )


def summary(results: Sequence[dict[str, Any]]) -> str:
    """The table of `results.json`, for a terminal."""
    lines = [f"{'':20} {'attributes':>11} {'all right':>9} {'NFE':>5} {'s':>6}"]
    for result in results:
        metrics = result["figures"]
        attributes = f"{metrics['attributes right']:.0f} of {metrics['attributes']:.0f}"
        whole = f"{metrics['all right']:.0f} of {metrics['of']:.0f}"
        nfe = metrics["rows"] + metrics.get("rows of the guide", 0)
        lines.append(
            f"{result['name']:20} {attributes:>11} {whole:>9} {nfe:5.0f} {metrics['seconds']:6.2f}"
        )
    return "\n".join(lines)
