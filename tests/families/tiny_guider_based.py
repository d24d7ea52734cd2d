"""Pipelines that call as their guider says (pattern C), and one of two networks (pattern D)."""

from typing import Any

import torch
from diffusers import ClassifierFreeGuidance

from families import encoders
from families.parts import TinyFamily, embeds, flow, network, pipeline, prompt, sampling, wan_vae

HEADS = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 1}
CONTEXTS = ("pred_cond", "pred_uncond")


def guided(pipe: Any, scale: float) -> None:
    """Set the scale of the pipeline's guider: its call takes none."""
    pipe.guider = ClassifierFreeGuidance(guidance_scale=scale)


def two_prompts(seed: int, prefix: str = "") -> dict[str, Any]:
    mask = torch.ones(1, 5)
    return {
        f"{prefix}prompt_embeds": embeds(seed, 1, 5, 16),
        f"{prefix}prompt_embeds_mask": mask,
        f"{prefix}prompt_embeds_2": embeds(seed + 2, 1, 5, 16),
        f"{prefix}prompt_embeds_mask_2": mask,
    }


def hunyuan_image() -> Any:
    transformer = network(
        "HunyuanImageTransformer2DModel",
        in_channels=4,
        out_channels=4,
        **HEADS,
        num_single_layers=1,
        num_refiner_layers=1,
        mlp_ratio=1.0,
        text_embed_dim=16,
        text_embed_2_dim=16,
        rope_axes_dim=(8, 8),
    )
    return pipeline("HunyuanImagePipeline", scheduler=flow(shift=5.0), transformer=transformer)


def hunyuan_image_kwargs(pipe: Any) -> dict[str, Any]:
    guided(pipe, 1.0)
    return sampling(height=128, width=128) | two_prompts(1)


def hunyuan_image_guided(pipe: Any) -> dict[str, Any]:
    guided(pipe, 4.0)
    return two_prompts(2, "negative_")


def hunyuan_video_15(channels: int = 4) -> Any:
    transformer = network(
        "HunyuanVideo15Transformer3DModel",
        in_channels=2 * channels + 1,
        out_channels=channels,
        **HEADS,
        num_refiner_layers=1,
        mlp_ratio=1.0,
        text_embed_dim=16,
        text_embed_2_dim=16,
        image_embed_dim=16,
        rope_axes_dim=(4, 6, 6),
        target_size=64,
        task_type="t2v",
    )
    vae = network(
        "AutoencoderKLHunyuanVideo15",
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8, 8),
        layers_per_block=1,
    )
    parts = {"transformer": transformer, "vae": vae, "guider": ClassifierFreeGuidance()}
    return pipeline("HunyuanVideo15Pipeline", scheduler=flow(shift=5.0), **parts)


def hunyuan_video_kwargs(pipe: Any) -> dict[str, Any]:
    guided(pipe, 1.0)
    return sampling(height=64, width=64, num_frames=5) | two_prompts(1)


def motif_video() -> Any:
    transformer = network(
        "MotifVideoTransformer3DModel",
        in_channels=9,
        out_channels=4,
        **HEADS,
        num_single_layers=1,
        mlp_ratio=1.0,
        text_embed_dim=16,
        rope_axes_dim=(4, 6, 6),
    )
    parts = {"transformer": transformer, "guider": ClassifierFreeGuidance(), "vae": wan_vae()}
    return pipeline("MotifVideoPipeline", scheduler=flow(), **parts)


def motif_kwargs(pipe: Any) -> dict[str, Any]:
    guided(pipe, 1.0)
    size = {"height": 32, "width": 32, "num_frames": 5}
    return sampling(**size) | prompt(1, mask="prompt_attention_mask")


def motif_guided(pipe: Any) -> dict[str, Any]:
    guided(pipe, 4.0)
    return prompt(2, "negative_", mask="prompt_attention_mask")


def ideogram4() -> Any:
    """Ideogram 4, whose null prediction comes from a network of its own at any scale."""
    settings = {
        "in_channels": 16,
        "num_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "adaln_dim": 16,
        "llm_features_dim": 13 * 8,
        "mrope_section": (4, 2, 2),
    }
    return pipeline(
        "Ideogram4Pipeline",
        scheduler=flow(),
        transformer=network("Ideogram4Transformer2DModel", 0, **settings),
        unconditional_transformer=network("Ideogram4Transformer2DModel", 1, **settings),
        text_encoder=encoders.qwen3_vl(layers=36, width=8),
        tokenizer=encoders.spelling(chat_template=encoders.CHAT),
    )


def ideogram4_kwargs(_: Any) -> dict[str, Any]:
    more = {"prompt": "a cat", "max_sequence_length": 8, "height": 64, "width": 64}
    return sampling(**more, guidance_schedule=None, guidance_scale=1.0)


FAMILIES = (
    TinyFamily(
        "HunyuanImageTransformer2DModel",
        "HunyuanImagePipeline",
        "C",
        hunyuan_image,
        hunyuan_image_kwargs,
        hunyuan_image_guided,
        contexts=CONTEXTS,
    ),
    TinyFamily(
        "HunyuanVideo15Transformer3DModel",
        "HunyuanVideo15Pipeline",
        "C",
        hunyuan_video_15,
        hunyuan_video_kwargs,
        hunyuan_image_guided,
        contexts=CONTEXTS,
    ),
    TinyFamily(
        "MotifVideoTransformer3DModel",
        "MotifVideoPipeline",
        "C",
        motif_video,
        motif_kwargs,
        motif_guided,
        contexts=CONTEXTS,
    ),
    TinyFamily(
        "Ideogram4Transformer2DModel",
        "Ideogram4Pipeline",
        "D",
        ideogram4,
        ideogram4_kwargs,
        lambda _: {"guidance_scale": 4.0},
        time="timestep = 1 - t / 1000",
        output="-1 last 16 of axis 1",
        components=("transformer", "unconditional_transformer"),
    ),
)
