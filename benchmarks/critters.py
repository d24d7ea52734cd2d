"""What guidance, refined noise and a repaired schedule do on the critter model, in figures.

    python benchmarks/critters.py sheet brightness obedience catalogue front grids [--models runs]
    python benchmarks/results.py

The first writes docs/results/*.json, the second docs/results.md. What was sampled is kept under
--work, and each study goes on there. Prompts are held-out combinations of attributes; the judge
that ships reads what each image shows. Weights are chosen by attributes right on prompts and seeds
of their own, and reported on others. Networks run in bfloat16.

    diffsteer train critters-eps --set training.images=320000
    python benchmarks/critters.py stages --run runs/critters-eps

shows the same at a quarter, half and all of a longer training.
"""

import argparse
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from diffsteer_lab.critters.grammar import ATTRIBUTES, Critter
from diffsteer_lab.critters.images import Critters
from diffsteer_lab.critters.judge import WEIGHTS, judge
from diffsteer_lab.demo import located
from images import enlarged, save
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from diffsteer.generate.pipelines import open_pipeline
from diffsteer.generate.recipe import Recipe
from diffsteer.io.atomic import put
from diffsteer.io.hashing import file_hash
from diffsteer.io.sheet import sheet as labelled
from diffsteer.io.strict import from_table
from diffsteer.metrics.bootstrap import weights
from diffsteer.metrics.efficientnet import EfficientNetLite0
from diffsteer.metrics.features import Custom
from diffsteer.metrics.frechet import Gaussian, frechet
from diffsteer.metrics.moments import Moments
from diffsteer.metrics.sampled import measure_recipe
from diffsteer.train.registry import TASKS
from diffsteer.train.settings import Run

OUT = Path(__file__).parent.parent / "docs" / "results"
BASE = Recipe("critters", sampler="UniPC()", steps=12, dtype="bfloat16")
PROMPTS, CHOICE, REAL = 103, 104, 105
"""Seeds of the prompts of reports, of those by which weights are chosen, and of real images."""
RANGE, RANGES = 5_000, 3
"""Distance between ranges of seeds, and their number; each seed has a prompt of its own."""
WORDS = len(ATTRIBUTES)
"""First columns of the features: the words that the judge reads, as numbers."""
BATCH = 50


@dataclass(frozen=True)
class Method:
    """A row of the table: expressions to choose from, and what they need besides the model."""

    name: str
    guidances: tuple[str, ...] = ("",)
    guide: str = ""
    refiner: str = ""
    lora: str = ""


def over(text: str, *values: float) -> tuple[str, ...]:
    """An expression with each of some weights."""
    return tuple(text.replace("W", f"{value:g}") for value in values)


AT_ONE = (
    Method("refined noise", refiner="critters-refiner"),
    Method("refined low frequencies", refiner="critters-lowfreq-refiner"),
    Method("guidance in a LoRA", lora="critters-agd"),
)
"""Methods at one network evaluation a step."""
METHODS = (
    Method("no guidance"),
    Method("CFG", over("CFG(W)", 1.5, 2, 3, 4)),
    Method("CFG in an interval", over("CFG(W).within(0.2, 5)", 2, 3, 4, 6)),
    Method("autoguidance", over("Auto(W)", 1.25, 1.5, 2), guide="critters-guide"),
    Method("CFG + SAG", over("CFG(2) + SAG(W)", 0.1, 0.25, 0.5)),
    Method("PAG", over("PAG(W)", 0.5, 1, 2) + over('PAG(W, layer="up_blocks.1")', 0.5, 1)),
    Method("SEG", over("SEG(W)", 0.5, 1.5, 3) + over('SEG(W, layer="up_blocks.1")', 0.5, 1.5)),
    *AT_ONE,
)

CATALOGUE = (
    *(
        "",
        "CFG(2)",
        "APG(2, norm=15, momentum=-0.5)",
        "FDG(2, 3)",
        "FreSca(2)",
        "SMC(2, gain=0.01)",
    ),
    *(
        "Adaptive(2)",
        "FBG()",
        "TCFG(2)",
        "CFGNorm(2)",
        "CFGRenorm(2)",
        "DynamicThreshold(3)",
        "ADG(2)",
    ),
    *("CFGpp(0.6)", "Momentum(0.5)", "PAG(0.5)", "SEG(1.5)", "TPG(0.5)", 'SAG(0.25, on="cond")'),
    *('SLG(0.5, "mid")', "S2(0.25)", "NAG(4)", "ICG(2)", "SWG(1.25)", "AutoNoise(1.5)"),
    *("SelfGuidance(1)", "TSG(0.5)"),
)
"""One value of each guidance that takes this model; none was tuned."""


@cache
def network() -> EfficientNetLite0:
    return EfficientNetLite0("block10", 64, mask=16)


def features(images: Tensor) -> Tensor:
    """Words that the judge reads, then EfficientNet-Lite0's block10 through the mask."""
    words = torch.tensor([indices(critter) for critter in judge().read(images)])
    return torch.cat([words.float(), network()(images).cpu()], 1)


@cache
def extractor() -> Custom:
    at = network().origin
    return Custom(features, replace(at, layer=f"judge {file_hash(WEIGHTS)[:8]}, {at.layer}"))


def indices(critter: Critter) -> list[int]:
    return [words.index(getattr(critter, name)) for name, words in ATTRIBUTES.items()]


@dataclass(frozen=True)
class Bench:
    """Where models are and samples go, and the images of a range or a choice."""

    models: Path | None
    work: Path
    n: int
    choice: int

    def made(self, recipe: Recipe, seeds: range) -> tuple[Tensor, dict[str, float]]:
        """Features of samples, and the median cost of one."""
        run = measure_recipe(
            located(recipe, self.models), seeds, extractor(), self.work, BATCH, len(seeds)
        )
        return run.statistics.features, {k: v.median().item() for k, v in run.costs.items()}

    def recipe(self, method: Method, guidance: str, base: Recipe) -> Recipe:
        guide = method.guide if guidance else ""
        made = replace(base, guidance=guidance, guide=guide, refiner=method.refiner)
        return replace(made, lora=(method.lora,)) if method.lora else made

    def there(self, method: Method) -> bool:
        """Whether its networks are there: runs that are not done yet are left out."""
        names = (method.guide, method.refiner, method.lora)
        return not self.models or all((self.models / name).exists() for name in names if name)

    def chosen(self, method: Method) -> tuple[str, dict[str, float]]:
        """The guidance with most attributes right, and what each has."""
        if len(method.guidances) < 2:
            return method.guidances[0], {}
        base, truth = asked(self.choice, CHOICE)
        found = {}
        for text in method.guidances:
            made, _ = self.made(self.recipe(method, text, base), range(self.choice))
            found[text] = correct(made, truth).mean().item()
        return max(found, key=found.__getitem__), found


@cache
def asked(n: int, seed: int) -> tuple[Recipe, Tensor]:
    """A recipe of held-out prompts, one a seed, and the words of each, `(N, 7)`."""
    source = Critters("test", n, seed)
    prompts = tuple(source.caption(i) for i in range(n))
    truth = torch.tensor([indices(source.critter(i)) for i in range(n)])
    return replace(BASE, prompts=prompts), truth


@cache
def real(n: int, seed: int = REAL) -> Tensor:
    """Features of renderings of held-out combinations."""
    source = Critters("test", n, seed)
    parts = (range(i, min(i + 250, n)) for i in range(0, n, 250))
    return torch.cat([features(torch.stack([source[i].pixels for i in part])) for part in parts])


def correct(made: Tensor, truth: Tensor) -> Tensor:
    """Whether each attribute is as prompted, `(N, 7)`, 1 or 0."""
    return (made[:, :WORDS].long() == truth).float()


def share(values: Tensor) -> list[float]:
    """Mean of values, one a prompt, with its 95 % interval over prompts."""
    w = weights(len(values), 1000)
    resampled = (w @ values) / w.sum(1)
    ends = resampled.quantile(torch.tensor([0.025, 0.975])).tolist()
    return [round(x, 4) for x in (values.mean().item(), *ends)]


def obedience_of(right: Tensor, first: Tensor) -> dict[str, Any]:
    """Shares of attributes and of images that are right, and what they gain over the first."""
    each = {"attributes": right.mean(1), "all right": right.all(1).float()}
    base = {"attributes": first.mean(1), "all right": first.all(1).float()}
    columns = {**each, **{f"gain in {k}": v - base[k] for k, v in each.items()}}
    named = dict(zip(ATTRIBUTES, right.mean(0).tolist(), strict=True))
    return {"n": len(right), **{k: share(v) for k, v in columns.items()}, "by attribute": named}


def distance(made: Tensor, others: Tensor) -> float:
    """Frechet distance through the mask."""
    a, b = (Gaussian.of(Moments.of(x[:, WORDS:].double())) for x in (made, others))
    return round(frechet(a, b), 2)


def obedience(bench: Bench) -> Iterator[dict[str, Any]]:
    """All methods on held-out prompts, three ranges of seeds together."""
    base, every = asked(RANGE * RANGES, PROMPTS)
    seeds = [range(i * RANGE, i * RANGE + bench.n) for i in range(RANGES)]
    truth = torch.cat([every[part.start : part.stop] for part in seeds])
    others, shown = real(2 * bench.n), real(bench.n, PROMPTS)
    yield {
        "name": "real images",
        **obedience_of(correct(shown, every[: bench.n]), correct(shown, every[: bench.n])),
        "FD": [distance(shown, others)],
    }
    measured: dict[str, Tensor] = {}
    for method in filter(bench.there, METHODS):
        text, tried = bench.chosen(method)
        runs = [bench.made(bench.recipe(method, text, base), part) for part in seeds]
        right = correct(torch.cat([made for made, _ in runs]), truth)
        measured[method.name] = right
        first, cfg = (measured.get(name, right) for name in ("no guidance", "CFG"))
        yield {
            "name": method.name,
            "guidance": text,
            "tried": tried,
            **obedience_of(right, first),
            "gain over CFG": share(right.all(1).float() - cfg.all(1).float()),
            "each range": [r.all(1).float().mean().item() for r in torch.split(right, bench.n)],
            "FD": [distance(made, others) for made, _ in runs],
            **runs[0][1],
        }


def catalogue(bench: Bench) -> Iterator[dict[str, Any]]:
    """Every guidance that takes this model, at one value each."""
    base, truth = asked(2 * bench.choice, PROMPTS + 50)
    first = None
    for text in CATALOGUE:
        sampler = "DDIM()" if text.startswith("CFGpp") else base.sampler
        recipe = replace(base, guidance=text, sampler=sampler)
        made, costs = bench.made(recipe, range(2 * bench.choice))
        right = correct(made, truth)
        first = right if first is None else first
        yield {"guidance": text, **costs, **obedience_of(right, first)}


def front(bench: Bench) -> Iterator[dict[str, Any]]:
    """Quality by network evaluations and seconds: the methods at several numbers of steps.

    The best of several images of a prompt is what the judge itself takes, so an upper bound.
    """
    base, truth = asked(bench.choice, PROMPTS + 10)
    names = {"no guidance", "CFG", "autoguidance", *(m.name for m in AT_ONE)}
    for method in (m for m in METHODS if m.name in names and bench.there(m)):
        text, _ = bench.chosen(method)
        for steps in (4, 6, 8, 12, 20):
            recipe = replace(bench.recipe(method, text, base), steps=steps)
            made, costs = bench.made(recipe, range(bench.choice))
            right = correct(made, truth)
            row = {"name": method.name, "guidance": text, "steps": steps, **costs}
            yield {**row, **shares(right)}
    for count, steps in product((2, 4), (4, 6, 12)):
        recipe = replace(base, steps=steps, prompts=base.prompts * count)
        made, costs = bench.made(recipe, range(count * bench.choice))
        right = correct(made, truth.repeat(count, 1)).view(count, bench.choice, WORDS)
        best = right[right.sum(2).argmax(0), torch.arange(bench.choice)]
        costs = {name: count * cost for name, cost in costs.items()}
        yield {"name": f"best of {count}", "guidance": "", "steps": steps, **costs, **shares(best)}


def shares(right: Tensor) -> dict[str, list[float]]:
    """Shares of attributes and of images that are right."""
    return {"attributes": share(right.mean(1)), "all right": share(right.all(1) * 1.0)}


def brightness(bench: Bench) -> Iterator[dict[str, Any]]:
    """Brightness on black and white backgrounds: data, published schedule, repaired schedule."""
    for ground in ("black", "white"):
        source = Critters("all", 40 * bench.choice, PROMPTS)
        chosen = [i for i in range(len(source)) if source.critter(i).background == ground]
        chosen = chosen[: bench.choice]
        light = torch.tensor([source[i].pixels.float().mean() / 255 for i in chosen])
        yield {"background": ground, "model": "data", "n": len(light), **moments(light)}
        prompts = tuple(source.caption(i) for i in chosen)
        for model in ("critters-eps", "critters"):
            for guidance in ("", "CFG(3)"):
                recipe = replace(BASE, model=model, sampler="", steps=25, prompts=prompts)
                recipe = replace(recipe, guidance=guidance)
                with open_pipeline(located(recipe, bench.models)) as images:
                    parts = [
                        list(range(i, min(i + BATCH, len(chosen))))
                        for i in range(0, len(chosen), BATCH)
                    ]
                    light = torch.cat([images(p).float().mean((1, 2, 3)) / 255 for p in parts])
                row = {"background": ground, "model": model, "guidance": guidance}
                yield {**row, "n": len(light), **moments(light)}


def moments(light: Tensor) -> dict[str, float]:
    return {"mean": light.mean().item(), "std": light.std().item()}


def sheet(bench: Bench) -> Iterator[dict[str, Any]]:
    """Images of eight held-out prompts by every method, none left out."""
    base, _ = asked(8, PROMPTS + 20)
    rows, names = [], []
    for method in filter(bench.there, METHODS):
        text, _ = bench.chosen(method)
        rows.append(drawn(bench, bench.recipe(method, text, base)))
        names.append(f"{method.name} {text}")
    save(labelled(rows, base.prompts, names), OUT / "critters-methods.png")
    pair = [
        drawn(bench, replace(base, model=m, sampler="", steps=25))
        for m in ("critters-eps", "critters")
    ]
    save(
        labelled(pair, base.prompts, ["published schedule", "repaired"]),
        OUT / "critters-schedules.png",
    )
    yield {"prompts": base.prompts, "rows": names}


def grids(bench: Bench) -> Iterator[dict[str, Any]]:
    """Ten grids of eight prompts, unguided and guided in an order by chance, to be judged blind."""
    base, _ = asked(80, PROMPTS + 30)
    method = next(m for m in METHODS if m.name == "CFG")
    text, _ = bench.chosen(method)
    for grid in range(10):
        part = base.prompts[8 * grid : 8 * grid + 8]
        both = [drawn(bench, replace(base, prompts=part, guidance=g)) for g in ("", text)]
        guided = random.Random(grid).randrange(2)
        pairs = [list(pair) if guided else list(pair)[::-1] for pair in zip(*both, strict=True)]
        save(labelled(pairs, "AB", part), bench.work / f"grid-{grid}.png")
        yield {"grid": grid, "guided": "AB"[guided], "guidance": text}


def drawn(bench: Bench, recipe: Recipe) -> "list[Image.Image]":
    """Images of a recipe, one a prompt, twice as large."""
    with open_pipeline(located(recipe, bench.models)) as images:
        made = images(range(len(recipe.prompts)))
    return enlarged(made)


def stages(bench: Bench, run: Path) -> Iterator[dict[str, Any]]:
    """Guidance at a quarter, half and all of a training, each with the guide at a quarter of it.

    The rule, set before training: the data set is taken where guidance raises the share of images
    that are all right by 15 points or more where unguided samples already look clean.
    """
    base, truth = asked(bench.choice, PROMPTS + 40)
    for kimg in (80, 160, 320):
        model, guide = (str(pipeline(run, k, bench.work)) for k in (kimg, kimg // 4))
        first = None
        for text in ("", "CFG(1.5)", "CFG(2)", "CFG(3)", "Auto(1.5)", "Auto(2)"):
            recipe = replace(
                base, model=model, guidance=text, guide=guide if "Auto" in text else ""
            )
            run_of = measure_recipe(recipe, range(bench.choice), extractor(), bench.work, BATCH)
            right = correct(run_of.statistics.features, truth)
            first = right if first is None else first
            yield {"kimg": kimg, "guidance": text, **obedience_of(right, first)}


def pipeline(run: Path, kimg: int, work: Path) -> Path:
    """Folder of the pipeline with the average at a stage of a training run, which may go on."""
    folder = work / f"{run.name}-{kimg}"
    if not folder.exists():
        settings = Run.named(run.name)
        name = f"network-snapshot-{kimg:07d}-{settings.training.keep:.3f}.safetensors"
        kind, make = TASKS[settings.task]
        task, _ = make(settings, from_table(kind, settings.settings, "settings"))
        averages = load_file(run / "averages" / name)
        assert averages.keys() == task.trained().keys()
        task.load_state_dict(averages, strict=False)
        task.save(folder)
    return folder


STUDIES = {s.__name__: s for s in (sheet, brightness, obedience, catalogue, front, grids)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("studies", nargs="+", choices=[*STUDIES, "stages"])
    parser.add_argument("--models", type=Path, help="folder of runs; none for those that ship")
    parser.add_argument("--run", type=Path, default=Path("runs/critters-eps"), help="of stages")
    parser.add_argument("--n", type=int, default=RANGE, help="images of each of three ranges")
    parser.add_argument(
        "--choice", type=int, default=300, help="images by which weights are chosen"
    )
    parser.add_argument("--work", type=Path, default=Path("measured"))
    options = parser.parse_args()
    bench = Bench(options.models, options.work, options.n, options.choice)
    for name in options.studies:
        rows = []
        for row in stages(bench, options.run) if name == "stages" else STUDIES[name](bench):
            print(json.dumps({"study": name, **row}), flush=True)
            rows.append(row)
        put(OUT / f"critters-{name}.json", (json.dumps(rows, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
