"""Self-attention guidance where its paper has it: an unconditional ADM network of pixels.

    diffsteer train critters-adm
    diffsteer train critters-adm-classifier
    python benchmarks/sag.py

SAG by scale, layer, threshold and blur, each chosen in turn by FD on seeds of their own; the masks
of its ablations at the settings that were chosen; PAG and SEG beside it; and each of no guidance
and SAG with classifier guidance. Against renderings of training's combinations, through the mask of
docs/evaluate.md. Sampled by DDPM, as in the paper: UniPC and DDIM leave noise in a third of this
network's images without guidance, at 12 and at 25 steps alike. Writes docs/results/sag.json and
sag.png after each row; what was sampled is kept under --work, and a second start goes on.
"""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from diffsteer_lab.critters.grammar import ATTRIBUTES
from diffsteer_lab.critters.images import Critters
from diffsteer_lab.critters.judge import judge
from distances import Distances, publish, reference

from diffsteer.generate.generator import open_generator
from diffsteer.generate.options import ADMOptions
from diffsteer.generate.recipe import Recipe
from diffsteer.train.edm2 import classes_of

REAL = 10_000
"""Renderings of training's combinations, other than those of training."""
LAYERS = ("mid", "input_blocks.3", "output_blocks.0", "output_blocks.3")
"""Attention at 8, 16, 8 and 16 pixels."""
SWEEPS: dict[str, tuple[Any, ...]] = {
    "scale": (0.1, 0.25, 0.5, 1.0),
    "layer": LAYERS,
    "threshold": (0.8, 1.0, 1.3),
    "sigma": (1.0, 2.0, 4.0),
}
"""What is chosen in turn; each begins at its second value, the layer at its first."""
CLASSES = ATTRIBUTES["shape"]


@dataclass(frozen=True)
class Bench:
    """The network without guidance, and what is measured of others."""

    plain: Recipe
    classifier: str
    distances: Distances

    def recipe(self, guidance: str, classifier: bool = False) -> Recipe:
        """Guidance of x0 in [-1, 1], as the official code has it."""
        text = f"({guidance}).clamped()" if guidance else ""
        options = ADMOptions(classifier=self.classifier) if classifier else None
        return replace(self.plain, guidance=text, options=options)

    def row(self, way: str, texts: tuple[str, ...], classifier: bool = False) -> dict[str, Any]:
        """Figures of the best of some guidances."""
        recipes = {text: self.recipe(text, classifier) for text in texts}
        chosen, tried = texts[0], dict[str, float]()
        if len(recipes) > 1:
            chosen, tried = self.distances.best(recipes)
        row = {"way": way, "guidance": chosen, "n": self.distances.n * self.distances.ranges}
        row |= self.distances.report(recipes[chosen])
        if classifier:
            row["classes right"] = classes_right(recipes[chosen])
        return {**row, "tried": tried}

    def sweep(self) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
        """Settings of SAG that are best in turn, and FD of all that were tried."""
        settings = {k: v[0] if k == "layer" else v[1] for k, v in SWEEPS.items()}
        tried = {}
        for name, values in SWEEPS.items():
            recipes = {str(v): self.recipe(sag({**settings, name: v})) for v in values}
            chosen, tried[name] = self.distances.best(recipes)
            settings[name] = next(v for v in values if str(v) == chosen)
        return settings, tried

    def rows(self) -> Iterator[dict[str, Any]]:
        """All rows of the table."""
        yield self.row("none", ("",))
        settings, tried = self.sweep()
        best = sag(settings)
        yield {**self.row("SAG", (best,)), "tried": tried}
        for mask in ("random", "edges", "global"):
            yield self.row(f"SAG, {mask} mask", (sag({**settings, "mask": mask}),))
        for name in ("PAG", "SEG"):
            scales = (0.25, 0.5, 1.0)
            layers = ("mid", "output_blocks.3")
            texts = [f"{name}({s:g}, layer={layer!r})" for layer in layers for s in scales]
            yield self.row(name, tuple(texts))
        guided = self.row("classifier", tuple(f"Classifier({s:g})" for s in (0.5, 1, 2)), True)
        yield guided
        yield self.row("classifier + SAG", (f"{guided['guidance']} + {best}",), True)


def sag(settings: Mapping[str, Any]) -> str:
    """Expression of SAG alone, with the blur of the official networks of pixels."""
    named = ", ".join(f"{k}={v!r}" for k, v in settings.items() if k != "scale")
    return f"SAG({settings['scale']:g}, {named}, kernel=31, clamp=1, on='cond')"


def classes_right(recipe: Recipe, each: int = 32) -> float:
    """Share of images whose shape, by the judge, is their class; `each` of each class."""
    right = 0
    for label, word in enumerate(classes_of(CLASSES)):
        options = replace(recipe.options or ADMOptions(), label=label)
        with open_generator(replace(recipe, options=options)) as images:
            right += sum(critter.shape == word for critter in judge().read(images(range(each))))
    return right / (each * len(CLASSES))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the two runs")
    parser.add_argument("--n", type=int, default=1_000, help="images a range of seeds")
    parser.add_argument("--ranges", type=int, default=3)
    parser.add_argument("--choose", type=int, default=256, help="images to choose by")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--work", type=Path, default=Path("measured"))
    options = parser.parse_args()
    model, classifier = (
        str(options.runs / run / "model") for run in ("critters-adm", "critters-adm-classifier")
    )
    plain = Recipe(model, sampler="DDPM", steps=options.steps)
    real = reference(options.work / "real.npz", partial(Critters, "train", REAL, seed=1, size=32))
    sizes = (options.choose, options.n, options.ranges)
    bench = Bench(plain, classifier, Distances(real, options.work, *sizes))
    rows = ((bench.recipe(r["guidance"], "classes right" in r), r["way"], r) for r in bench.rows())
    publish("sag", rows)


if __name__ == "__main__":
    main()
