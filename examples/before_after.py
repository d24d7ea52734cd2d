"""Draw what each method does to the same prompts and seeds: schedule, guidance, refined noise."""

import sys
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from diffsteer import load, steer

PROMPTS = (
    "a purple three-eyed critter with antennae, on a black background",
    "a green two-eyed bell critter with horns, smiling, on a white background",
    "a cyan angry tower critter with antennae, frowning, on a black background",
    "an orange happy squat critter with round ears, toothy, on a white background",
    "a yellow one-eyed dome critter with antennae, gasping, on a black background",
    "a pink sleepy block critter with pointed ears, smiling, on a white background",
)
ROWS = {
    "published schedule\nno guidance": ("critters-eps", {}),
    "zero terminal SNR\nno guidance": ("critters", {}),
    "zero terminal SNR\nCFG(3)": ("critters", {"guidance": "CFG(3)"}),
    "zero terminal SNR\nrefined noise": ("critters", {"refiner": "critters-refiner"}),
}
figure, axes = plt.subplots(len(ROWS), 6, figsize=(11.8, 7.6), layout="constrained")
for (name, (model, method)), row in zip(ROWS.items(), axes, strict=True):
    pipe = load(model, torch.float32)
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))]
    options = {"num_inference_steps": 16, "generator": generators}
    options["guidance_scale"] = 3 if "guidance" in method else 1
    handle = steer(pipe, **method) if method else None  # changed until remove()
    for image, ax in zip(pipe(list(PROMPTS), **options).images, row, strict=True):
        ax.imshow(image)
        ax.set(xticks=[], yticks=[])
    row[0].set_ylabel(name, fontsize=11)
    _ = handle and handle.remove()
for seed, (prompt, ax) in enumerate(zip(PROMPTS, axes[0], strict=True)):
    ax.set_title(textwrap.fill(prompt, 27) + f"\nseed {seed}", fontsize=8)
figure.savefig(Path(sys.argv[1]) / "before_after.png", dpi=80)
