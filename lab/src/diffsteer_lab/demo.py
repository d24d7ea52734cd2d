"""Every guidance and both schedules on the pocket model, side by side: `diffsteer demo`."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffsteer.generate.pipelines import open_pipeline
from diffsteer.generate.recipe import Recipe
from diffsteer.io.atomic import atomic_write
from diffsteer.metrics.background import errors, nearest
from diffsteer.metrics.sharpness import edges
from diffsteer.report.html import document, image, table
from diffsteer.train.log import save_grid
from diffsteer_lab.emoji import BACKGROUNDS

STYLE = """
.rows td, .rows th { border: 0; padding: .15em .25em; text-align: left; vertical-align: middle }
.rows th { vertical-align: bottom } .rows small { white-space: normal; line-height: 1.3 }
.rows td:first-child { min-width: 13em } .rows td:last-child { min-width: 10em }
.rows img { width: 104px; display: block }
"""
CREDIT = (
    "The model learned from Noto Emoji (Copyright Google, Apache-2.0) and Twemoji (Copyright "
    "Twitter, Inc and other contributors, CC-BY 4.0, https://creativecommons.org/licenses/by/4.0/);"
    " images in twemoji style are made after Twemoji."
)
"""What has to stay with the images."""
BASE = Recipe(model="pocket", steps=25)
PROMPTS = (
    "red apple, noto style, on a white background",
    "owl, noto style, on a black background",
    "rocket, twemoji style, on a red background",
    "strawberry, noto style, on a blue background",
    "penguin, twemoji style, on a green background",
    "woman teacher, noto style, on a yellow background",
    "alarm clock, twemoji style, on a purple background",
    "snowman, noto style, on a grey background",
)
EXTREMES = tuple(
    f"{thing}, {style} style, on a {colour} background"
    for colour in ("black", "white")
    for thing, style in (
        ("full moon", "noto"),
        ("tiger face", "twemoji"),
        ("soccer ball", "noto"),
        ("cactus", "twemoji"),
    )
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


GUIDANCES = tuple(
    Row(name, why, replace(BASE, prompts=PROMPTS, guidance=guidance, guide=guide))
    for name, guidance, guide, why in (
        ("no guidance", "", "", "What the network says, and nothing else."),
        ("CFG", "CFG(3)", "", "Away from what it says without a prompt (Ho and Salimans 2022)."),
        (
            "CFG, rescaled",
            "CFG(3).rescaled(0.7)",
            "",
            "Its contrast brought back to that of the prediction (Lin et al. 2023).",
        ),
        (
            "CFG, in an interval",
            "CFG(3).within(0.2, 5)",
            "",
            "Only at middle noise levels, where it helps (Kynkäänniemi et al. 2024).",
        ),
        (
            "SAG",
            'SAG(0.25, on="cond")',
            "",
            "Away from a prediction blurred where the network looks (Hong et al. 2022).",
        ),
        ("CFG + SAG", "CFG(3) + SAG(0.25)", "", "Both of them: guidances add up."),
        (
            "PAG",
            'PAG(0.5, layer="up_blocks.1")',
            "",
            "Away from a network that attends to nothing but itself (Ahn et al. 2024).",
        ),
        (
            "SEG",
            'SEG(1.5, layer="up_blocks.1")',
            "",
            "Away from a network with blurred attention (Hong 2024).",
        ),
        (
            "autoguidance",
            "Auto(1.5)",
            "pocket-guide",
            "Away from a smaller, less trained version of itself (Karras et al. 2024).",
        ),
    )
) + (
    Row(
        "refined noise",
        "No guidance: better noise to start from, for one row (Ahn et al. 2024, NoiseRefine).",
        replace(BASE, prompts=PROMPTS, refiner="pocket-refiner"),
    ),
)
SCHEDULES = tuple(
    Row(name, why, replace(BASE, model=model, prompts=EXTREMES))
    for name, model, why in (
        (
            "flawed schedule",
            "pocket-eps",
            "Trained as Stable Diffusion was: it never saw pure noise, and starts from it.",
        ),
        (
            "repaired schedule",
            "pocket",
            "The same network fine-tuned: v-prediction, zero terminal SNR, from the last step.",
        ),
    )
)


@dataclass(frozen=True)
class Drawn:
    """The images of a row, uint8 `(N, 3, H, W)`, and what can be said of them."""

    row: Row
    pictures: Tensor
    figures: dict[str, float]


def demo(out: Path, models: Path | None = None) -> None:
    """Draw all rows; write grid.png, index.html and results.json, after each row anew.

    Args:
        out: Folder for them.
        models: Folder of the finished runs of the pocket presets; None for the models that ship.
    """
    from tqdm import tqdm

    done: list[Drawn] = []
    rows = [*GUIDANCES, *SCHEDULES]
    with tqdm(total=len(rows), unit="row") as bar:
        for drawn in _draw(rows, models):
            done.append(drawn)
            bar.set_postfix_str(drawn.row.name)
            bar.update()
            _write(done, out)
            if len(done) == 1:
                bar.write(f"{out / 'grid.png'} has its first row")


def _draw(rows: Sequence[Row], models: Path | None) -> Iterator[Drawn]:
    for row in rows:
        seeds = range(len(row.recipe.prompts))
        with open_pipeline(located(row.recipe, models), "cpu") as images:
            begin = time.perf_counter()
            pictures = images(seeds)
            seconds = time.perf_counter() - begin
            costs = {name: n / len(seeds) for name, n in images.nfe().items()}
        yield Drawn(row, pictures, _measured(pictures, row.recipe.prompts, costs, seconds))


def located(recipe: Recipe, models: Path | None) -> Recipe:
    """The recipe with the folders of trained models in place of the names of those that ship."""
    if models is None:
        return recipe
    guide = str(models / recipe.guide / "model" / "unet") if recipe.guide else ""
    refiner = str(models / recipe.refiner / "model") if recipe.refiner else ""
    return replace(recipe, model=str(models / recipe.model / "model"), guide=guide, refiner=refiner)


def _measured(
    pictures: Tensor, prompts: Sequence[str], costs: dict[str, float], seconds: float
) -> dict[str, float]:
    """Figures that a few images allow, and what one of them cost."""
    names = [prompt.split("on a ")[1].removesuffix(" background") for prompt in prompts]
    obeyed = sum(a == b for a, b in zip(nearest(pictures, BACKGROUNDS), names, strict=True))
    error = errors(pictures, [BACKGROUNDS[name] for name in names])
    return {
        "backgrounds obeyed": float(obeyed),
        "of": float(len(prompts)),
        "background error": error.mean().item(),
        "edges": edges(pictures).mean().item(),
        "seconds": seconds / len(prompts),
        **costs,
    }


def _write(done: Sequence[Drawn], out: Path) -> None:
    save_grid(torch.cat([drawn.pictures for drawn in done]), out / "grid.png")
    results = [
        {"name": d.row.name, "recipe": d.row.recipe.to_dict(), "figures": d.figures} for d in done
    ]
    with atomic_write(out / "results.json") as file:
        file.write((json.dumps(results, indent=2) + "\n").encode())
    with atomic_write(out / "index.html") as file:
        file.write(_page(done).encode())


def _page(done: Sequence[Drawn]) -> str:
    sections = [
        "<h1>diffsteer on the pocket model</h1>",
        "<p>Images of 64 x 64 pixels by a Stable Diffusion of a few megabytes, which ships with "
        "diffsteer. The images of a column have the same prompt and start from the same noise. "
        "All of this works alike on your own pipeline.</p>",
        "<h2>Guidance</h2>",
        _table([d for d in done if d.row in GUIDANCES]),
        "<h2>Zero terminal SNR</h2>",
        "<p>Stable Diffusion's schedule ends short of pure noise, from which sampling starts "
        "nevertheless. So all images come out with a middling brightness, and a black or a "
        "white background with them. No guidance here, which hides half of it.</p>",
        _table([d for d in done if d.row in SCHEDULES]),
        "<h2>Settings</h2>",
        f"<p>{BASE.steps} steps, seeds 0 to {len(PROMPTS) - 1}, the scheduler of the model. Rows "
        "are samples that a network evaluated for one image, seconds are for one image on "
        "this machine; the first row includes warming up. The error is of the corners' colour, "
        "in grey levels of 255. "
        f"{len(PROMPTS)} images show what a method does, at weights at which it can be seen; how "
        "much it helps, and at which weight, is measured on thousands, with <code>diffsteer "
        "compare</code>.</p>",
        f"<p>{CREDIT}</p>",
    ]
    return document("diffsteer demo", sections, STYLE)


def _table(rows: Sequence[Drawn]) -> str:
    if not rows:
        return "<p>Still to come.</p>"
    prompts = rows[0].row.recipe.prompts
    head = ["", *(f"<small>{escape(p)}</small>" for p in prompts), "figures"]
    return table(head, [_line(d) for d in rows], "rows")


def _line(drawn: Drawn) -> str:
    from PIL import Image

    row, found = drawn.row, drawn.figures
    cells = "".join(
        f"<td>{image(Image.fromarray(p.permute(1, 2, 0).numpy()), f'{row.name}: {text}')}</td>"
        for p, text in zip(drawn.pictures, row.recipe.prompts, strict=True)
    )
    guide = found.get("rows of the guide")
    cost = f"{found['rows']:.0f} rows" + (f" + {guide:.0f} of the guide" if guide else "")
    said = (
        f"{found['backgrounds obeyed']:.0f} of {found['of']:.0f} backgrounds, error "
        f"{found['background error']:.1f}<br>{cost}, {found['seconds']:.2f} s"
    )
    name = f"<b>{escape(row.name)}</b><small>{escape(row.why)}</small>"
    text = row.recipe.guidance or row.recipe.refiner
    code = f"<small><code>{escape(text)}</code></small>" if text else ""
    return f"<tr><td>{name}{code}</td>{cells}<td><small>{said}</small></td></tr>"


def summary(results: Sequence[dict[str, Any]]) -> str:
    """What `results.json` says, for a terminal."""
    lines = [f"{'':20} {'backgrounds':>11} {'error':>6} {'rows':>5} {'s':>6}"]
    for one in results:
        found = one["figures"]
        obeyed = f"{found['backgrounds obeyed']:.0f} of {found['of']:.0f}"
        lines.append(
            f"{one['name']:20} {obeyed:>11} {found['background error']:6.1f} "
            f"{found['rows']:5.0f} {found['seconds']:6.2f}"
        )
    return "\n".join(lines)
