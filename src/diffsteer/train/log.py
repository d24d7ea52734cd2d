"""Log of a run: lines of metrics.jsonl, a progress bar, and grids of images."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffsteer.train.checkpoints import put


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


class Sums:
    """Means of losses since they were last taken, on the device of the losses."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._start = time.perf_counter()

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add one value for each name, 0-dim."""
        for name, value in values.items():
            value = value.detach().float()
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self) -> tuple[dict[str, Tensor], float]:
        """Return the means and the seconds that they cover, and start again."""
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        seconds = time.perf_counter() - self._start
        self.__init__()  # type: ignore[misc]
        return means, seconds


def progress(title: str, images: int, end: int, shown: bool) -> Any:
    """Progress bar of a run that has done `images` of `end` images."""
    from tqdm import tqdm

    return tqdm(
        desc=title,
        total=end,
        initial=images,
        unit="img",
        unit_scale=True,
        smoothing=0.05,
        mininterval=1.0,
        disable=not shown,
    )


def forecast(rate: float, images: int) -> str:
    """Say when so many images at so many per second will be done."""
    hours = images / rate / 3600
    left = f"{hours / 24:.1f} days" if hours > 48 else f"{hours:.1f} hours"
    left = left if hours > 1 else f"{hours * 60:.1f} minutes"
    return f"about {rate:.3g} images per second: ends in {left}"


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
    from io import BytesIO

    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    file = BytesIO()
    Image.fromarray(grid(images).permute(1, 2, 0).numpy()).save(file, "PNG")
    put(path, file.getvalue())
