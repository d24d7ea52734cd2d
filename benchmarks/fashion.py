"""Autoguidance on Fashion-MNIST: the table of its paper (Karras et al. 2024, table 1) in small.

    python tools/pack_fashion.py --out fashion.tar
    diffsteer train fashion
    diffsteer train fashion-guide
    python benchmarks/fashion.py --data fashion.tar --n 10000 --ranges 3

No guidance, CFG by the network's own null class, and autoguidance by less training, by a smaller
network and by both; CFG and the last in an interval too; each at averages of several lengths,
against all real images, through the mask. The weight of each is chosen by FD on seeds of its own.
One JSON object a line; what was measured is kept under --work.
"""

import argparse
import json
import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from diffsteer.generate.recipe import Recipe
from diffsteer.metrics.efficientnet import EfficientNetLite0
from diffsteer.metrics.evaluate import compare
from diffsteer.metrics.sampled import measure_recipe
from diffsteer.metrics.statistics import Statistics, measure
from diffsteer.models.edm2.posthoc import find, name, reconstruct
from diffsteer.train.captioned_images import open_images

EXTRACTOR = EfficientNetLite0("block10", 64, mask=16)
WEIGHTS = (1.25, 1.5, 2.0, 2.5, 3.0)
INTERVAL = ".within(0.2, 3)"
CHOICE = 1_000_000
"""First seed of those by which weights are chosen."""


class Way(NamedTuple):
    """A row: its name, guidance by weight, and folder of its guide, if any."""

    name: str
    guidance: str = ""
    guide: Path | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/fashion"))
    parser.add_argument("--small", type=Path, default=Path("runs/fashion-guide"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--n", type=int, default=10_000, help="images a range of seeds")
    parser.add_argument("--ranges", type=int, default=3)
    parser.add_argument("--choose", type=int, default=1_000, help="images to choose a weight by")
    parser.add_argument("--real", type=int, default=0, help="real images; 0 for all")
    parser.add_argument("--lengths", type=float, nargs="+", default=[0.05, 0.1, 0.15])
    parser.add_argument("--weights", type=float, nargs="+", default=WEIGHTS)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--work", type=Path, default=Path("measured"))
    options = parser.parse_args()
    real = reference(options.data, options.real, options.work)
    for length in options.lengths:
        plain = Recipe(str(at(options.run, 1, length, options.work)), steps=options.steps)
        for way in ways(options.run, options.small, length, options.work):
            weights = options.weights if way.guidance else (1.0,)
            guided = replace(plain, guide=str(way.guide or ""))
            recipes = {w: replace(guided, guidance=way.guidance.format(w)) for w in weights}
            chosen, tried = min(recipes), {}
            if len(recipes) > 1:
                seeds = range(CHOICE, CHOICE + options.choose)
                tried = {w: figures(r, seeds, real, options.work)[0] for w, r in recipes.items()}
                chosen = min(tried, key=tried.__getitem__)
            rows = [
                figures(
                    recipes[chosen], range(i * options.n, (i + 1) * options.n), real, options.work
                )
                for i in range(options.ranges)
            ]
            table = {"length": length, "way": way.name, "guidance": recipes[chosen].guidance}
            print(json.dumps({**table, "n": options.n, **spread(rows), "tried": tried}), flush=True)


def reference(data: Path, n: int, work: Path) -> Statistics:
    """Statistics of the real images, which are measured once."""
    path = work / f"real-{n}.npz"
    if not path.exists():
        source = open_images(data, label="cls")
        count = n or len(source)
        parts = (range(i, min(i + 256, count)) for i in range(0, count, 256))
        batches = (torch.stack([colour(source[i].pixels) for i in part]) for part in parts)
        work.mkdir(parents=True, exist_ok=True)
        measure(batches, count, EXTRACTOR).save(path)
    return Statistics.load(path)


def colour(pixels: torch.Tensor) -> torch.Tensor:
    """An image in three channels."""
    return pixels.expand(3, -1, -1)


def at(run: Path, share: float, length: float, work: Path) -> Path:
    """Folder of the average of a length at a share of a training run."""
    times = sorted({one.kimg for one in find(run / "averages", "network-snapshot")})
    kimg = min(times, key=lambda time: abs(time - share * times[-1]))
    folder = work / run.name
    reconstruct(run / "averages", folder, [length], kimg, skip=True)
    return folder / name("phema", kimg, length)


def ways(run: Path, small: Path, length: float, work: Path) -> Iterator[Way]:
    """Rows of one length; guides are averages of the same."""
    early = at(run, 0.5, length, work)
    yield Way("none")
    yield Way("CFG", "CFG({:g})")
    yield Way("CFG in an interval", "CFG({:g})" + INTERVAL)
    yield Way("Auto, half the training", "Auto({:g})", early)
    if small.is_dir():
        yield Way("Auto, smaller", "Auto({:g})", at(small, 1, length, work))
        both = at(small, 0.5, length, work)
        yield Way("Auto, both", "Auto({:g})", both)
        yield Way("Auto, both, in an interval", "Auto({:g})" + INTERVAL, both)


def figures(
    recipe: Recipe, seeds: range, real: Statistics, work: Path
) -> tuple[float, float, float, float]:
    """FD, its floor of real images, precision and recall."""
    run = measure_recipe(recipe, seeds, EXTRACTOR, work, batch=64)
    found = {value.name: value for value in compare(run.statistics, real)}
    distance = found["FD-EfficientNetLite0"]
    floor = distance.floor.real if distance.floor else float("nan")
    return distance.value, floor, found["precision"].value, found["recall"].value


def spread(rows: list[tuple[float, float, float, float]]) -> dict[str, list[float]]:
    """Mean, least and most over the ranges of seeds."""
    names = ("FD", "floor", "precision", "recall")
    columns = zip(names, zip(*rows, strict=True), strict=True)
    return {
        name: [round(v, 4) for v in (statistics.mean(x), min(x), max(x))] for name, x in columns
    }


if __name__ == "__main__":
    main()
