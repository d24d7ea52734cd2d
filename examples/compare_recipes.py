"""Measure two recipes on the same seeds: edges and background (grey levels of 255), and cost."""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
from torch import Tensor

from diffsteer.generate.pipelines import open_pipeline
from diffsteer.generate.recipe import Recipe
from diffsteer.metrics.background import errors
from diffsteer.metrics.sharpness import edges

PROMPT = "a green two-eyed bell critter with a sprout, smiling, on a red background"
RED, SEEDS = (220, 40, 40), range(6)
GUIDANCES = ("", "CFG(3)")

figure, axes = plt.subplots(2, len(SEEDS), figsize=(11, 4.4), layout="constrained")
measured: list[Tensor] = []
for guidance, line in zip(GUIDANCES, axes, strict=True):
    name = guidance or "no guidance"
    recipe = Recipe(model="critters", prompt=PROMPT, guidance=guidance, steps=10)
    with open_pipeline(recipe, "cpu") as generate:
        images = generate(SEEDS)  # (6, 3, 64, 64), uint8; a seed is the same in any batch
        evaluations = generate.nfe()["rows"] / len(SEEDS)
    measured.append(edges(images))
    error = errors(images, [RED] * len(images)).mean()
    cost = f"{evaluations:.0f} network evaluations an image"
    print(f"{name:12} edges {measured[-1].mean():.2f}, background error {error:.1f}, {cost}")
    for seed, ax in zip(SEEDS, line, strict=True):
        ax.imshow(images[seed].permute(1, 2, 0))
        label = f"{name}, seed {seed}\nedges {measured[-1][seed]:.1f}"
        ax.set(xlabel=label, xticks=[], yticks=[])
change = measured[1] - measured[0]  # paired: the same seeds start from the same noise
error = change.std() / len(change) ** 0.5
title = f"{PROMPT}: edges change by {change.mean():.2f} (standard error {error:.2f})"
figure.suptitle(title)
figure.savefig(Path(sys.argv[1]) / "compare_recipes.png", dpi=90)
