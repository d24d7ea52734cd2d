"""Steer any diffusers pipeline: here a class-conditional DiT with tiny random components."""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

from diffsteer.steering import steer

GUIDANCE = 'CFG(4) + PAG(2, layer="transformer_blocks.1")'
torch.manual_seed(0)
network = DiTTransformer2DModel(
    num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2
)
vae = AutoencoderKL(block_out_channels=(16, 16), norm_num_groups=8, latent_channels=4)
for weight in network.parameters():  # DiT starts at zero, where nothing depends on the class
    torch.nn.init.normal_(weight, std=0.1)
pipe = DiTPipeline(network.eval(), vae.eval(), DDIMScheduler(clip_sample=False))
pipe.set_progress_bar_config(disable=True)


def sampled() -> np.ndarray:
    """One image, (32, 32, 3), in [0, 1]."""
    seed = torch.Generator().manual_seed(0)
    return pipe([7], num_inference_steps=8, generator=seed, output_type="np").images[0]


before = sampled()
with steer(pipe, GUIDANCE):
    guided = sampled()
assert (sampled() == before).all()  # the pipeline is as it was
images = {"before and after": before, GUIDANCE: guided, "difference": abs(guided - before)}
_, axes = plt.subplots(1, 3, figsize=(11, 4.2), layout="constrained")
for (name, image), ax in zip(images.items(), axes, strict=True):
    ax.imshow(image)
    ax.set(title=name, xlabel="random weights, class 7, seed 0", xticks=[], yticks=[])
plt.savefig(Path(sys.argv[1]) / "own_pipeline.png", dpi=90)
