"""docs/results.md from the figures in docs/results/*.json: `python benchmarks/results.py`."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from claims import claims_page
from diffsteer_lab.demo import CREDIT

OUT = Path(__file__).parent.parent / "docs" / "results"
Rows = list[dict[str, Any]]


def sheet_page(rows: Rows) -> list[str]:
    """Images that nobody chose."""
    return [
        "",
        "## Images",
        "",
        "The first eight held-out prompts, seeds 0 to 7, by every method at the weight of the "
        "table below; none is left out.",
        "",
        "![eight prompts by every method](results/critters-methods.png)",
        "",
        "The same without guidance, by the model with the published schedule and by the repaired "
        "one, 25 steps:",
        "",
        "![eight prompts by both schedules](results/critters-schedules.png)",
    ]


def brightness_page(rows: Rows) -> list[str]:
    data = {r["background"]: r for r in rows if r["model"] == "data"}
    lines = [
        "",
        "## Zero terminal SNR: brightness",
        "",
        f"Mean brightness of an image, 0 to 1, and its standard deviation over {rows[0]['n']} "
        "images, one prompt each, 25 steps of the model's own scheduler. Data: renderings of the "
        "same captions. `critters` is `critters-eps` trained further on the repaired schedule.",
        "",
        "| background | guidance | data | critters-eps | critters | error of critters-eps | "
        "error of critters | standard error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for background, real in data.items():
        for text in dict.fromkeys(r["guidance"] for r in rows if "guidance" in r):
            both = [
                next(
                    r
                    for r in rows
                    if (r["model"], r.get("guidance"), r["background"]) == (model, text, background)
                )
                for model in ("critters-eps", "critters")
            ]
            means = " | ".join(f"{r['mean']:.3f} +- {r['std']:.3f}" for r in (real, *both))
            errors = " | ".join(f"{abs(r['mean'] - real['mean']):.4f}" for r in both)
            error = max(r["std"] for r in both) / rows[0]["n"] ** 0.5
            name = f"`{text}`" if text else "none"
            lines.append(f"| {background} | {name} | {means} | {errors} | {error:.4f} |")
    return lines


def obedience_page(rows: Rows) -> list[str]:
    """The methods side by side."""
    table = [row for row in rows if "guidance" in row]
    real = rows[0]
    lines = [
        "",
        "## Methods: obedience to held-out prompts",
        "",
        f"{table[0]['n']} prompts of combinations of attributes that training never had, one "
        "image each, in three ranges of seeds; 12 steps of UniPC. Attributes: share of the seven "
        "that are as prompted, by the judge that ships; all right: share of images with all seven; "
        "with 95 % intervals over prompts. Gains are paired. FD: Fréchet distance of "
        "EfficientNet-Lite0's block10 through the mask to renderings of other held-out prompts, "
        "each range (real images: "
        f"{real['FD'][0]:.1f}). The judge finds {percent(real['attributes'])} of the attributes of "
        f"renderings right, and {percent(real['all right'])} of whole images. Weights were chosen "
        "by attributes on other prompts.",
        "",
        "| method | guidance | attributes, % | all right, % | gain in all right, points | FD | "
        "NFE |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in table:
        text = f"`{row['guidance']}`" if row["guidance"] else ""
        gain = "" if row is table[0] else percent(row["gain in all right"], "+")
        fd = " ".join(f"{x:.1f}" for x in row["FD"])
        cells = (percent(row["attributes"]), percent(row["all right"]), gain, fd)
        lines.append(f"| {row['name']} | {text} | {' | '.join(cells)} | {evaluations(row)} |")
    names = [*rows[0]["by attribute"]]
    lines += [
        "",
        "Share of each attribute that is right, %:",
        "",
        f"| method | {' | '.join(names)} |",
        f"|---|{'---|' * len(names)}",
    ]
    for row in rows:
        shares = (f"{100 * row['by attribute'][name]:.0f}" for name in names)
        lines.append(f"| {row['name']} | {' | '.join(shares)} |")
    tried = (f"{text}: {100 * x:.1f}" for row in table for text, x in row["tried"].items())
    return [
        *lines,
        "",
        f"Attributes of the weights tried, %, on prompts of the choice: {'; '.join(tried)}.",
    ]


def catalogue_page(rows: Rows) -> list[str]:
    return [
        "",
        "## Every guidance",
        "",
        f"One value of each guidance that takes this model, {rows[0]['n']} other held-out prompts, "
        "seeds from 0, 12 steps of UniPC (`CFGpp`: DDIM). Values were not tuned: these rows show "
        "that a method does something here, not what it could do.",
        "",
        "| guidance | NFE | attributes, % | all right, % | gain in all right, points |",
        "|---|---|---|---|---|",
        *(
            f"| {'`' + r['guidance'] + '`' if r['guidance'] else 'none'} | {evaluations(r)} | "
            f"{percent(r['attributes'])} | {percent(r['all right'])} | "
            f"{percent(r['gain in all right'], '+')} |"
            for r in rows
        ),
    ]


def front_page(rows: Rows) -> list[str]:
    return [
        "",
        "## Quality by cost",
        "",
        "The same methods at 4 to 20 steps; bars are 95 % intervals over prompts. The best of "
        "several images without guidance is what the judge itself takes: an upper bound. Seconds "
        "are of one thread, medians of images, beside other work: for orientation.",
        "",
        "![all attributes right by network evaluations and by seconds](results/critters-front.png)",
        "",
        "| method | steps | NFE | seconds | attributes, % | all right, % |",
        "|---|---|---|---|---|---|",
        *(
            f"| {r['name']} {r['guidance']} | {r['steps']} | {evaluations(r)} | "
            f"{r['seconds']:.2f} | {percent(r['attributes'])} | {percent(r['all right'])} |"
            for r in rows
        ),
    ]


def grids_page(rows: Rows) -> list[str]:
    """Grids that somebody judged without knowing which column is guided."""
    judged = [row for row in rows if "picked" in row]
    if not judged:
        return []
    right = sum(row["picked"] == row["guided"] for row in judged)
    return [
        "",
        "## Judged blind",
        "",
        f"Ten grids of eight held-out prompts, each unguided and with `{rows[0]['guidance']}` in "
        "an order by chance. A vision-language model that saw the grids alone was asked which "
        f"column is the better one: it took the guided one in {right} of {len(judged)}. Its "
        "answers are entered by hand, as `picked` in critters-grids.json.",
    ]


def stages_page(rows: Rows) -> list[str]:
    return [
        "",
        "## Stages of the training",
        "",
        f"A run of `critters-eps` to 320,000 images, at a quarter, half and all of it, "
        f"{rows[0]['n']} held-out prompts. At its end it obeys without guidance, so the model that "
        "ships ends at the quarter, and `critters` 8,000 images later. Auto is guided by the "
        "average at a quarter of each stage. The rule, set before training: this data set is used "
        "if guidance raises the share of images that are all right by 15 points or more at a "
        "stage where unguided samples already look clean.",
        "",
        "| thousand images | guidance | attributes, % | all right, % | gain in all right, points |",
        "|---|---|---|---|---|",
        *(
            f"| {r['kimg']} | {r['guidance'] or 'none'} | {percent(r['attributes'])} | "
            f"{percent(r['all right'])} | {percent(r['gain in all right'], '+')} |"
            for r in rows
        ),
    ]


def fashion_page(rows: Rows) -> list[str]:
    """The table of the autoguidance paper, in small."""
    first = rows[0]
    return [
        "",
        "## Autoguidance on photographs: Fashion-MNIST",
        "",
        f"A small class-conditional EDM2, {first['n']} images in three ranges of seeds, 8 steps of "
        "Heun, Fréchet distance of EfficientNet-Lite0's block10 through the mask, and precision "
        "and recall of its features, to all 60,000 real images: mean (least to most) of the "
        "ranges. The weight and the length of the average over training were chosen for each "
        f"method by FD on other seeds, those of the guide with it; the floor is the FD of as many "
        f"real images as a range, {first['floor'][0]:.3g}. Intervals are 0.2 to 3.",
        "",
        "| method | guidance | length | FD | precision | recall | NFE |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {r['way']} | {r['guidance'] and '`' + r['guidance'] + '`'} | {r['length']:g} | "
            + distances(r)
            for r in rows
        ),
        "",
        "Images of seeds 0 to 15 by each, none left out:",
        "",
        "![sixteen images by each method](results/fashion.png)",
        "",
        "FD of what was tried for the choice, by length and weight: "
        + "; ".join(
            f"{r['way']} " + ", ".join(f"({key}) {value:.0f}" for key, value in r["tried"].items())
            for r in rows
        )
        + ".",
    ]


def sag_page(rows: Rows) -> list[str]:
    """SAG where its paper has it."""
    table = {row["way"]: row for row in rows}
    first, best = table["none"], table["SAG"]
    shares = "; ".join(
        f"{100 * r['classes right']:.0f} with {r['way']}" for r in rows if "classes right" in r
    )
    return [
        "",
        "## Self-attention guidance on pixels",
        "",
        "An unconditional ADM network of 1.4 million weights, 102,400 images of training at 32 "
        f"pixels; {first['n']} images in three ranges of seeds, 12 steps of DDPM, Fréchet distance"
        " of EfficientNet-Lite0's block10 through the mask, and precision and recall of its "
        "features, to 10,000 other renderings: mean (least to most) of the ranges; the floor is "
        f"the FD of as many real images as a range, {first['floor'][0]:.3g}. Settings were chosen "
        "by FD on other seeds; the masks of the ablations have those of SAG. The classifier is of "
        "the shapes of noisy critters.",
        "",
        f"SAG here is `{best['guidance']}`.",
        "",
        "| method | FD | precision | recall | NFE |",
        "|---|---|---|---|---|",
        *(f"| {r['way']}{chosen(r)} | " + distances(r) for r in rows),
        "",
        f"Shapes as asked for, by the judge of attributes, %: {shares}.",
        "",
        "Images of seeds 0 to 15 by each, none left out:",
        "",
        "![sixteen images by each method](results/sag.png)",
        "",
        "FD of what was tried for the choice, in turn: "
        + "; ".join(
            f"{name} " + ", ".join(f"{key} {value:.0f}" for key, value in tried.items())
            for name, tried in best["tried"].items()
        )
        + ". "
        + "; ".join(
            ", ".join(f"`{key}` {value:.0f}" for key, value in r["tried"].items())
            for r in rows
            if r is not best and r["tried"]
        )
        + ".",
    ]


def distances(row: dict[str, Any]) -> str:
    """Cells of FD, precision, recall and NFE."""
    costs = evaluations({k: v[0] for k, v in row.items() if k.startswith("rows")})
    return f"{' | '.join(spread(row[k]) for k in ('FD', 'precision', 'recall'))} | {costs} |"


def chosen(row: dict[str, Any]) -> str:
    """The guidance that was chosen among several, but for SAG, whose text is long."""
    return f" `{row['guidance']}`" if row["tried"] and row["way"] != "SAG" else ""


def evaluations(row: dict[str, Any]) -> str:
    """Network evaluations of an image, by network."""
    costs = {k: v for k, v in row.items() if k == "rows" or k.startswith("rows ")}
    return ", ".join(f"{n:g}{name.removeprefix('rows')}" for name, n in costs.items())


def spread(values: Sequence[float]) -> str:
    middle, low, high = values
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"


def percent(values: Sequence[float], sign: str = "") -> str:
    """A share with its interval, in percent."""
    middle, low, high = (f"{100 * x:{sign}.1f}" for x in values)
    return f"{middle} ({low} to {high})"


def plot_front(rows: Rows, path: Path) -> None:
    """All right by network evaluations and by seconds."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4), sharey=True)
    for name in dict.fromkeys(row["name"] for row in rows):
        part = [row for row in rows if row["name"] == name]
        shares = [row["all right"] for row in part]
        bars = [[m - low for m, low, _ in shares], [high - m for m, _, high in shares]]
        cost = [sum(v for k, v in row.items() if k.startswith("rows")) for row in part]
        for axis, x in zip(axes, (cost, [row["seconds"] for row in part]), strict=True):
            axis.errorbar(x, [m for m, _, _ in shares], bars, marker="o", capsize=2, label=name)
    axes[0].set_xlabel("network evaluations an image, those of a guide included")
    axes[1].set_xlabel("seconds an image")
    axes[0].set_ylabel("share of images with all attributes right")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def toy_page(said: str) -> list[str]:
    """The table of `diffsteer toy`, and its figure."""
    return [
        "",
        "## Where the truth is known: a toy in two dimensions",
        "",
        "No images, and not the critter model: points of a mixture of Gaussians, and small "
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


PAGES: dict[str, Callable[[Any], list[str]]] = {
    "critters-sheet": sheet_page,
    "critters-obedience": obedience_page,
    "critters-catalogue": catalogue_page,
    "critters-front": front_page,
    "critters-grids": grids_page,
    "critters-brightness": brightness_page,
    "critters-stages": stages_page,
    "fashion": fashion_page,
    "sag": sag_page,
}


def main() -> None:
    figures = {name: json.loads((OUT / f"{name}.json").read_text("utf-8")) for name in PAGES}
    parts = [
        "# Results",
        "",
        "All of this page, with its figures, is made by",
        "",
        "```console",
        "python benchmarks/critters.py sheet brightness obedience catalogue front grids "
        "--n 1667 --choice 100",
        "python benchmarks/fashion.py --data fashion.tar --choose 250 --weights 1.25 1.5 2 3",
        "python benchmarks/sag.py --n 334 --choose 200",
        "python benchmarks/results.py",
        "```",
        "",
        'after `pip install -e ".[hf,eval,plot]" -e "lab[critters]"`, with the models that ship, '
        "networks in bfloat16. What holds for these small models need not hold for another. "
        f"{CREDIT}",
    ]
    text = (OUT / "toy.md").read_text("utf-8")
    parts += claims_page(figures, text)
    for name, rows in figures.items():
        parts += PAGES[name](rows)
    parts += toy_page(text)
    plot_front(figures["critters-front"], OUT / "critters-front.png")
    (OUT.parent / "results.md").write_text("\n".join(parts) + "\n", "utf-8")


if __name__ == "__main__":
    main()
