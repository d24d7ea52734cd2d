"""Fréchet distances of recipes to real images, for `fashion.py` and `sag.py`."""

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from images import enlarged, save

from diffsteer.generate.generator import open_generator
from diffsteer.generate.recipe import Recipe
from diffsteer.io.atomic import write_json
from diffsteer.io.sheet import sheet
from diffsteer.metrics.efficientnet import EfficientNetLite0
from diffsteer.metrics.evaluate import compare
from diffsteer.metrics.sampled import measure_recipe
from diffsteer.metrics.statistics import Statistics, measure

OUT = Path(__file__).parent.parent / "docs" / "results"
SHOWN = range(16)
"""Seeds of the images of each row."""
EXTRACTOR = EfficientNetLite0("block10", 64, mask=16)
CHOICE = 1_000_000
"""First seed of those by which settings are chosen."""
BETWEEN = 10_000
"""Distance between ranges of seeds."""


@dataclass(frozen=True)
class Distances:
    """Figures of recipes against all real images.

    Attributes:
        real: Statistics of the real images.
        work: Folder of what was sampled; a second start goes on.
        choose: Images to choose by.
        n: Images of a range that is reported.
        ranges: Number of ranges.
    """

    real: Statistics
    work: Path
    choose: int
    n: int
    ranges: int

    def best(self, recipes: Mapping[str, Recipe]) -> tuple[str, dict[str, float]]:
        """Name of the recipe of least FD on the seeds of the choice, and FD of all."""
        seeds = range(CHOICE, CHOICE + self.choose)
        tried = {name: self.figures(recipe, seeds)["FD"] for name, recipe in recipes.items()}
        return min(tried, key=tried.__getitem__), {k: round(v, 1) for k, v in tried.items()}

    def report(self, recipe: Recipe) -> dict[str, list[float]]:
        """Mean, least and most of each figure over the ranges of seeds."""
        parts = [range(i * BETWEEN, i * BETWEEN + self.n) for i in range(self.ranges)]
        rows = [self.figures(recipe, part) for part in parts]
        return spread(rows)

    def figures(self, recipe: Recipe, seeds: range) -> dict[str, float]:
        """FD, its floor of real images, precision, recall, and network evaluations."""
        run = measure_recipe(recipe, seeds, EXTRACTOR, self.work, batch=64)
        values = {value.name: value for value in compare(run.statistics, self.real)}
        distance = values["FD-EfficientNetLite0"]
        return {
            "FD": distance.value,
            "floor": distance.floor.real if distance.floor else float("nan"),
            **{name: values[name].value for name in ("precision", "recall")},
            **{name: cost.median().item() for name, cost in run.costs.items()},
        }


def reference(path: Path, opened: Callable[[], Any]) -> Statistics:
    """Statistics of all images of a data set, grey ones in three channels; measured once."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        source = opened()
        n = len(source)
        parts = (range(start, min(start + 256, n)) for start in range(0, n, 256))
        colour = (torch.stack([source[i].pixels.expand(3, -1, -1) for i in p]) for p in parts)
        measure(colour, n, EXTRACTOR).save(path)
    return Statistics.load(path)


def publish(study: str, rows: Iterable[tuple[Recipe, str, dict[str, Any]]]) -> None:
    """Write docs/results/STUDY.json and STUDY.png after each row: its recipe, name and figures."""
    table, images, names = [], [], []
    for recipe, name, row in rows:
        print(json.dumps(row), flush=True)
        table.append(row)
        names.append(name)
        with open_generator(recipe) as made:
            images.append(enlarged(made(SHOWN)))
        save(sheet(images, [""] * len(SHOWN), names), OUT / f"{study}.png")
        write_json(OUT / f"{study}.json", table)


def spread(rows: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    """Mean, least and most of each column."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return {
        name: [round(v, 4) for v in (statistics.mean(x), min(x), max(x))]
        for name, x in columns.items()
    }
