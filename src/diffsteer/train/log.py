"""Log of a run: lines of metrics.jsonl, and grids of images."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from diffsteer.io.atomic import atomic_write, put


class Metrics:
    """The file metrics.jsonl: one JSON object a line, with the count of images."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rewind(self, images: int) -> None:
        """Drop lines beyond a count, which will be written again, and a line cut short."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text("utf-8").splitlines():
            try:
                metrics = json.loads(line)
            except ValueError:
                break
            if metrics["images"] <= images:
                kept.append(line + "\n")
        put(self.path, "".join(kept).encode())

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def grid(images: Tensor, columns: int = 8) -> Tensor:
    """Lay images, uint8 `(N, 3, H, W)`, out in rows: `(3, rows H, columns W)`, white between."""
    n, channels, height, width = images.shape
    columns = min(columns, n)
    rows = math.ceil(n / columns)
    sheet = images.new_full((rows * columns, channels, height + 2, width + 2), 255)
    sheet[:n, :, 1:-1, 1:-1] = images
    table = sheet.reshape(rows, columns, *sheet.shape[1:]).permute(2, 0, 3, 1, 4)
    return table.reshape(channels, rows * (height + 2), columns * (width + 2))


def save_grid(images: Tensor, path: Path) -> None:
    """Write images, uint8 `(N, 3, H, W)`, as one PNG, eight in a row."""
    from PIL import Image

    with atomic_write(path) as file:
        Image.fromarray(grid(images).permute(1, 2, 0).numpy()).save(file, "PNG")
