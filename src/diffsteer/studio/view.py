"""Images, labels and texts as the page shows them."""

import html
import os
import tempfile
import textwrap
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffsteer.generate.recipe import Recipe
from diffsteer.io.atomic import put
from diffsteer.io.hashing import bytes_hash
from diffsteer.io.seeds import format_number
from diffsteer.io.sheet import sheet
from diffsteer.studio.render import Preview
from diffsteer.studio.settings import Settings

if TYPE_CHECKING:
    from PIL.Image import Image

LEAST, LARGEST = 128, 256
"""Sides between which cells of grids and strips are shown, in pixels."""
TITLE, MARGIN = 14, 80
"""Pixels above and below a title, and at its right, where the page has buttons."""
COLUMNS = 4
"""Images in a row of a strip: as wide as the page shows it, so that labels can be read."""
LONGEST = 60
"""Characters of an expression in a label."""


def files_of(value: Any) -> Any:
    """Values for the page with images as files, named by their content and written whole, once.

    Gradio writes an image that it is given anew, also while a browser fetches the one of before.
    """
    from PIL import Image

    if isinstance(value, list | tuple):
        return type(value)(files_of(part) for part in value)
    if not isinstance(value, Image.Image):
        return value
    buffer = BytesIO()
    value.save(buffer, "PNG")
    cache = os.environ.get("GRADIO_TEMP_DIR") or f"{tempfile.gettempdir()}/gradio"
    path = Path(cache, f"shown-{bytes_hash(buffer.getvalue())}.png")
    if path.exists():
        path.touch()  # Gradio deletes old ones
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        put(path, buffer.getvalue())
    return str(path)


def cell(image: "Image") -> "Image":
    """Image in the size of a cell."""
    from PIL.Image import Resampling

    side = max(image.size)
    wanted = min(max(side, LEAST), LARGEST)
    size = (round(image.width * wanted / side), round(image.height * wanted / side))
    return image if size == image.size else image.resize(size, Resampling.LANCZOS)


def strip_sheet(previews: Sequence[Preview], recipe: Recipe, seed: int) -> "Image | None":
    """Strip of what the steps predict, each with its number and timestep; None without images."""
    shown = [(p, cell(p.image)) for p in previews if p.image is not None]
    if not shown:
        return None
    labelled = [sheet([[image]], [f"step {p.step}, t {p.time:.0f}"]) for p, image in shown]
    rows = [labelled[i : i + COLUMNS] for i in range(0, len(labelled), COLUMNS)]
    title = f"What each step predicts. {label(recipe)}, seed {seed}"
    return titled(sheet(rows, [""] * len(rows[0])), title)


def grid_sheet(
    images: "Sequence[Sequence[Image]]",
    x: tuple[str, Sequence[float]],
    y: tuple[str, Sequence[float]],
    settings: Settings,
) -> "Image":
    """Grid with the values of both axes, and above it what all images share."""
    heads = [f"{x[0]} {format_number(value)}" for value in x[1]]
    sides = [f"{y[0]} {format_number(value)}" for value in y[1]][: len(images)] if y[0] else []
    whole = sheet([[cell(image) for image in row] for row in images], heads, sides)
    recipe = settings.recipe
    return titled(whole, f"{recipe.prompt}. {label(recipe)}, seed {settings.seeds[0]}, but for:")


def titled(image: "Image", text: str) -> "Image":
    """Image under a title."""
    from PIL import Image, ImageDraw, ImageFont

    lines = textwrap.wrap(text, max((image.width - MARGIN) // 7, 20))
    top = TITLE + 15 * len(lines)
    whole = Image.new("RGB", (image.width, image.height + top), "white")
    font = ImageFont.load_default(12)
    ImageDraw.Draw(whole).multiline_text((6, 6), "\n".join(lines), "black", font)
    whole.paste(image, (0, top))
    return whole


def label(recipe: Recipe) -> str:
    """Short text of a recipe."""
    text = recipe.guidance or "no guidance"
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    more = [recipe.sampler] if recipe.sampler else []
    more += ["refined noise"] if recipe.refiner else []
    return ", ".join([text, *more, f"{recipe.steps} steps"])


def note(text: str) -> str:
    """Status line."""
    return f'<div class="status" role="status">{html.escape(text)}</div>'


def error(text: object) -> str:
    """Status line of a failure."""
    line = " ".join(str(text).split())[:600]
    return f'<div class="status failed" role="alert">{html.escape(line)}</div>'


def bar(step: int, steps: int, text: str) -> str:
    """Status line with a bar."""
    share = round(100 * step / max(steps, 1))
    return (
        f'<div class="status" role="status">{html.escape(text)}'
        f'<div class="bar"><div style="width:{share}%"></div></div></div>'
    )
