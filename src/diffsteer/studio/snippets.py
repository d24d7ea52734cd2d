"""A recipe as text for other places: Python, the command line, ComfyUI."""

import json
from typing import Any

from diffsteer.generate.recipe import Recipe
from diffsteer.io.seeds import format_seeds


def python(recipe: Recipe, seeds: list[int]) -> str:
    """Program that makes the same images, SEED.png."""
    arguments = "".join(f"    {name}={value!r},\n" for name, value in recipe.changed.items())
    return (
        "from PIL import Image\n\n"
        "from diffsteer import Recipe, open_generator\n\n"
        f"recipe = Recipe(\n{arguments})\n"
        "with open_generator(recipe) as generate:\n"
        f"    for seed in {seeds}:\n"
        "        (pixels,) = generate([seed])\n"
        "        image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())\n"
        '        image.save(f"{seed:06d}.png")\n'
    )


def command(recipe: Recipe, seeds: list[int]) -> str:
    """Command that makes the same images."""
    return recipe.command("--seeds", format_seeds(seeds), "--batch", "1", "--out", "images")


def comfyui(recipe: Recipe, seeds: list[int]) -> str:
    """Nodes of the pack in `comfyui/`, in the API format of ComfyUI."""
    model: list[Any] = ["model", 0]
    nodes: dict[str, Any] = {
        "model": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": recipe.model}},
        "prompt": {
            "class_type": "CLIPTextEncode",
            "inputs": {"clip": ["model", 1], "text": recipe.prompt},
        },
        "negative": {
            "class_type": "CLIPTextEncode",
            "inputs": {"clip": ["model", 1], "text": recipe.negative},
        },
    }
    if recipe.zero_snr:
        nodes["zero"] = {"class_type": "DiffsteerZeroSNR", "inputs": {"model": model}}
        model = ["zero", 0]
    guided = {"model": model, "positive": ["prompt", 0], "negative": ["negative", 0]}
    sliders = {"w": 6.0, "p": 3.0, "s": 0.5, "a": 2.0}
    nodes["guider"] = {
        "class_type": "DiffsteerGuider",
        "inputs": {**guided, "guidance": recipe.guidance or "CFG(1)", **sliders},
    }
    spaced = {"model": model, "steps": recipe.steps, "spacing": recipe.spacing}
    nodes["sigmas"] = {"class_type": "DiffsteerSigmas", "inputs": spaced}
    nodes["noise"] = {"class_type": "RandomNoise", "inputs": {"noise_seed": seeds[0]}}
    return json.dumps(nodes, indent=1)
