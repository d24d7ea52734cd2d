"""A recipe as text for other places: Python, the command line, ComfyUI."""

import json
from pathlib import Path
from typing import Any

from diffsteer.core.errors import InputError
from diffsteer.core.sampler import DDIM, EulerAncestral
from diffsteer.generate.pipelines import scheduler_of
from diffsteer.generate.recipe import Recipe
from diffsteer.hf.scheduler_config import spacing_of
from diffsteer.io.seeds import format_seeds

SLIDERS = {"w": 6.0, "p": 3.0, "s": 0.5, "a": 2.0}
"""Numbers that an expression in ComfyUI may name."""
SAMPLERS = {
    **dict.fromkeys((str(DDIM()), "DDIMScheduler", "EulerDiscreteScheduler"), "euler"),
    **dict.fromkeys((str(EulerAncestral), "EulerAncestralDiscreteScheduler"), "euler_ancestral"),
    **dict.fromkeys(("DPMpp2M()", "DPMSolverMultistepScheduler"), "dpmpp_2m"),
    **dict.fromkeys(("UniPC()", "UniPCMultistepScheduler"), "uni_pc"),
    **dict.fromkeys(("Heun()", "HeunDiscreteScheduler"), "heun"),
}
"""Samplers of ComfyUI for ours and for schedulers of diffusers, which step alike."""


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


def comfyui(recipe: Recipe, seeds: list[int], scheduler: Any, latent: tuple[int, ...]) -> str:
    """Workflow for ComfyUI with the nodes of the pack in `comfyui/`, of the first seed.

    Args:
        recipe: Of the image.
        seeds: Of the images.
        scheduler: Of the model, which samples where the recipe names no sampler.
        latent: Shape of the model's samples, `(C, H, W)`; empty where its network is no UNet.

    Raises:
        InputError: ComfyUI has no nodes for it.
    """
    if latent[:1] != (4,):
        raise InputError(
            "whole workflows are for Stable Diffusion 1, 2 and XL: for other models put the node "
            "diffsteer guider into a workflow of yours, with the expression"
        )
    made = scheduler_of(recipe, scheduler)
    size = {"width": recipe.width or 8 * latent[2], "height": recipe.height or 8 * latent[1]}
    nodes = _models(recipe, made)
    model = [list(nodes)[-1], 0]
    spacing = spacing_of(made.config) or "leading"
    nodes |= {
        "prompt": _node("CLIPTextEncode", clip=["model", 1], text=recipe.prompt),
        "negative": _node("CLIPTextEncode", clip=["model", 1], text=recipe.negative),
        "noise": _node("RandomNoise", noise_seed=seeds[0]),
        "latent": _node("EmptyLatentImage", batch_size=1, **size),
        "sampler": _node("KSamplerSelect", sampler_name=_sampler(made)),
        "sigmas": _node("DiffsteerSigmas", model=model, steps=recipe.steps, spacing=spacing),
    }
    guided = {"model": model, "positive": ["prompt", 0], "negative": ["negative", 0]}
    if recipe.guide:
        nodes["guide"] = _checkpoint(recipe.guide)
        guided["guide"] = ["guide", 0]
    guidance = recipe.guidance or "CFG(1)"
    nodes["guider"] = _node("DiffsteerGuider", guidance=guidance, **SLIDERS, **guided)
    sockets = {name: [name, 0] for name in ("noise", "guider", "sampler", "sigmas")}
    return json.dumps({
        **nodes,
        "samples": _node("SamplerCustomAdvanced", latent_image=["latent", 0], **sockets),
        "image": _node("VAEDecode", samples=["samples", 0], vae=["model", 2]),
        "save": _node("SaveImage", images=["image", 0], filename_prefix="diffsteer"),
    }, indent=1)  # fmt: skip


def _node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def _checkpoint(model: str) -> dict[str, Any]:
    """Loader of a checkpoint, which has a name of its own in the user's ComfyUI."""
    name = Path(model).name.removesuffix(".safetensors")
    return _node("CheckpointLoaderSimple", ckpt_name=f"{name}.safetensors")


def _models(recipe: Recipe, scheduler: Any) -> dict[str, Any]:
    """Loader, and after it what changes the model; the last is what is sampled."""
    nodes = {"model": _checkpoint(recipe.model)}
    if scheduler.config.get("rescale_betas_zero_snr"):
        nodes["zero"] = _node("DiffsteerZeroSNR", model=["model", 0])
    if recipe.refiner:
        before = [list(nodes)[-1], 0]
        values = {"refiner": recipe.refiner, "strength": recipe.strength, "any_model": False}
        nodes["refined"] = _node("DiffsteerRefine", model=before, **values)
    return nodes


def _sampler(scheduler: Any) -> str:
    own = getattr(scheduler, "sampler", None)
    name = type(scheduler).__name__ if own is None else str(own)
    if name not in SAMPLERS:
        raise InputError(f"ComfyUI has no sampler like {name}: choose DDIM(), DPMpp2M() or UniPC()")
    return SAMPLERS[name]
