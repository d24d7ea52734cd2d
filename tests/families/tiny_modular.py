"""Modular pipelines, from embeddings to latents, on the networks of the ordinary ones."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import tiny
import torch

from families import (
    tiny_guider_based,
    tiny_image_batched,
    tiny_image_encoded,
    tiny_image_separate,
    tiny_image_separate_b,
    tiny_video_audio,
    tiny_video_batched,
    tiny_video_images,
    tiny_video_separate,
)
from families.parts import TinyFamily, embeds, flow, prompt

KEPT = ("denoise",)
SIZE = {"height": 64, "width": 64}
CONTEXTS = ("pred_cond", "pred_uncond")


def modular(blocks: str, ordinary: Callable[[], Any], **more: Any) -> Any:
    """The denoising blocks of a modular pipeline on the parts of an ordinary one."""
    made = getattr(diffusers, blocks)()
    for name in [name for name in made.sub_blocks if name not in KEPT]:
        made.sub_blocks.pop(name)
    pipe, parts = made.init_pipeline(), ordinary()
    names = {c.name for c in made.expected_components} | set(made.init_pipeline().components)
    found = {n: getattr(parts, n) for n in names if getattr(parts, n, None) is not None}
    pipe.update_components(**found | more)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sampling(pipe: Any, **more: Any) -> dict[str, Any]:
    guided(pipe, 1.0)
    generator = torch.Generator().manual_seed(0)
    return {"num_inference_steps": 2, "generator": generator, "output": "latents"} | more


def guided(pipe: Any, scale: float, **more: Any) -> dict[str, Any]:
    """Set the pipeline's guiders; its call takes no scale."""
    names = [name for name in ("guider", "guider_2", "audio_guider") if hasattr(pipe, name)]
    guiders = {name: type(getattr(pipe, name))(guidance_scale=scale) for name in names}
    pipe.update_components(**guiders)
    return more


def sdxl() -> Any:
    scheduler = diffusers.EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012)
    with tempfile.TemporaryDirectory() as folder:
        return tiny.sdxl(scheduler, Path(folder))


def pooled(seed: int, prefix: str = "", width: int = 32) -> dict[str, Any]:
    return {
        f"{prefix}prompt_embeds": embeds(seed, 1, 5, width),
        f"{prefix}pooled_prompt_embeds": embeds(seed, 1, 32),
    }


def family(network_: str, blocks: str, build: Any, kwargs: Any, null: Any, **facts: Any) -> Any:
    """A family whose call takes the given prompts, and a null prompt where it is guided."""
    return TinyFamily(
        network_,
        blocks,
        "C",
        partial(modular, blocks, build),
        lambda pipe: sampling(pipe, **kwargs, **null),
        lambda pipe: guided(pipe, 4.0),
        **facts,
    )


def masked(seed: int, prefix: str = "") -> dict[str, Any]:
    return prompt(seed, prefix) | {f"{prefix}prompt_embeds_mask": torch.ones(1, 5).bool()}


NULL = prompt(2, "negative_")
THOUSANDTH = "timestep = t / 1000"
VIDEO = {"height": 32, "width": 32, "num_frames": 5}


def ltx2_prompt(seed: int, prefix: str = "") -> dict[str, Any]:
    return {
        f"{prefix}connector_prompt_embeds": embeds(seed, 1, 5, 16),
        f"{prefix}connector_audio_prompt_embeds": embeds(seed + 2, 1, 5, 16),
        f"{prefix}connector_attention_mask": torch.ones(1, 5, dtype=torch.long),
    }


FAMILIES = (
    family(
        "UNet2DConditionModel",
        "StableDiffusionXLAutoBlocks",
        sdxl,
        {"height": 16, "width": 16} | pooled(1, width=64),
        pooled(2, "negative_", width=64),
    ),
    family(
        "SD3Transformer2DModel",
        "StableDiffusion3AutoBlocks",
        lambda: tiny.sd3(flow()),
        SIZE | pooled(1),
        pooled(2, "negative_"),
    ),
    family(
        "QwenImageTransformer2DModel",
        "QwenImageAutoBlocks",
        tiny_image_separate.qwen_image,
        SIZE | masked(1),
        masked(2, "negative_"),
        time=THOUSANDTH,
        weights=None,
    ),
    family(
        "QwenImage21Transformer2DModel",
        "QwenImage21AutoBlocks",
        tiny_image_separate_b.qwen_image_21,
        SIZE | masked(1) | {"image_pad_mask": torch.zeros(1, 5, dtype=torch.bool)},
        masked(2, "negative_") | {"negative_image_pad_mask": torch.zeros(1, 5, dtype=torch.bool)},
        time=THOUSANDTH,
        output="+1 last 16 of axis 1",
        contexts=CONTEXTS,
    ),
    family(
        "Krea2Transformer2DModel",
        "Krea2AutoBlocks",
        tiny_image_separate.krea2,
        SIZE | masked(1) | {"prompt_embeds": embeds(1, 1, 5, 2, 16)},
        masked(2, "negative_") | {"negative_prompt_embeds": embeds(2, 1, 5, 2, 16)},
        time=THOUSANDTH,
    ),
    family(
        "Flux2Transformer2DModel",
        "Flux2KleinBaseAutoBlocks",
        tiny_image_separate.flux2,
        SIZE | prompt(1),
        NULL,
        time=THOUSANDTH,
    ),
    family(
        "ZImageTransformer2DModel",
        "ZImageAutoBlocks",
        tiny_image_batched.z_image,
        SIZE | {"prompt_embeds": [embeds(1, 5, 16)]},
        {"negative_prompt_embeds": [embeds(2, 7, 16)]},
        time="t = 1 - t / 1000",
        output="-1 reshaped",
    ),
    family(
        "ErnieImageTransformer2DModel",
        "ErnieImageAutoBlocks",
        tiny_image_encoded.ernie_image,
        SIZE | {"prompt_embeds": [embeds(1, 5, 16)]},
        {"negative_prompt_embeds": [embeds(2, 7, 16)]},
    ),
    family(
        "WanTransformer3DModel",
        "WanBlocks",
        partial(tiny_video_separate.wan, 16),
        VIDEO | prompt(1),
        NULL,
    ),
    family(
        "WanTransformer3DModel",
        "Wan22Blocks",
        partial(tiny_video_separate.wan_two, 16),
        VIDEO | prompt(1) | {"num_inference_steps": 3},
        NULL,
        components=("transformer", "transformer_2"),
    ),
    family(
        "LTXVideoTransformer3DModel",
        "LTXAutoBlocks",
        tiny_video_batched.ltx,
        {"height": 64, "width": 64, "num_frames": 9} | prompt(1, mask="prompt_attention_mask"),
        prompt(2, "negative_", mask="prompt_attention_mask"),
        contexts=CONTEXTS,
    ),
    family(
        "LTX2VideoTransformer3DModel",
        "LTX2AutoBlocks",
        tiny_video_audio.ltx2,
        {"height": 64, "width": 64, "num_frames": 9, "frame_rate": 24.0, "batch_size": 1}
        | {"dtype": torch.float32}
        | ltx2_prompt(1),
        ltx2_prompt(2, "negative_"),
        contexts=CONTEXTS,
    ),
    family(
        "HeliosTransformer3DModel",
        "HeliosAutoBlocks",
        tiny_video_images.helios,
        VIDEO | prompt(1) | {"history_sizes": [16, 2, 1]},
        NULL,
        time="timestep = int(t)",
        contexts=CONTEXTS,
    ),
    family(
        "HunyuanVideo15Transformer3DModel",
        "HunyuanVideo15AutoBlocks",
        partial(tiny_guider_based.hunyuan_video_15, 32),
        {"height": 64, "width": 64, "num_frames": 5, "batch_size": 1}
        | tiny_guider_based.two_prompts(1),
        tiny_guider_based.two_prompts(2, "negative_"),
        contexts=CONTEXTS,
    ),
)
