"""Write a guidance and add it to another: unsharp masking of the predicted clean latents."""

import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from diffsteer import Guidance
from diffsteer.guidance import Branch, GuidanceState, Queries
from diffsteer.hf.load import load
from diffsteer.steering import steer


@dataclass(frozen=True, repr=False)
class Unsharp(Guidance):
    """Away from the prediction's own blur; costs no network evaluation beside CFG."""

    scale: float

    def shift(self, at: GuidanceState) -> Queries[Tensor]:
        """Yield the branches to evaluate; return what is added to x0, (B, C, H, W)."""
        (cond,) = yield (Branch(),)
        blurred = nn.functional.avg_pool2d(cond.x0, 3, 1, 1, count_include_pad=False)
        return self.scale * (cond.x0 - blurred)


pipe = load("critters", torch.float32)
pipe.set_progress_bar_config(disable=True)
guidances = "CFG(2)", "CFG(2) + Unsharp(0.4).within(0.0, 2.0)", "CFG(2) + Unsharp(1.0)"
figure, axes = plt.subplots(1, len(guidances), figsize=(10, 3.7), layout="constrained")
for text, ax in zip(guidances, axes, strict=True):
    with steer(pipe, text):  # the class is registered: its text parses like any other
        seed = torch.Generator().manual_seed(1)
        prompt = "a yellow happy critter with horns, on a blue background"
        ax.imshow(pipe(prompt, num_inference_steps=16, generator=seed).images[0])
    ax.set(title=text, xlabel=f"{prompt}, seed 1", xticks=[], yticks=[])
figure.savefig(Path(sys.argv[1]) / "own_guidance.png", dpi=90)
