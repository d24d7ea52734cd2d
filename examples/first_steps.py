"""Steer the model that ships: the same seeds without guidance and with it, side by side."""

import sys
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from diffsteer import CFG
from diffsteer.hf.load import load
from diffsteer.steering import steer

PROMPTS = [
    "a green two-eyed bell critter with a sprout, smiling, on a red background",
    "a purple three-eyed critter with antennae, on a black background",
    "a cyan angry tower critter with antennae, frowning, on a white background",
]

pipe = load("critters", torch.float32)
pipe.set_progress_bar_config(disable=True)


def images(guidance_scale: float) -> list:
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))]
    settings = {"num_inference_steps": 16, "guidance_scale": guidance_scale}
    return pipe(PROMPTS, generator=generators, **settings).images


rows = {"no guidance": images(1)}
with steer(pipe, CFG(3)):
    rows["CFG(3)"] = images(2)  # any scale above 1: the pipeline then sends the null prompt
figure, axes = plt.subplots(2, len(PROMPTS), figsize=(9, 6.4), layout="constrained")
for (name, row), line in zip(rows.items(), axes, strict=True):
    for seed, (image, ax) in enumerate(zip(row, line, strict=True)):
        ax.imshow(image)
        ax.set(title=textwrap.fill(PROMPTS[seed], 30), xticks=[], yticks=[])
        ax.set_xlabel(f"{name}, seed {seed}")
figure.savefig(Path(sys.argv[1]) / "first_steps.png", dpi=90)
