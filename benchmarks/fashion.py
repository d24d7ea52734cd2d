"""Autoguidance on Fashion-MNIST: the table of its paper (Karras et al. 2024, table 1) in small.

    python tools/pack_fashion.py --out fashion.tar
    diffsteer train fashion
    diffsteer train fashion-guide
    diffsteer train fashion-unconditional
    python benchmarks/fashion.py --data fashion.tar

No guidance; CFG by the network's own null class and by an unconditional network; autoguidance by
less training, by a smaller network and by both; each over all noise and in an interval, against all
real images, through the mask. The weight and the length of the average over training are chosen for
each by FD on seeds of their own, and are reported on others. Writes docs/results/fashion.json and
fashion.png after each row; what was measured is kept under --work, and a second start goes on.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from diffsteer.models.edm2.posthoc import find, name, reconstruct
from diffsteer.train.captioned_images import open_images

OUT = Path(__file__).parent.parent / "docs" / "results"
EXTRACTOR = EfficientNetLite0("block10", 64, mask=16)
INTERVAL = ".within(0.2, 3)"
CHOICE = 1_000_000
"""First seed of those by which weights and lengths are chosen."""
SHOWN = range(16)
"""Seeds of the images of each row."""


@dataclass(frozen=True)
class Way:
    """A row: its name, its guidance by weight, and the run and share of training of its guide."""

    name: str
    guidance: str = ""
    guide: str = ""
    share: float = 1.0


WAYS = (
    Way("none"),
    *(
        replace(way, name=way.name + within, guidance=way.guidance + text)
        for way in (
            Way("CFG", "CFG({:g})"),
            Way("CFG, unconditional network", "Auto({:g})", "fashion-unconditional"),
            Way("Auto, half the training", "Auto({:g})", "fashion", 0.5),
            Way("Auto, smaller", "Auto({:g})", "fashion-guide"),
            Way("Auto, both", "Auto({:g})", "fashion-guide", 0.5),
        )
        for within, text in (("", ""), (", in an interval", INTERVAL))
    ),
)


@dataclass(frozen=True)
class Bench:
    """Where runs are and samples go, and how many there are of each."""

    runs: Path
    work: Path
    steps: int
    choose: int
    n: int
    ranges: int
    real: Statistics

    def recipes(
        self, way: Way, lengths: Sequence[float], weights: Sequence[float]
    ) -> dict[str, Recipe]:
        """All to choose from, by length and weight; guides are averages of the same length."""
        made = {}
        for length in lengths:
            guide = str(self.at(way.guide, way.share, length)) if way.guide else ""
            plain = Recipe(str(self.at("fashion", 1, length)), steps=self.steps)
            for weight in weights if way.guidance else (1.0,):
                name = f"{length:g}, {weight:g}" if way.guidance else f"{length:g}"
                text = way.guidance.format(weight)
                made[name] = replace(plain, guidance=text, guide=guide)
        return made

    def at(self, run: str, share: float, length: float) -> Path:
        """Folder of the average of a length at a share of a training run."""
        averages = self.runs / run / "averages"
        times = sorted({one.kimg for one in find(averages, "network-snapshot")})
        kimg = min(times, key=lambda time: abs(time - share * times[-1]))
        folder = self.work / run
        reconstruct(averages, folder, [length], kimg, skip=True)
        return folder / name("phema", kimg, length)

    def row(
        self, way: Way, lengths: Sequence[float], weights: Sequence[float]
    ) -> tuple[Recipe, dict[str, Any]]:
        """The recipe that is best for a way on the seeds of the choice, and its figures."""
        recipes = self.recipes(way, lengths, weights)
        seeds = range(CHOICE, CHOICE + self.choose)
        tried = {key: self.figures(recipe, seeds)["FD"] for key, recipe in recipes.items()}
        chosen = min(tried, key=tried.__getitem__)
        parts = [range(i * 10_000, i * 10_000 + self.n) for i in range(self.ranges)]
        rows = [self.figures(recipes[chosen], part) for part in parts]
        return recipes[chosen], {
            "way": way.name,
            "length": float(chosen.split(",")[0]),
            "guidance": recipes[chosen].guidance,
            "n": self.n * self.ranges,
            **spread(rows),
            "tried": {key: round(value, 1) for key, value in tried.items()},
        }

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the three runs")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--n", type=int, default=3_334, help="images a range of seeds")
    parser.add_argument("--ranges", type=int, default=3)
    parser.add_argument("--choose", type=int, default=500, help="images to choose by")
    parser.add_argument("--lengths", type=float, nargs="+", default=[0.05, 0.1])
    parser.add_argument("--weights", type=float, nargs="+", default=[1.5, 2.0, 3.0])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--work", type=Path, default=Path("measured"))
    options = parser.parse_args()
    bench = Bench(
        *(options.runs, options.work, options.steps, options.choose, options.n, options.ranges),
        reference(options.data, options.work),
    )
    table, images = [], []
    for way in WAYS:
        recipe, row = bench.row(way, options.lengths, options.weights)
        print(json.dumps(row), flush=True)
        table.append(row)
        with open_generator(recipe) as made:
            images.append(enlarged(made(SHOWN)))
        names = [f"{row['way']} {row['guidance']}" for row in table]
        save(sheet(images, [""] * len(SHOWN), names), OUT / "fashion.png")
        write_json(OUT / "fashion.json", table)


def reference(data: Path, work: Path) -> Statistics:
    """Statistics of all real images, which are measured once."""
    path = work / "real.npz"
    if not path.exists():
        source = open_images(data, label="cls")
        parts = (range(i, min(i + 256, len(source))) for i in range(0, len(source), 256))
        batches = (torch.stack([colour(source[i].pixels) for i in part]) for part in parts)
        work.mkdir(parents=True, exist_ok=True)
        measure(batches, len(source), EXTRACTOR).save(path)
    return Statistics.load(path)


def colour(pixels: torch.Tensor) -> torch.Tensor:
    """An image in three channels."""
    return pixels.expand(3, -1, -1)


def spread(rows: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    """Mean, least and most over the ranges of seeds."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return {
        name: [round(v, 4) for v in (statistics.mean(x), min(x), max(x))]
        for name, x in columns.items()
    }


if __name__ == "__main__":
    main()
