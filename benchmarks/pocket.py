"""What guidance and zero terminal SNR do on the pocket model: the figures of docs/results.md.

    python benchmarks/pocket.py brightness guidance page [--models runs] [--processes 1]

Each study keeps what it sampled under --work and goes on there; `page` writes docs/results.md from
docs/results/*.json. Under torchrun the seeds are shared. Guidance weights are chosen by Frechet
distance on seeds of their own, and reported on others.
"""

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffsteer.demo import located
from diffsteer.eval.background import corners
from diffsteer.eval.chunks import key_of
from diffsteer.eval.efficientnet import EfficientNetLite0
from diffsteer.eval.features import Custom
from diffsteer.eval.frechet import Gaussian, frechet
from diffsteer.eval.manifold import manifold
from diffsteer.eval.moments import Moments
from diffsteer.eval.processes import Processes, launched
from diffsteer.eval.sampling import sampled
from diffsteer.recipe import Recipe, digest
from diffsteer.render import rendering
from diffsteer.train.data import BACKGROUNDS, Emoji
from diffsteer.whole import whole

OUT = Path(__file__).parent.parent / "docs" / "results"
SIDE = 64
OWN = 4
"""First columns of the features: brightness, and the colour of the background."""


def features(images: Tensor) -> Tensor:
    """Brightness and background, in [0, 1], then EfficientNet-Lite0's block10."""
    own = torch.cat([images.float().mean((1, 2, 3))[:, None], corners(images).float()], 1) / 255
    return torch.cat([own, network()(images).cpu()], 1)


@cache
def network() -> EfficientNetLite0:
    return EfficientNetLite0(size=SIDE)


def extractor() -> Custom:
    at = network().origin
    return Custom(features, replace(at, layer=f"brightness, background, {at.layer}"))


@dataclass(frozen=True)
class Bench:
    """Where models are and samples go."""

    models: Path | None
    work: Path
    batch: int

    def features(self, recipe: Recipe, seeds: Sequence[int]) -> tuple[Tensor, float]:
        """Features of samples, `(N, 4 + d)`, and median seconds of one."""
        with rendering(located(recipe, self.models)) as images:
            made = extractor()
            out = self.work / digest(key_of(images.key, made))[:16]
            found = sampled(
                images, seeds, made, out, images.key, self.batch, len(seeds), images.rows
            )
        return found.statistics.features, found.costs["seconds"].median().item()


def captions(n: int, background: str | None = None) -> list[int]:
    """Samples of the training split, spread evenly over a fixed shuffle."""
    source = Emoji("train")
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(0)).tolist()
    said = [
        i
        for i in order
        if background is None or source[i].caption.endswith(f"{background} background")
    ]
    return said[:n]


def real(samples: Sequence[int]) -> Tensor:
    """Features of real pictures."""
    source = Emoji("train")
    parts = [samples[i : i + 64] for i in range(0, len(samples), 64)]
    return torch.cat([features(torch.stack([source[i].pixels for i in p])) for p in parts])


def brightness(bench: Bench, n: int) -> dict[str, Any]:
    """Brightness on black and on white backgrounds: data, flawed and repaired model."""
    source, rows = Emoji("train"), []
    for background in ("black", "white"):
        samples = captions(n, background)
        prompts = tuple(source[i].caption for i in samples)
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
        "background error": (found[:, 1:OWN] - wanted).abs().mean().item(),
        "histogram": torch.histc(light, 40, 0, 1).tolist(),
    }


SWEEPS = {
    "CFG": ("CFG({w})", "", (1.5, 2.0, 3.0, 4.0)),
    "autoguidance": ("Auto({w})", "pocket-guide", (1.5, 2.0, 2.5, 3.0)),
    "SAG": ('SAG({w}, on="cond")', "", (0.25, 0.5, 1.0)),
    "PAG": ("PAG({w})", "", (0.5, 1.0, 2.0)),
}
CHOICE = 100_000
"""First of the seeds on which weights are chosen."""


def guidance(bench: Bench, n: int) -> dict[str, Any]:
    """Each guidance at its best weight against none, on three ranges of seeds."""
    source = Emoji("train")
    every = list(range(len(source)))
    known = real(every)
    prompts = tuple(source[i].caption for i in captions(n))
    base = Recipe(model="pocket", prompts=prompts, sampler="UniPC()", steps=16)
    shown = known[captions(n)]
    others = known[sorted(set(every) - set(captions(n)))]
    chosen, tried = {"none": base}, []
    for name, (text, guide, weights) in SWEEPS.items():
        recipe = replace(base, guidance=text, guide=guide)
        found = []
        for w, one in zip(weights, recipe.weighted(weights), strict=True):
            made, _ = bench.features(one, range(CHOICE, CHOICE + n // 2))
            found.append((distance(made, others), w, one))
            tried.append({"name": name, "weight": w, "FD": found[-1][0]})
            report(tried[-1])
        chosen[name] = min(found, key=lambda f: f[0])[2]
    rows = [figures("real", "", shown, shown, others, None)]
    for name, recipe in chosen.items():
        for start in (0, n, 2 * n):
            made, seconds = bench.features(recipe, range(start, start + n))
            row = figures(name, recipe.guidance, made, shown, others, seconds)
            rows.append({**row, "seeds": f"{start}-{start + n - 1}"})
            report(rows[-1])
    return {"n": n, "steps": 16, "sampler": "UniPC", "choice": tried, "rows": rows}


def figures(
    name: str, text: str, made: Tensor, shown: Tensor, others: Tensor, seconds: float | None
) -> dict[str, Any]:
    """Distance to other real pictures, precision and recall, share of backgrounds obeyed."""
    overlap = manifold(made[:, OWN:], others[: len(made), OWN:])
    table = torch.tensor(list(BACKGROUNDS.values())) / 255
    told, wanted = (torch.cdist(x[:, 1:OWN], table).argmin(1) for x in (made, shown))
    return {
        "name": name,
        "guidance": text,
        "FD": distance(made, others),
        "precision": overlap.precision,
        "recall": overlap.recall,
        "background": (told == wanted).double().mean().item(),
        "seconds": seconds,
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


def page() -> str:
    """docs/results.md from the figures that are there."""
    parts = [
        "# Results",
        "",
        "Those of the pocket model, with their figures, are made by",
        "",
        "```console",
        "python benchmarks/pocket.py brightness guidance page",
        "```",
        "",
        "from the models that ship, on the training captions of the emoji. What holds for this "
        "model of 64 x 64 emoji need not hold for another.",
    ]
    if (OUT / "brightness.json").exists():
        parts += brightness_page(json.loads((OUT / "brightness.json").read_text("utf-8")))
    if (OUT / "guidance.json").exists():
        parts += guidance_page(json.loads((OUT / "guidance.json").read_text("utf-8")))
    return "\n".join(parts) + "\n"


def others(results: Path) -> str:
    """The part of docs/results.md that another program makes, which comes last."""
    text = results.read_text("utf-8") if results.exists() else ""
    _, head, rest = text.partition("\n## The toy of autoguidance\n")
    return head + rest


def brightness_page(found: dict[str, Any]) -> list[str]:
    rows = found["rows"]
    data = {r["background"]: r for r in rows if r["model"] == "data"}
    lines = [
        "",
        "## Zero terminal SNR",
        "",
        f"Mean brightness of a picture, 0 to 1: mean and standard deviation over {found['n']} "
        f"pictures, seeds {found['seeds']}, {found['steps']} steps of the model's own scheduler. "
        "Data: the pictures of the same captions. `pocket` is `pocket-eps` fine-tuned. The last "
        "columns are of pocket-eps / pocket.",
        "",
        "| background | guidance | data | pocket-eps | pocket | error of the mean | "
        "spread beside the data's |",
        "|---|---|---|---|---|---|---|",
    ]
    for background, real_one in data.items():
        for text in ("", "CFG(3)"):
            pair = [
                next(r for r in rows if (r["model"], r["guidance"], r["background"]) == key)
                for key in (("pocket-eps", text, background), ("pocket", text, background))
            ]
            means = " | ".join(f"{r['mean']:.3f} +- {r['std']:.3f}" for r in (real_one, *pair))
            off = " / ".join(f"{abs(r['mean'] - real_one['mean']):.4f}" for r in pair)
            wide = " / ".join(f"{r['std'] / real_one['std']:.2f} x" for r in pair)
            lines.append(f"| {background} | {text or 'none'} | {means} | {off} | {wide} |")
    return [*lines, "", "![histograms of brightness](results/brightness.png)"]


def guidance_page(found: dict[str, Any]) -> list[str]:
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in found["rows"]:
        rows.setdefault(row["name"], []).append(row)
    lines = [
        "",
        "## Guidance",
        "",
        f"N = {found['n']} pictures a range of seeds, three ranges, {found['steps']} steps of "
        f"{found['sampler']}: mean over the ranges, least to greatest. FD: Frechet distance on "
        "EfficientNet-Lite0's block10 to the real pictures of all other captions; real: as many "
        "real pictures in place of the generated ones. Background: share of pictures with the "
        "colour of the prompt in the corners. Weights were chosen by FD on other seeds "
        f"({found['n'] // 2} pictures from seed {CHOICE} on).",
        "",
        "| | guidance | FD | precision | recall | background | s a picture |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, group in rows.items():
        cells = [
            spread([r[key] for r in group]) for key in ("FD", "precision", "recall", "background")
        ]
        cost = [r["seconds"] for r in group if r["seconds"] is not None]
        text = f"`{group[0]['guidance']}`" if group[0]["guidance"] else ""
        seconds = f"{statistics.median(cost):.3f}" if cost else ""
        lines.append(f"| {name} | {text} | {' | '.join(cells)} | {seconds} |")
    tried = ", ".join(f"{t['name']} {t['weight']:g}: {t['FD']:.1f}" for t in found["choice"])
    return [*lines, "", f"FD of the weights tried, on the seeds of the choice: {tried}."]


def spread(values: Sequence[float]) -> str:
    middle = f"{statistics.mean(values):.3g}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.3g} to {max(values):.3g})"


def plot(found: dict[str, Any], path: Path) -> None:
    """Histograms of brightness: data, flawed and repaired, without guidance and with it."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(10, 6), sharex=True)
    for across, background in zip(axes, ("black", "white"), strict=True):
        for axis, text in zip(across, ("", "CFG(3)"), strict=True):
            for row in found["rows"]:
                if (
                    row["background"] == background
                    and row["model"] == "data"
                    or (row["background"], row["guidance"]) == (background, text)
                    and row["model"] != "data"
                ):
                    axis.stairs(row["histogram"], torch.linspace(0, 1, 41), label=row["model"])
            axis.set_title(f"on a {background} background, {text or 'no guidance'}")
            axis.set_xlabel("brightness")
    axes[0, 0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


@contextmanager
def arguments() -> Iterator[argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="+", choices=["brightness", "guidance", "page"])
    parser.add_argument("--models", type=Path)
    parser.add_argument("--work", type=Path, default=Path("measured"))
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--brightness", type=int, default=1000, help="pictures of each kind")
    parser.add_argument("--guidance", type=int, default=2000, help="pictures a range of seeds")
    with launched():
        yield parser.parse_args()


def main() -> None:
    with arguments() as args:
        bench = Bench(args.models, args.work, args.batch)
        for name, study, n in (
            ("brightness", brightness, args.brightness),
            ("guidance", guidance, args.guidance),
        ):
            if name in args.what:
                found = study(bench, n)
                if Processes.running().rank == 0:
                    with whole(OUT / f"{name}.json") as file:
                        file.write(json.dumps(found, indent=1).encode())
        if "page" in args.what and Processes.running().rank == 0:
            plot(json.loads((OUT / "brightness.json").read_text("utf-8")), OUT / "brightness.png")
            results = OUT.parent / "results.md"
            results.write_text(page() + others(results), "utf-8")


if __name__ == "__main__":
    main()
