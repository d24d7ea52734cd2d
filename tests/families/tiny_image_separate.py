"""Image transformers that pipelines call once a condition (pattern B)."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import tiny
import torch

from families import encoders
from families.parts import TinyFamily, embeds, flow, network, pipeline, prompt, sampling

DYNAMIC = {"use_dynamic_shifting": True}
SIZE = {"height": 64, "width": 64}  # 8x8 latents, 4x4 tokens of 2x2


def true_cfg(_: Any, length: int = 5) -> dict[str, Any]:
    return {"true_cfg_scale": 4.0, "negative_prompt_embeds": embeds(2, 1, length, 16)}


def cfg(_: Any, length: int = 5) -> dict[str, Any]:
    return {"guidance_scale": 4.0, "negative_prompt_embeds": embeds(2, 1, length, 16)}


def prompted(_: Any, **more: Any) -> dict[str, Any]:
    """A call without guidance, from an embedding."""
    return sampling(**SIZE, guidance_scale=1.0) | prompt(1) | more


def qwen_transformer() -> Any:
    return network(
        "QwenImageTransformer2DModel",
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
    )


def qwen_image() -> Any:
    parts = {"scheduler": flow(**DYNAMIC), "transformer": qwen_transformer()}
    return pipeline("QwenImagePipeline", **parts)


def chroma() -> Any:
    transformer = network(
        "ChromaTransformer2DModel",
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
        approximator_num_channels=16,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    return pipeline("ChromaPipeline", scheduler=flow(**DYNAMIC), transformer=transformer)


def cogview4() -> Any:
    transformer = network(
        "CogView4Transformer2DModel",
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        text_embed_dim=16,
        time_embed_dim=16,
        condition_dim=8,
        sample_size=8,
        rope_axes_dim=(16, 16),
    )
    return pipeline("CogView4Pipeline", scheduler=flow(**DYNAMIC), transformer=transformer)


def flux() -> Any:
    """Flux without its distilled guidance, whose own guidance is `true_cfg_scale`."""
    with tempfile.TemporaryDirectory() as folder:
        return tiny.flux(Path(folder), distilled=False)


def flux2(distilled: bool = False) -> Any:
    transformer = network(
        "Flux2Transformer2DModel",
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=distilled,
    )
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
    )
    scheduler = flow(**DYNAMIC)
    return pipeline("Flux2KleinPipeline", scheduler=scheduler, transformer=transformer, vae=vae)


def lumina2() -> Any:
    transformer = network(
        "Lumina2Transformer2DModel",
        sample_size=8,
        in_channels=4,
        hidden_size=32,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 6, 6),
        axes_lens=(32, 16, 16),
        cap_feat_dim=16,
    )
    return pipeline("Lumina2Pipeline", scheduler=flow(), transformer=transformer)


def longcat_image() -> Any:
    transformer = network(
        "LongCatImageTransformer2DModel",
        in_channels=64,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    pipe = pipeline(
        "LongCatImagePipeline",
        scheduler=flow(**DYNAMIC),
        transformer=transformer,
        text_encoder=encoders.qwen_vl(),
        tokenizer=encoders.spelling(),
    )
    pipe.tokenizer_max_length = 8
    return pipe


def ovis_image() -> Any:
    transformer = network(
        "OvisImageTransformer2DModel",
        in_channels=16,
        out_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    return pipeline("OvisImagePipeline", scheduler=flow(**DYNAMIC), transformer=transformer)


def krea2() -> Any:
    """Krea 2, whose prompt is the hidden states of several layers: (B, N, layers, C)."""
    transformer = network(
        "Krea2Transformer2DModel",
        in_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        timestep_embed_dim=16,
        text_hidden_dim=16,
        num_text_layers=2,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=32,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
    )
    return pipeline("Krea2Pipeline", scheduler=flow(**DYNAMIC), transformer=transformer)


FLUX = {"prompt_embeds": embeds(1, 1, 5, 32), "pooled_prompt_embeds": embeds(1, 1, 32)}

FAMILIES = (
    TinyFamily(
        "QwenImageTransformer2DModel",
        "QwenImagePipeline",
        "B",
        qwen_image,
        lambda _: sampling(**SIZE) | prompt(1),
        partial(true_cfg, length=7),
        contexts=("cond", "uncond"),
        time="timestep = t / 1000",
        weights=None,
    ),
    TinyFamily(
        "ChromaTransformer2DModel",
        "ChromaPipeline",
        "B",
        chroma,
        partial(prompted, prompt_attention_mask=embeds(1, 1, 5) * 0 + 1),
        lambda _: cfg(_, 7) | {"negative_prompt_attention_mask": embeds(1, 1, 7) * 0 + 1},
        time="timestep = t / 1000",
    ),
    TinyFamily(
        "CogView4Transformer2DModel",
        "CogView4Pipeline",
        "B",
        cogview4,
        prompted,
        partial(cfg, length=5),
        contexts=("cond", "uncond"),
    ),
    TinyFamily(
        "FluxTransformer2DModel",
        "FluxPipeline",
        "B",
        flux,
        lambda _: sampling(height=16, width=16) | FLUX,
        lambda _: {"true_cfg_scale": 4.0} | {f"negative_{k}": -v for k, v in FLUX.items()},
        contexts=("cond", "uncond"),
        time="timestep = t / 1000",
    ),
    TinyFamily(
        "Flux2Transformer2DModel",
        "Flux2KleinPipeline",
        "B",
        flux2,
        prompted,
        partial(cfg, length=7),
        contexts=("cond", "uncond"),
        time="timestep = t / 1000",
    ),
    TinyFamily(
        "Lumina2Transformer2DModel",
        "Lumina2Pipeline",
        "B",
        lumina2,
        partial(prompted, prompt_attention_mask=torch.ones(1, 5, dtype=torch.long)),
        lambda _: cfg(_) | {"negative_prompt_attention_mask": torch.ones(1, 5, dtype=torch.long)},
        time="timestep = 1 - t / 1000",
        output="-1",
        weights=None,
    ),
    TinyFamily(
        "LongCatImageTransformer2DModel",
        "LongCatImagePipeline",
        "B",
        longcat_image,
        lambda _: sampling(**SIZE, prompt="a cat", guidance_scale=1.0, enable_prompt_rewrite=False),
        lambda _: {"guidance_scale": 4.0},
        contexts=("cond", "uncond"),
        time="timestep = t / 1000",
        weights=None,
    ),
    TinyFamily(
        "OvisImageTransformer2DModel",
        "OvisImagePipeline",
        "B",
        ovis_image,
        partial(prompted, negative_prompt=None),
        partial(cfg, length=7),
        contexts=("cond", "uncond"),
        time="timestep = t / 1000",
    ),
    TinyFamily(
        "Krea2Transformer2DModel",
        "Krea2Pipeline",
        "B",
        krea2,
        lambda _: sampling(
            **SIZE,
            guidance_scale=0.0,
            prompt_embeds=embeds(1, 1, 5, 2, 16),
            prompt_embeds_mask=torch.ones(1, 5, dtype=torch.bool),
        ),
        lambda _: {
            "guidance_scale": 4.0,
            "negative_prompt_embeds": embeds(2, 1, 5, 2, 16),
            "negative_prompt_embeds_mask": torch.ones(1, 5, dtype=torch.bool),
        },
        time="timestep = t / 1000",
        weights=(5.0, -4.0),
    ),
)
