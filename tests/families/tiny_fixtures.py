"""Families of the pipelines of tests/tiny.py, called once a step (pattern A) or distilled (E)."""

import tempfile
from pathlib import Path
from typing import Any

import diffusers
import tiny
import torch

from families.parts import TinyFamily, embeds, flow, image, sampling

SIZE = {"height": 16, "width": 16}
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def ddim(**more: Any) -> Any:
    return diffusers.DDIMScheduler(clip_sample=False, **more)


def in_folder(build: Any, *args: Any, **kwargs: Any) -> Any:
    """A pipeline whose fixture writes its tokenizer into a folder."""
    with tempfile.TemporaryDirectory() as folder:
        return build(*args, Path(folder), **kwargs)


def pix2pix() -> Any:
    """InstructPix2Pix, of three conditions: prompt and image, image, neither."""
    parts = in_folder(tiny.stable_diffusion, ddim(**SD)).components
    parts |= {"unet": tiny.unet(in_channels=8)}
    pipe = diffusers.StableDiffusionInstructPix2PixPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sd_prompt(seed: int, prefix: str = "") -> dict[str, Any]:
    return {f"{prefix}prompt_embeds": embeds(seed, 1, 5, 32)}


def pooled_prompt(seed: int, prefix: str = "", width: int = 32) -> dict[str, Any]:
    return {
        f"{prefix}prompt_embeds": embeds(seed, 1, 5, width),
        f"{prefix}pooled_prompt_embeds": embeds(seed, 1, 32),
    }


def pixart_prompt(seed: int, prefix: str = "") -> dict[str, Any]:
    return sd_prompt(seed, prefix) | {f"{prefix}prompt_attention_mask": torch.ones(1, 5)}


FAMILIES = (
    TinyFamily(
        "UNet2DConditionModel",
        "StableDiffusionPipeline",
        "A",
        lambda: in_folder(tiny.stable_diffusion, ddim(**SD)),
        lambda _: sampling(guidance_scale=1.0, **sd_prompt(1)),
        lambda _: {"guidance_scale": 4.0} | sd_prompt(2, "negative_"),
    ),
    TinyFamily(
        "UNet2DConditionModel",
        "StableDiffusionXLPipeline",
        "A",
        lambda: in_folder(tiny.sdxl, diffusers.EulerDiscreteScheduler(**SD)),
        lambda _: sampling(**SIZE, guidance_scale=1.0, **pooled_prompt(1, width=64)),
        lambda _: {"guidance_scale": 4.0} | pooled_prompt(2, "negative_", width=64),
    ),
    TinyFamily(
        "UNet2DConditionModel",
        "StableDiffusionInstructPix2PixPipeline",
        "A",
        pix2pix,
        lambda _: sampling(guidance_scale=1.0, image=image(size=16), **sd_prompt(1)),
        lambda _: {"guidance_scale": 4.0, "image_guidance_scale": 2.0} | sd_prompt(2, "negative_"),
        batches=(3,),
        weights=(4.0, -2.0, -1.0),
    ),
    TinyFamily(
        "UNet2DModel",
        "DDIMPipeline",
        "E",
        lambda: tiny.unconditional(diffusers.DDIMScheduler()),
        lambda _: sampling(output_type="np"),
        None,
    ),
    TinyFamily(
        "FluxTransformer2DModel",
        "FluxPipeline",
        "E",
        lambda: in_folder(tiny.flux),
        lambda _: sampling(**SIZE, guidance_scale=1.0, max_sequence_length=5, **pooled_prompt(1)),
        None,
        time="timestep = t / 1000",
        variant="distilled",
    ),
    TinyFamily(
        "SD3Transformer2DModel",
        "StableDiffusion3Pipeline",
        "A",
        lambda: tiny.sd3(flow()),
        lambda _: sampling(**SIZE, guidance_scale=1.0, **pooled_prompt(1)),
        lambda _: {"guidance_scale": 4.0} | pooled_prompt(2, "negative_"),
    ),
    TinyFamily(
        "PixArtTransformer2DModel",
        "PixArtAlphaPipeline",
        "A",
        lambda: tiny.pixart(ddim()),
        lambda _: (
            sampling(**SIZE, guidance_scale=1.0, **pixart_prompt(1))
            | {"use_resolution_binning": False, "negative_prompt": None}
        ),
        lambda _: {"guidance_scale": 4.0} | pixart_prompt(2, "negative_"),
        output="+1 first 4 of axis 1",
    ),
    TinyFamily(
        "DiTTransformer2DModel",
        "DiTPipeline",
        "A",
        lambda: tiny.dit(ddim()),
        lambda _: sampling(output_type="np", guidance_scale=1.0, class_labels=[1]),
        lambda _: {"guidance_scale": 4.0},  # the scheduler's sample is both conditions
        output="+1 first 4 of axis 1",
        weights=(4.0, -3.0),
    ),
)
