"""Contact sheets: images in rows and columns, each row and column with its label."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

GAP = 2
"""Pixels around an image."""
FONT, LETTER, LINE = 10, 6, 13
"""Size of labels, and the space that a letter and a line of them take, in pixels."""
LABEL, LINES = 160, 5
"""Width of the labels of rows, and most lines of a label."""


def sheet(
    images: "Sequence[Sequence[Image]]", columns: Sequence[str], rows: Sequence[str] = ()
) -> "Image":
    """Lay rows of images out with a label over each column and left of each row.

    Cells are wide enough for a few letters; labels that are still too long are cut.

    Args:
        images: Rows of images; a row may be shorter than others.
        columns: Label of each column, "" for none.
        rows: Label of each row; none for no labels.
    """
    from PIL import Image, ImageDraw, ImageFont

    sizes = [image.size for row in images for image in row]
    width, height = (max(size[i] for size in sizes) + 2 * GAP for i in (0, 1))
    if any(columns):
        width = max(width, 10 * LETTER)
    heads = [_wrapped(text, width) for text in columns]
    sides = [_wrapped(text, LABEL) for text in rows]
    height = max(height, *(LINE * side.count("\n") + LINE for side in sides), 0)
    top = LINE * max((head.count("\n") + 1 for head in heads if head), default=0) + GAP
    left = LABEL if rows else 0
    whole = Image.new("RGB", (left + width * len(columns), top + height * len(images)), "white")
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default(FONT)
    for x, head in enumerate(heads):
        draw.multiline_text((left + x * width + GAP, GAP), head, "black", font, spacing=1)
    for y, side in enumerate(sides):
        draw.multiline_text((GAP, top + y * height + GAP), side, "black", font, spacing=1)
    for y, row in enumerate(images):
        for x, image in enumerate(row):
            whole.paste(image, (left + x * width + GAP, top + y * height + GAP))
    return whole


def _wrapped(text: str, width: int) -> str:
    letters = max(width // LETTER, 10)
    return "\n".join(textwrap.wrap(text, letters, max_lines=LINES, placeholder=" ..."))
