"""docs/results.md from the figures in docs/results/*.json: `python benchmarks/results.py`."""

import json
import statistics
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from claims import claims_page
from diffsteer_lab.demo import CREDIT
from diffsteer_lab.noise_analysis.experiments import REFINED
from diffsteer_lab.noise_analysis.spectrum import TENTHS

UNMASKED = (
    "**Distances of this section were taken without a mask and measure grain as well as content "
    "([which distance to take](evaluate.md#what-a-distance-sees)): they decide no claim.**"
)
OUT = Path(__file__).parent.parent / "docs" / "results"


def brightness_page(found: dict[str, Any]) -> list[str]:
    rows = found["rows"]
    data = {r["background"]: r for r in rows if r["model"] == "data"}
    unsure = max(r["std"] for r in rows) / found["n"] ** 0.5
    lines = [
        "",
        "## Zero terminal SNR: brightness",
        "",
        f"Mean brightness of an image, 0 to 1: mean and standard deviation over {found['n']} "
        f"images, seeds {found['seeds']}, {found['steps']} steps of the model's own scheduler. "
        "Data: the images of the same captions. `pocket` is `pocket-eps` fine-tuned. The last "
        f"columns are of pocket-eps / pocket. Standard error of a mean: at most {unsure:.4f}.",
        "",
        "| background | guidance | data | pocket-eps | pocket | error of the mean | "
        "spread beside the data's |",
        "|---|---|---|---|---|---|---|",
    ]
    for background, real_one in data.items():
        for text in guidances(rows):
            pair = [
                next(r for r in rows if (r["model"], r["guidance"], r["background"]) == key)
                for key in (("pocket-eps", text, background), ("pocket", text, background))
            ]
            means = " | ".join(f"{r['mean']:.3f} +- {r['std']:.3f}" for r in (real_one, *pair))
            off = " / ".join(f"{abs(r['mean'] - real_one['mean']):.4f}" for r in pair)
            wide = " / ".join(f"{r['std'] / real_one['std']:.2f} x" for r in pair)
            lines.append(f"| {background} | {text or 'none'} | {means} | {off} | {wide} |")
    return [*lines, "", "![histograms of brightness](results/brightness.png)"]


def guidances(rows: list[dict[str, Any]]) -> list[str]:
    """What was sampled with, in order."""
    return list(dict.fromkeys(row["guidance"] for row in rows if row["model"] != "data"))


def guidance_page(found: dict[str, Any]) -> list[str]:
    rows = by_name(found["rows"])
    lines = [
        "",
        "## Guidance: Fréchet distance, precision, recall",
        "",
        f"N = {found['n']} images a range of seeds, three ranges, {found['steps']} steps of "
        f"{found['sampler']}: mean over the ranges, least to greatest. FD: Frechet distance on "
        "EfficientNet-Lite0's block10 to the real images of all other captions; real: as many "
        "real images in place of the generated ones. Background: share of images with the "
        "colour of the prompt in the corners. Edges: mean difference of neighbouring pixels, in "
        f"grey levels of 255. Weights were chosen by FD on seeds {found['choice seeds']}.",
        "",
        "**These distances measure grain as well as content.** They were taken without a mask, and "
        "on real emoji grain of one grey level, which nobody sees, moves this distance to 2.3 "
        "times that of untouched images, as far as a blur of almost one pixel; a round trip of the "
        "autoencoder to 1.35 times, and to 1.13 with `--noise-mask 16` ([which distance to "
        "take](evaluate.md#what-a-distance-sees)). Orders below may change under a mask; gaps of a "
        "few units say nothing about what an image shows.",
        "",
        "| | guidance | FD | precision | recall | background | edges | cost of an image |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, group in rows.items():
        cells = [spread([r[key] for r in group]) for key in MEASURES]
        text = f"`{group[0]['guidance']}`" if group[0]["guidance"] else ""
        cost = ", ".join(f"{n:g} {what}" for what, n in (group[0]["rows"] or {}).items())
        lines.append(f"| {name} | {text} | {' | '.join(cells)} | {cost} |")
    tried = ", ".join(f"{t['name']} {t['weight']:g}: {t['FD']:.1f}" for t in found["choice"])
    return [*lines, "", f"FD of the weights tried, on the seeds of the choice: {tried}."]


def masked_page(found: dict[str, Any]) -> list[str]:
    lines = [
        "",
        "## Guidance, measured through a mask",
        "",
        f"The same images measured without and with `--mask 16`; N = {found['n']}, seeds 0 to "
        f"{found['n'] - 1}, {found['others']} real images of other captions as the reference, "
        f"{found['steps']} steps of {found['sampler']}. Change: from no guidance on the same "
        "seeds, with a 95 % interval of 200 paired resamples. Compare within a column alone.",
        "",
        "| | FD | change | FD, masked | change, masked |",
        "|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        changes = [f"{a:+.1f} ({b:+.1f} to {c:+.1f})" for a, b, c in row.get("more", ())]
        changes = changes or ["", ""]
        cells = (f"{fd:.1f} | {change}" for fd, change in zip(row["FD"], changes, strict=True))
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    return lines


def sag_page(found: dict[str, Any]) -> list[str]:
    """The sign conventions of SAG, in a table."""
    lines = [
        "",
        "## Conventions of self-attention guidance",
        "",
        "Programs take SAG's difference in different spaces. With s its scale, D the denoiser and "
        "the input made from the blurred x0, the shift of x0 is s (x0 - D(blurred input) - "
        "c (x0 - blurred x0)): c = 1 for the published rule in eps, alpha^2 for one in the "
        f"network's own v, 0 for one in x0. N = {found['n']}, seeds {found['seeds']}, "
        f"{found['steps']} steps of {found['sampler']}; columns as above, and how much more FD is "
        "than without SAG on the same seeds, with a 95 % interval of 200 paired resamples.",
        "",
        UNMASKED,
        "",
        "| guidance | FD | precision | recall | background | edges | FD, more than without |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        name = (
            f"`{row['guidance']}`" if row["guidance"] else ("none", "real")[row["name"] == "real"]
        )
        more = "{:+.1f} ({:+.1f} to {:+.1f})".format(*row["more"]) if "more" in row else ""
        cells = (f"{row[key]:.3g}" for key in MEASURES)
        lines.append(f"| {name} | {' | '.join(cells)} | {more} |")
    return lines


def refined_page(found: dict[str, Any]) -> list[str]:
    """Refined noise on prompts held out, and how much of the teacher's gap it closes."""
    rows = by_name(found["rows"])
    lines = [
        "",
        "## Refined noise, on things that the model never saw",
        "",
        f"`pocket-refiner` learnt from `{found['teacher']}` on captions of the training split. "
        "Here are captions of the test split: other things in the same styles and colours. "
        f"N = {found['n']} images a range of seeds, three ranges, {found['steps']} steps of "
        f"{found['sampler']}: mean over the ranges, least to greatest. FD is to all real images "
        "of the test split; real, of training captions: as many of those in place of the generated "
        "ones. Group: share of images of which a linear probe of real training images tells "
        "the group of the prompt, such as animals or food; of real images of the prompts "
        "themselves in the second row. Closed: share of the FD between none and the row named by "
        "which refining lowers it, range by range. Strength was chosen by FD on training captions, "
        f"seeds {found['choice seeds']}.",
        "",
        UNMASKED,
        "",
        "| | guidance | strength | FD | precision | recall | background | group | edges | rows |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, group in rows.items():
        text = f"`{group[0]['guidance']}`" if group[0]["guidance"] else ""
        strength = f"{group[0]['strength']:g}" if "refined" in name else ""
        keys = ("FD", "precision", "recall", "background", "group", "edges")
        cells = [spread([r[k] for r in group]) if group[0][k] is not None else "" for k in keys]
        cost = f"{group[0]['rows']['rows']:g}" if group[0]["rows"] else ""
        lines.append(f"| {name} | {text} | {strength} | {' | '.join(cells)} | {cost} |")
    lines += ["", "| closed by | of none to teacher | of none to best CFG |", "|---|---|---|"]
    for name in ("refined", "refined, strength"):
        if name in rows:
            both = (spread(closed(rows, name, to)) for to in ("teacher", "best CFG"))
            lines.append(f"| {name} | {' | '.join(both)} |")
    tried = ", ".join(f"{t['strength']:g}: {t['FD']:.1f}" for t in found["choice"])
    return [*lines, "", f"FD of the strengths tried, on the seeds of the choice: {tried}."]


def rivals_page(found: dict[str, Any]) -> list[str]:
    """Noise that is better without training."""
    lines = [
        "",
        "### Rivals without training",
        "",
        f"On the same captions, N = {found['n']}, seeds {found['seeds']}, {found['steps']} steps "
        f"of {found['sampler']}; one range of seeds, so that differences of a few units of FD mean "
        "nothing. The best of 4 is that by the probe, whose own share of right groups is no "
        "evidence for it. Noise level guidance can do nothing at zero terminal SNR: it is shown on "
        "`pocket-eps`, the flawed model.",
        "",
        UNMASKED,
        "",
        "| | FD | precision | recall | background | group | edges | rows |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        keys = ("FD", "precision", "recall", "background", "group", "edges")
        cells = " | ".join(f"{row[key]:.3g}" for key in keys)
        lines.append(f"| {row['name']} | {cells} | {row['rows']['rows']:g} |")
    return lines


def by_name(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows of each name, one a range of seeds."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["name"], []).append(row)
    return found


def closed(rows: dict[str, list[dict[str, Any]]], name: str, to: str) -> list[float]:
    """Share of the gap in FD between none and `to` that `name` closes, in each range of seeds."""
    every = zip(rows["none"], rows[name], rows[to], strict=True)
    return [(a["FD"] - b["FD"]) / (a["FD"] - c["FD"]) for a, b, c in every]


def sheet_page(found: dict[str, Any]) -> list[str]:
    """What people can judge: images of captions that nobody chose."""
    prompts, columns = found["prompts"], 8
    rows = [prompts[i : i + columns] for i in range(0, len(prompts), columns)]
    return [
        "",
        "## Images",
        "",
        f"The first {len(prompts)} captions of a fixed shuffle of the training split, seeds 0 to "
        f"{len(prompts) - 1}, {found['steps']} steps of the model's own scheduler. The repaired "
        f"model with `{found['guidance']}`:",
        "",
        "![images of the repaired model, guided](results/sheet-pocket-guided.png)",
        "",
        *(f"{i}. {'; '.join(row)}" for i, row in enumerate(rows, 1)),
        "",
        "The same without guidance:",
        "",
        "![images of the repaired model, unguided](results/sheet-pocket.png)",
        "",
        "Without guidance as well, from refined noise (`pocket-refiner`):",
        "",
        "![images of the repaired model from refined noise](results/sheet-pocket-refined.png)",
        "",
        f"And the flawed model with `{found['guidance']}`:",
        "",
        "![images of the flawed model, guided](results/sheet-pocket-eps-guided.png)",
    ]


def _space(name: str) -> str:
    """Name of a space of distances; files keep the word of version 0.1.0."""
    return "images" if name == "pictures" else name


def analysis_page(found: dict[str, Any]) -> list[str]:
    """What the refiner changes in noise, of `diffsteer refine analyse`."""
    recipe, every = found["recipe"], found["spectra"][REFINED]
    energy = {
        f"{a:g} to {b:g}": e for (a, b), e in zip(pairwise(TENTHS), every["energy"], strict=True)
    }
    spaces = [v["space"] for v in found["verdicts"]]
    trip = "; ".join(f"{name} {told(e)}" for name, e in found["round trip"].items())
    sizes = ", ".join(f"{name} {s['size']:.3g}" for name, s in found["spectra"].items())
    return [
        "",
        "### What it changes in the noise",
        "",
        "```console",
        f"diffsteer refine analyse {recipe['model']} --refiner {recipe['refiner']} "
        f'--guidance "{recipe["guidance"]}" --sampler "{recipe["sampler"]}" '
        f"--steps {recipe['steps']} --prompts prompts.txt --seeds {found['seeds']} "
        f"--count {found['spectra of']} --out analysis",
        "```",
        "",
        "with captions of the test split, one a seed. Bands are of the radius of spatial "
        "frequency, 1 that of the checkerboard; what a band carries is the share of the squared "
        "distance between the unrefined and the refined result that goes where it alone is "
        "refined, with 95 % intervals over seeds ([how this is measured](refine.md)).",
        "",
        *(f"* {v['text']}." for v in found["verdicts"]),
        "",
        "| refined band | share of the change | "
        + " | ".join(f"carried, {_space(s)}" for s in spaces)
        + " |",
        f"|---|---|{'---|' * len(spaces)}",
        *(
            f"| {name} | {f'{energy[name]:.1%}' if name in energy else ''} | "
            + " | ".join(carried(row[s]) for s in spaces)
            + " |"
            for name, row in found["bands"].items()
        ),
        "",
        f"Root mean square of the change by element: {sizes}. Round trip through inversion without "
        f"guidance, of the guided images: {trip}.",
        "",
        "What the first step predicts, over the square of where its sampling ends, lacks "
        + "; ".join(f"{way} {told(e)}" for way, e in found["trajectory"]["1"].items())
        + "; of its lowest tenth, the layout, "
        + "; ".join(f"{way} {told(e)}" for way, e in found["trajectory: layout"]["1"].items())
        + ".",
        "",
        "Rows are seeds 0 to 3; unrefined, refined, then one tenth refined at a time, and bands "
        "that grow from 0:",
        "",
        "![images with one band of the noise refined](results/refine-bands.png)",
        "",
        "The change times 0 to 2, and guided:",
        "",
        "![images by strength](results/refine-strength.png)",
    ]


def carried(distance: dict[str, Any]) -> str:
    low, high = distance["interval"]
    return f"{1 - distance['value']:.0%} ({1 - high:.0%} to {1 - low:.0%})"


def told(measured: dict[str, Any]) -> str:
    return "{:.3g} ({:.3g} to {:.3g})".format(measured["value"], *measured["interval"])


def toy_page(said: str) -> list[str]:
    """The table of `diffsteer toy`, and its figure."""
    return [
        "",
        "## Where the truth is known: a toy in two dimensions",
        "",
        "No images, and not the pocket model: points of a mixture of Gaussians, and small "
        "networks that were trained on its exact score ([what is measured](toy.md)).",
        "",
        "```console",
        "diffsteer toy --seeds 0-2 --out toy",
        "cp toy/toy.md toy/toy.png docs/results",
        "```",
        "",
        said.rstrip(),
        "",
        "Claims and settings were chosen on main network 0; networks 1 and 2 were trained "
        "afterwards. Network 1 sends a few samples far away, unguided too, which guidance sends "
        "farther: the tails of mean log p and sliced W2 are its own.",
        "",
        "![samples of the toy by each guidance](results/toy.png)",
    ]


def spread(values: Sequence[float]) -> str:
    middle = f"{statistics.mean(values):.3g}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.3g} to {max(values):.3g})"


def plot(found: dict[str, Any], path: Path) -> None:
    """Histograms of brightness: data, flawed and repaired, without guidance and with it."""
    import matplotlib.pyplot as plt

    texts = guidances(found["rows"])
    figure, axes = plt.subplots(2, len(texts), figsize=(5 * len(texts), 6), sharex=True)
    for across, background in zip(axes, ("black", "white"), strict=True):
        for axis, text in zip(across, texts, strict=True):
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


MEASURES = ("FD", "precision", "recall", "background", "edges")
PAGES: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "sheet": sheet_page,
    "brightness": brightness_page,
    "guidance": guidance_page,
    "masked": masked_page,
    "sag": sag_page,
    "refined": refined_page,
    "rivals": rivals_page,
    "refine-analysis": analysis_page,
}


def main() -> None:
    files = {name: OUT / f"{name}.json" for name in PAGES}
    found = {n: json.loads(f.read_text("utf-8")) for n, f in files.items() if f.exists()}
    parts = [
        "# Results on the pocket model",
        "",
        "All of this page, with its figures, is made by",
        "",
        "```console",
        f"python benchmarks/pocket.py {' '.join(n for n in found if n != 'refine-analysis')}",
        "python benchmarks/results.py",
        "```",
        "",
        'after `pip install -e ".[hf,eval,plot]"`, on captions of the emoji (of the training '
        "split where nothing else is said), with the models that ship, networks in bfloat16. What "
        f"holds for this model of 64 x 64 emoji need not hold for another. {CREDIT}",
    ]
    toy = OUT / "toy.md"
    text = toy.read_text("utf-8") if toy.exists() else ""
    parts += claims_page(found, text)
    for name, figures in found.items():
        parts += PAGES[name](figures)
    if text:
        parts += toy_page(text)
    if "brightness" in found:
        plot(found["brightness"], OUT / "brightness.png")
    (OUT.parent / "results.md").write_text("\n".join(parts) + "\n", "utf-8")


if __name__ == "__main__":
    main()
