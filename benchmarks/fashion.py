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
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from distances import Distances, publish, reference

from diffsteer.generate.recipe import Recipe
from diffsteer.models.edm2.posthoc import find, name, reconstruct
from diffsteer.train.captioned_images import open_images

INTERVAL = ".within(0.2, 3)"


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
    """Where runs are, where their averages go, and what is measured."""

    runs: Path
    work: Path
    steps: int
    distances: Distances

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
        chosen, tried = self.distances.best(recipes)
        return recipes[chosen], {
            "way": way.name,
            "length": float(chosen.split(",")[0]),
            "guidance": recipes[chosen].guidance,
            "n": self.distances.n * self.distances.ranges,
            **self.distances.report(recipes[chosen]),
            "tried": tried,
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
    real = reference(options.work / "real.npz", partial(open_images, options.data, label="cls"))
    distances = Distances(real, options.work, options.choose, options.n, options.ranges)
    bench = Bench(options.runs, options.work, options.steps, distances)
    rows = (bench.row(way, options.lengths, options.weights) for way in WAYS)
    publish("fashion", ((r, f"{row['way']} {row['guidance']}", row) for r, row in rows))


if __name__ == "__main__":
    main()
