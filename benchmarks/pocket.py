"""What guidance, refined noise and zero terminal SNR do on the pocket model, in figures.

    python benchmarks/pocket.py sheet brightness guidance masked sag refined rivals [--models runs]
    python benchmarks/results.py

The first writes docs/results/*.json, the second docs/results.md. Each study keeps what it sampled
under --work and goes on there; under torchrun the seeds are shared. Guidance weights, and the
strength of the refiner, are chosen by Frechet distance on seeds of their own, and reported on
others. Networks run in bfloat16 (autocast), all else in float32.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from diffsteer_lab.demo import located
from diffsteer_lab.emoji import BACKGROUNDS, Emoji
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor
from typing_extensions import override

from diffsteer import SAG
from diffsteer.generate.pipelines import PipelineGenerator, open_pipeline
from diffsteer.generate.recipe import Recipe
from diffsteer.guidance.queries import Branch, GuidanceState, Queries
from diffsteer.guidance.sag import blurred
from diffsteer.io.atomic import atomic_write
from diffsteer.io.distributed import Processes, launched
from diffsteer.io.hashing import digest
from diffsteer.metrics.background import corners
from diffsteer.metrics.best_of_n import BestOf, Score
from diffsteer.metrics.bootstrap import frechet_resampled, weights
from diffsteer.metrics.efficientnet import EfficientNetLite0
from diffsteer.metrics.features import Custom, key_of
from diffsteer.metrics.frechet import Gaussian, frechet
from diffsteer.metrics.manifold import manifold
from diffsteer.metrics.moments import Moments
from diffsteer.metrics.sampled import sampled
from diffsteer.metrics.sharpness import edges
from diffsteer.train.log import save_grid

Split = Literal["train", "test"]
Costs = dict[str, float]
Features = Callable[[Tensor], Tensor]
OUT = Path(__file__).parent.parent / "docs" / "results"
SIDE = 64
OWN = 5
"""First columns of the features: brightness, edges, and the colour of the background."""


def features(images: Tensor) -> Tensor:
    """Brightness, edges and background, in [0, 1], then EfficientNet-Lite0's block10."""
    light = images.float().mean((1, 2, 3))
    own = torch.cat([torch.stack([light, edges(images).float()], 1), corners(images).float()], 1)
    return torch.cat([own / 255, network()(images).cpu()], 1)


@cache
def network() -> EfficientNetLite0:
    return EfficientNetLite0(size=SIDE)


def extractor() -> Custom:
    at = network().origin
    return Custom(features, replace(at, layer=f"brightness, edges, background, {at.layer}"))


@cache
def twice() -> Custom:
    """The extractor's block10, then that of the same network with a mask of 16 grey levels."""
    plain, masked = network(), EfficientNetLite0(size=SIDE, mask=16)
    at = replace(plain.origin, layer="block10, block10 masked", resize=masked.origin.resize)
    return Custom(lambda images: torch.cat([plain(images), masked(images)], 1), at)


@dataclass(frozen=True)
class Bench:
    """Where models are and samples go."""

    models: Path | None
    work: Path
    batch: int

    def features(
        self,
        recipe: Recipe,
        seeds: Sequence[int],
        score: Score | None = None,
        made: Custom | None = None,
    ) -> tuple[Tensor, Costs]:
        """Features of samples, `(N, 5 + d)`, and how many rows of which network one took.

        With a score each is the best of `DRAWS`.
        """
        with open_pipeline(located(recipe, self.models)) as images:
            made, key = made or extractor(), {**images.key, "autocast": "bfloat16"}
            draw = half(images)
            if score is not None:
                draw, key = BestOf(draw, score, DRAWS, recipe.prompts), {**key, "best of": DRAWS}
            out = self.work / digest(key_of(key, made))[:16]
            found = sampled(draw, seeds, made, out, key, self.batch, len(seeds), images.nfe)
        rows = {k: v.median().item() for k, v in found.costs.items() if k != "seconds"}
        return found.statistics.features, rows


def half(images: PipelineGenerator) -> Callable[[Sequence[int]], Tensor]:
    """The same images with networks in bfloat16, as they were trained, 1.3 x as fast compiled."""
    images.pipe.unet.to(memory_format=torch.channels_last)
    for block in images.pipe.unet.modules():
        if isinstance(block, ResnetBlock2D) and getattr(block, "_compiled_call_impl", None) is None:
            block.compile(dynamic=False)
    device = images.pipe.device.type

    def made(seeds: Sequence[int]) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            return images(seeds)

    return made


def captions(n: int, background: str | None = None, split: Split = "train") -> list[int]:
    """Samples of a split, in the order of a fixed shuffle."""
    source = Emoji(split)
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(0)).tolist()
    said = [
        i
        for i in order
        if background is None or source.caption(i).endswith(f"{background} background")
    ]
    return said[:n]


def real(samples: Sequence[int], split: Split = "train", made: Features | None = None) -> Tensor:
    """Features of real images."""
    source, made = Emoji(split), made or features
    parts = [samples[i : i + 64] for i in range(0, len(samples), 64)]
    return torch.cat([made(torch.stack([source[i].pixels for i in p])) for p in parts])


def decoded(bench: Bench, samples: Sequence[int], measure: Features | None = None) -> Tensor:
    """Features of real images after encoding and decoding: the best that the model could do."""
    measure = measure or features
    source, parts = Emoji("train"), [samples[i : i + 50] for i in range(0, len(samples), 50)]
    found = []
    with open_pipeline(located(Recipe(model="pocket"), bench.models)) as images, torch.no_grad():
        for part in parts:
            pixels = torch.stack([source[i].pixels for i in part]) / 127.5 - 1
            z = images.pipe.vae.encode(pixels).latent_dist.mean
            made = images.pipe.vae.decode(z).sample
            found.append(measure((127.5 * made + 127.5).round().clamp(0, 255).to(torch.uint8)))
    return torch.cat(found)


def brightness(bench: Bench, n: int) -> dict[str, Any]:
    """Brightness on black and on white backgrounds: data, flawed and repaired model."""
    source, rows = Emoji("train"), []
    for background in ("black", "white"):
        samples = captions(n, background)
        prompts = tuple(source.caption(i) for i in samples)
        rows.append(summary("data", "", background, real(samples)))
        for guidance in ("", "CFG(3)"):
            for model in ("pocket-eps", "pocket"):
                recipe = Recipe(model=model, prompts=prompts, guidance=guidance, steps=25)
                found, _ = bench.features(recipe, range(len(prompts)))
                rows.append(summary(model, guidance, background, found))
                report(rows[-1])
    return {"n": n, "steps": 25, "seeds": f"0-{n - 1}", "rows": rows}


def summary(model: str, guidance: str, background: str, found: Tensor) -> dict[str, Any]:
    light = found[:, 0].double()
    wanted = torch.tensor(BACKGROUNDS[background]) / 255
    return {
        "model": model,
        "guidance": guidance,
        "background": background,
        "mean": light.mean().item(),
        "std": light.std().item(),
        "background error": (found[:, 2:OWN] - wanted).abs().mean().item(),
        "histogram": torch.histc(light, 40, 0, 1).tolist(),
    }


@cache
def known() -> Tensor:
    """Features of all images of the training split."""
    return real(range(len(Emoji("train"))))


def trained_on(n: int) -> tuple[Recipe, Tensor, Tensor]:
    """A recipe with n captions of the training split; real features of them, and of the others.

    The others are in random order, so that any first part of them shows something of everything.
    """
    source = Emoji("train")
    order = captions(len(source))
    samples, others = order[:n], order[n:]
    prompts = tuple(source.caption(i) for i in samples)
    base = Recipe(model="pocket", prompts=prompts, sampler="UniPC()", steps=16)
    return base, known()[samples], known()[others]


SWEEPS = {
    "CFG": ("CFG({w})", "", (1.25, 1.5, 2.0, 3.0, 4.0)),
    "autoguidance": ("Auto({w})", "pocket-guide", (1.25, 1.5, 2.0, 2.5, 3.0)),
    "SAG": ('SAG({w}, on="cond")', "", (0.1, 0.25, 0.5, 1.0)),
    "PAG": ('PAG({w}, layer="up_blocks.1")', "", (0.25, 0.5, 1.0)),
}
CHOICE = 100_000
"""First of the seeds on which weights are chosen."""


def guidance(bench: Bench, n: int) -> dict[str, Any]:
    """Each guidance at its best weight against none, on three ranges of seeds."""
    base, shown, others = trained_on(n)
    chosen, tried = {"none": base}, []
    for name, (text, guide, scales) in SWEEPS.items():
        recipe = replace(base, guidance=text, guide=guide)
        found = []
        for w, one in zip(scales, recipe.sweep(scales), strict=True):
            made, _ = bench.features(one, range(CHOICE, CHOICE + n // 4))
            found.append((distance(made, others), w, one))
            tried.append({"name": name, "weight": w, "FD": found[-1][0]})
            report(tried[-1])
        chosen[name] = min(found, key=lambda f: f[0])[2]
    best = decoded(bench, captions(n))
    rows = [
        figures("real", "", shown, shown, others, None),
        figures("real, encoded and decoded", "", best, shown, others, None),
    ]
    report(rows[-1])
    for name, recipe in chosen.items():
        for start in (0, n, 2 * n):
            made, cost = bench.features(recipe, range(start, start + n))
            row = figures(name, recipe.guidance, made, shown, others, cost)
            rows.append({**row, "seeds": f"{start}-{start + n - 1}"})
            report(rows[-1])
    seeds = f"{CHOICE}-{CHOICE + n // 4 - 1}"
    told = {"choice": tried, "choice seeds": seeds, "rows": rows}
    return {"n": n, "steps": 16, "sampler": "UniPC", **told}


MASKED = ("", "CFG(1.5)", "CFG(2)", "Auto(1.25)")


def masked(bench: Bench, n: int) -> dict[str, Any]:
    """The same images measured without and with a mask; more than without guidance, paired."""
    base, made = trained_on(n)[0], twice()
    samples, others = captions(n), captions(2 * CHOSEN)[CHOSEN:]
    known_ones = [Gaussian.of(Moments.of(x)) for x in real(others, made=made).chunk(2, 1)]
    drawn, first, rows = weights(n, 200), None, []
    sets = {
        "real": real(samples, made=made),
        "real, encoded and decoded": decoded(bench, samples, made),
    }
    for text in MASKED:
        recipe = replace(base, guidance=text, guide="pocket-guide" if "Auto" in text else "")
        sets[text or "none"], _ = bench.features(recipe, range(n), made=made)
    for name, table in sets.items():
        halves = list(zip(table.chunk(2, 1), known_ones, strict=True))
        values = [frechet(Gaussian.of(Moments.of(x)), g) for x, g in halves]
        row: dict[str, Any] = {"name": name, "FD": values}
        if not name.startswith("real"):
            again = [frechet_resampled(x.double(), g, drawn) for x, g in halves]
            first = first or (values, again)
            row["more"] = list(map(gain, values, again, *first))
        rows.append(row)
        report(row)
    return {"n": n, "others": len(others), "steps": 16, "sampler": "UniPC", "rows": rows}


CHOSEN = 2000
"""Captions before those of the reference of `masked`."""


def gain(value: float, again: Tensor, first: float, first_again: Tensor) -> list[float]:
    """How much more a distance is than the first, with a 95 % interval of paired resamples."""
    difference = again - first_again
    moved = difference - difference.mean() + (value - first)
    return [value - first, *moved.quantile(torch.tensor([0.025, 0.975]).double()).tolist()]


def figures(
    name: str, text: str, made: Tensor, shown: Tensor, others: Tensor, cost: Costs | None
) -> dict[str, Any]:
    """Distance to other real images, precision and recall, share of backgrounds obeyed."""
    overlap = manifold(made[:, OWN:], others[: len(made), OWN:])
    table = torch.tensor(list(BACKGROUNDS.values())) / 255
    told, wanted = (torch.cdist(x[:, 2:OWN], table).argmin(1) for x in (made, shown))
    return {
        "name": name,
        "guidance": text,
        "FD": distance(made, others),
        "precision": overlap.precision,
        "recall": overlap.recall,
        "edges": 255 * made[:, 1].double().mean().item(),
        "background": (told == wanted).double().mean().item(),
        "rows": cost,
    }


def distance(made: Tensor, others: Tensor) -> float:
    return frechet(*(Gaussian.of(Moments.of(x[:, OWN:])) for x in (made, others)))


def report(row: dict[str, Any]) -> None:
    if Processes.running().rank == 0:
        short = {k: v for k, v in row.items() if k != "histogram"}
        print(
            " ".join(
                f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in short.items()
            ),
            flush=True,
        )


@dataclass(frozen=True, repr=False)
class Convention(SAG):
    """SAG with the difference taken in another space, as some programs do (in x0 terms).

    Args:
        space: "eps", the published rule; "v", of the network's own output; "x0".
    """

    space: str = "eps"

    @override
    def shift(self, at: GuidanceState) -> Queries[Tensor]:
        (seen,) = yield (Branch(self.on, record=self.layers),)
        x0 = blurred(self, seen, at.seeds_for("mask"))
        (worse,) = yield (Branch(self.on, x=at.level.mix(x0, seen.eps)),)
        moved: dict[str, float | Tensor] = {"eps": 1, "v": at.level.alpha**2, "x0": 0}
        return self.scale * (seen.x0 - worse.x0 - moved[self.space] * (seen.x0 - x0))


def sag(bench: Bench, n: int) -> dict[str, Any]:
    """The sign conventions of self-attention guidance, alone and with CFG."""
    base, shown, others = trained_on(n)
    rows = [figures("real", "", shown, shown, others, None)]
    known_ones, drawn = Gaussian.of(Moments.of(others[:, OWN:])), weights(n, 200)
    for start, branch in (("", "cond"), ("CFG(2)", "null")):
        first = None
        texts = [
            f'Convention({w}, on="{branch}", space="{space}")'
            for space in ("eps", "v", "x0")
            for w in (-0.5, 0.25, 0.5, 1.0)
        ]
        for text in ("", *texts):
            recipe = replace(base, guidance=" + ".join(filter(None, (start, text))))
            made, cost = bench.features(recipe, range(n))
            row = figures("SAG", recipe.guidance, made, shown, others, cost)
            again = frechet_resampled(made[:, OWN:].double(), known_ones, drawn)
            first = first or (row["FD"], again)
            within = (again - first[1]).quantile(torch.tensor([0.025, 0.975]).double()).tolist()
            rows.append({**row, "more": [row["FD"] - first[0], *within]})
            report(rows[-1])
    return {"n": n, "steps": 16, "sampler": "UniPC", "seeds": f"0-{n - 1}", "rows": rows}


def sheet(bench: Bench, n: int) -> dict[str, Any]:
    """Pictures of the first captions of the shuffle, for people to look at: none is left out."""
    source = Emoji("train")
    prompts = tuple(source.caption(i) for i in captions(n))
    base = Recipe(model="pocket", prompts=prompts, steps=25)
    for name, recipe in {
        "pocket-guided": replace(base, guidance="CFG(3)"),
        "pocket": base,
        "pocket-refined": replace(base, refiner="pocket-refiner"),
        "pocket-eps-guided": replace(base, model="pocket-eps", guidance="CFG(3)"),
    }.items():
        with open_pipeline(located(recipe, bench.models)) as images:
            save_grid(half(images)(range(n)), OUT / f"sheet-{name}.png")
    return {"prompts": prompts, "steps": 25, "guidance": "CFG(3)"}


TEACHER = "CFG(2)"
"""Of the refiner that ships."""
STRENGTHS = (0.5, 0.75, 1.0, 1.25, 1.5)


def refined(bench: Bench, n: int) -> dict[str, Any]:
    """Refined noise against none and against its teacher's guidance, on prompts held out."""
    base, shown, others = trained_on(n)
    tried = []
    for strength in STRENGTHS:
        recipe = replace(base, refiner="pocket-refiner", strength=strength)
        made, _ = bench.features(recipe, range(CHOICE, CHOICE + n // 4))
        tried.append({"strength": strength, "FD": distance(made, others)})
        report(tried[-1])
    best = min(tried, key=lambda t: t["FD"])["strength"]

    probe = Probe()
    prompts, groups, shown, others = held_out(n)
    base = replace(base, prompts=prompts)
    recipe = replace(base, refiner="pocket-refiner")
    recipes = {
        "none": base,
        "refined": recipe,
        "teacher": replace(base, guidance=TEACHER),
        "refined, strength": replace(recipe, strength=best),
        "best CFG": replace(base, guidance="CFG(1.5)"),
    }
    training = real(captions(n))
    floor = figures("real, of training captions", "", training, training, others, None)
    rows = [{**floor, "background": None, "group": None}]
    itself = dict.fromkeys(("FD", "precision", "recall"))  # these images are the reference
    right = {**itself, "group": probe.agrees(shown, groups), "background": 1.0}
    rows.append({**figures("real", "", shown, shown, others, None), **right})
    for name, recipe in recipes.items():
        if name == "refined, strength" and best == 1:
            continue
        for start in (0, n, 2 * n):
            made, cost = bench.features(recipe, range(start, start + n))
            row = figures(name, recipe.guidance, made, shown, others, cost)
            row |= {"group": probe.agrees(made, groups), "seeds": f"{start}-{start + n - 1}"}
            rows.append({**row, "strength": recipe.strength})
            report(row)
    seeds = f"{CHOICE}-{CHOICE + n // 4 - 1}"
    told = {"teacher": TEACHER, "choice": tried, "choice seeds": seeds, "rows": rows}
    return {"n": n, "steps": 16, "sampler": "UniPC", **told}


def held_out(n: int) -> tuple[tuple[str, ...], list[str], Tensor, Tensor]:
    """Captions of the test split, their groups, real features of them, and of the whole split."""
    source = Emoji("test")
    samples = captions(n, split="test")
    groups = [replace(source, label="group").caption(i) for i in samples]
    shown, others = (real(s, "test") for s in (samples, captions(len(source), split="test")))
    return tuple(source.caption(i) for i in samples), groups, shown, others


DRAWS = 4
"""Of the best of n."""


def rivals(bench: Bench, n: int) -> dict[str, Any]:
    """Noise that is better without training: the best of 4 by a probe, and noise level guidance.

    The latter can do nothing at zero terminal SNR, so that it is shown on the flawed model.
    """
    probe = Probe()
    prompts, groups, shown, others = held_out(n)
    group_of = dict(zip(prompts, groups, strict=True))
    base = Recipe(model="pocket", prompts=prompts, sampler="UniPC()", steps=16)
    flawed = replace(base, model="pocket-eps")

    def score(pictures: Tensor, texts: Sequence[str]) -> Tensor:
        return probe.sureness(features(pictures), [group_of[text] for text in texts])

    recipes: dict[str, tuple[Recipe, Score | None]] = {
        "none": (base, None),
        f"best of {DRAWS}": (base, score),
        "refined": (replace(base, refiner="pocket-refiner"), None),
        "CFG(1.5)": (replace(base, guidance="CFG(1.5)"), None),
        "flawed, none": (flawed, None),
        "flawed, NLG(20)": (replace(flawed, refiner="NLG(20)"), None),
        "flawed, CFG(1.5)": (replace(flawed, guidance="CFG(1.5)"), None),
    }
    rows = []
    for name, (recipe, by) in recipes.items():
        made, cost = bench.features(recipe, range(n), by)
        row = figures(name, recipe.guidance, made, shown, others, cost)
        rows.append(row | {"group": probe.agrees(made, groups)})
        report(rows[-1])
    return {"n": n, "steps": 16, "sampler": "UniPC", "seeds": f"0-{n - 1}", "rows": rows}


class Probe:
    """Tells the group of what an image shows: least squares on real training images."""

    def __init__(self, ridge: float = 1e-3) -> None:
        source = Emoji("train")
        every = range(len(source))
        said = [replace(source, label="group").caption(i) for i in every]
        self.names = sorted(set(said))
        x = self._of(known())
        y = torch.eye(len(self.names), dtype=x.dtype)[[self.names.index(s) for s in said]]
        x, y = (v.double() for v in (x, y))
        square = x.T @ x / len(x)
        self.weight = torch.linalg.solve(
            square + ridge * square.trace() / len(square) * torch.eye(len(square)), x.T @ y / len(x)
        )

    def agrees(self, made: Tensor, groups: Sequence[str]) -> float:
        """Share of images that show something of the group that they should."""
        said = self._says(made).argmax(1).tolist()
        right = [self.names[i] == group for i, group in zip(said, groups, strict=True)]
        return float(sum(right) / len(right))

    def sureness(self, made: Tensor, groups: Sequence[str]) -> Tensor:
        """How much each image looks like something of its group, `(N,)`."""
        index = torch.tensor([self.names.index(group) for group in groups])
        return self._says(made).gather(1, index[:, None])[:, 0]

    def _says(self, made: Tensor) -> Tensor:
        said: Tensor = self._of(made).double() @ self.weight
        return said

    @staticmethod
    def _of(made: Tensor) -> Tensor:
        return torch.cat([made[:, OWN:], torch.ones(len(made), 1)], 1)


STUDIES = {"sheet": (sheet, 32), "brightness": (brightness, 1000)}
STUDIES |= {"guidance": (guidance, 2000), "sag": (sag, 500), "refined": (refined, 2000)}
STUDIES |= {"rivals": (rivals, 1000), "masked": (masked, 300)}


@contextmanager
def arguments() -> Iterator[argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="+", choices=list(STUDIES))
    parser.add_argument("--models", type=Path)
    parser.add_argument("--work", type=Path, default=Path("measured"))
    parser.add_argument("--batch", type=int, default=50)
    for name, (study, n) in STUDIES.items():
        parser.add_argument(f"--{name}", type=int, default=n, help=f"images: {study.__doc__}")
    with launched():
        yield parser.parse_args()


def main() -> None:
    torch._dynamo.config.recompile_limit = 64  # blocks of one class, one compilation a shape
    with arguments() as args:
        bench = Bench(args.models, args.work, args.batch)
        for name in args.what:
            found = STUDIES[name][0](bench, getattr(args, name))
            if Processes.running().rank == 0:
                with atomic_write(OUT / f"{name}.json") as file:
                    file.write((json.dumps(found, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
