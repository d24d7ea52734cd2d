"""Log of a run: lines of metrics.jsonl, and grids of images."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.core.fields import is_number
from diffsteer.io.atomic import atomic_write, put
from diffsteer.io.sheet import sheet
from diffsteer.io.strict import parse_object, read_bytes

MAX_BYTES = 2**28
"""Of metrics.jsonl; a line has some 150."""
ROW = 8
"""Images of a grid side by side."""


class Metrics:
    """The file metrics.jsonl: one JSON object a line, with the count of images."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rewind(self, images: int) -> None:
        """Drop lines beyond a count, which will be written again, and a line cut short."""
        if self.path.exists():
            kept = [json.dumps(line) + "\n" for line in self.lines() if line["images"] <= images]
            put(self.path, "".join(kept).encode())

    def lines(self) -> list[dict[str, Any]]:
        """Read all lines, none where there is no file, up to one that was cut short."""
        lines: list[dict[str, Any]] = []
        if not self.path.exists():
            return lines
        for text in read_bytes(self.path, MAX_BYTES).splitlines():
            try:
                lines.append(parse_object(text, str(self.path)))
            except InputError:
                break
            if not is_number(lines[-1].get("images")):
                raise InputError(f'{self.path} line {len(lines)} has no number of "images"')
        return lines

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def save_grid(images: Tensor, path: Path) -> None:
    """Write images, uint8 `(N, 3, H, W)`, as one PNG, eight in a row."""
    from PIL import Image

    shown = [Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()) for image in images]
    rows = [shown[start : start + ROW] for start in range(0, len(shown), ROW)]
    with atomic_write(path) as file:
        sheet(rows, [""] * len(rows[0])).save(file, "PNG")
