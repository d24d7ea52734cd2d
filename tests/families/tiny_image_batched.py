"""Image transformers that pipelines call once a step, the conditions in the batch (pattern A)."""

from functools import partial
from typing import Any

import diffusers
import torch

from families.parts import TinyFamily, embeds, flow, kl_vae, network, pipeline, prompt, sampling

MASK = "prompt_attention_mask"
SIZE = {"height": 64, "width": 64}
SMALL = {"height": 64, "width": 64, "use_resolution_binning": False}
BLOCKS = {"num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2}
ROPE = {"axes_dims_rope": (4, 6, 6)}


def kwargs(_: Any, mask: str = "", size: Any = SIZE, **more: Any) -> dict[str, Any]:
    return sampling(**size, guidance_scale=1.0) | prompt(1, mask=mask) | more


def cfg(_: Any, mask: str = "", **more: Any) -> dict[str, Any]:
    return {"guidance_scale": 4.0} | prompt(2, "negative_", mask=mask) | more


def aura_flow() -> Any:
    transformer = network(
        "AuraFlowTransformer2DModel",
        sample_size=8,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=32,
        pos_embed_max_size=64,
    )
    return pipeline("AuraFlowPipeline", scheduler=flow(), transformer=transformer)


def sana() -> Any:
    transformer = network(
        "SanaTransformer2DModel",
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        mlp_ratio=1.0,
        sample_size=8,
    )
    return pipeline("SanaPipeline", scheduler=flow(), transformer=transformer)


def hunyuan_dit() -> Any:
    transformer = network(
        "HunyuanDiT2DModel",
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        patch_size=2,
        sample_size=8,
        hidden_size=16,
        num_layers=2,
        mlp_ratio=1.0,
        cross_attention_dim=16,
        cross_attention_dim_t5=16,
        pooled_projection_dim=16,
        text_len=5,
        text_len_t5=5,
    )
    scheduler = diffusers.DDPMScheduler(prediction_type="v_prediction")
    return pipeline("HunyuanDiTPipeline", scheduler=scheduler, transformer=transformer)


def hidream() -> Any:
    transformer = network(
        "HiDreamImageTransformer2DModel",
        patch_size=2,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        caption_channels=[16, 16],
        text_emb_dim=16,
        axes_dims_rope=(8, 4, 4),
        max_resolution=(8, 8),
        llama_layers=[0, 1],
        force_inference_output=True,
    )
    pipe = pipeline("HiDreamImagePipeline", scheduler=flow(), transformer=transformer)
    pipe.default_sample_size = 8  # all sizes are brought to that area
    return pipe


def lumina() -> Any:
    transformer = network(
        "LuminaNextDiT2DModel",
        sample_size=8,
        hidden_size=32,
        num_layers=2,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        cross_attention_dim=16,
    )
    return pipeline("LuminaPipeline", scheduler=flow(), transformer=transformer)


def z_image() -> Any:
    transformer = network(
        "ZImageTransformer2DModel",
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 6, 6],
        axes_lens=[64, 16, 16],
    )
    scheduler = flow(use_dynamic_shifting=True)
    return pipeline("ZImagePipeline", scheduler=scheduler, transformer=transformer)


def bria() -> Any:
    transformer = network(
        "BriaTransformer2DModel",
        in_channels=16,
        num_single_layers=1,
        joint_attention_dim=16,
        **BLOCKS | ROPE,
    )
    return pipeline("BriaPipeline", scheduler=flow(), transformer=transformer, vae=kl_vae(blocks=3))


def cogview3() -> Any:
    transformer = network(
        "CogView3PlusTransformer2DModel",
        in_channels=4,
        out_channels=4,
        text_embed_dim=16,
        time_embed_dim=16,
        condition_dim=8,
        pos_embed_max_size=8,
        sample_size=8,
        **BLOCKS,
    )
    scheduler = diffusers.CogVideoXDDIMScheduler(prediction_type="v_prediction")
    return pipeline("CogView3PlusPipeline", scheduler=scheduler, transformer=transformer)


def prx() -> Any:
    transformer = network(
        "PRXTransformer2DModel",
        in_channels=4,
        context_in_dim=16,
        hidden_size=32,
        mlp_ratio=1.0,
        num_heads=2,
        depth=2,
        axes_dim=[8, 8],
    )
    return pipeline("PRXPipeline", scheduler=flow(), transformer=transformer, text_encoder=None)


def hunyuan_prompt(seed: int, prefix: str = "") -> dict[str, Any]:
    mask = torch.ones(1, 5, dtype=torch.long)
    return {
        f"{prefix}prompt_embeds": embeds(seed, 1, 5, 16),
        f"{prefix}prompt_embeds_2": embeds(seed + 2, 1, 5, 16),
        f"{prefix}prompt_attention_mask": mask,
        f"{prefix}prompt_attention_mask_2": mask,
    }


def hidream_prompt(seed: int, prefix: str = "") -> dict[str, Any]:
    return {
        f"{prefix}prompt_embeds_t5": embeds(seed, 1, 5, 16),
        f"{prefix}prompt_embeds_llama3": embeds(seed, 2, 1, 5, 16),
        ("negative_" if prefix else "") + "pooled_prompt_embeds": embeds(seed, 1, 16),
    }


FAMILIES = (
    TinyFamily(
        "AuraFlowTransformer2DModel",
        "AuraFlowPipeline",
        "A",
        aura_flow,
        partial(kwargs, mask=MASK),
        partial(cfg, mask=MASK),
        time="timestep = t / 1000",
    ),
    TinyFamily(
        "SanaTransformer2DModel",
        "SanaPipeline",
        "A",
        sana,
        partial(
            kwargs, mask=MASK, size=SMALL | {"height": 256, "width": 256}, negative_prompt=None
        ),
        partial(cfg, mask=MASK),
    ),
    TinyFamily(
        "HunyuanDiT2DModel",
        "HunyuanDiTPipeline",
        "A",
        hunyuan_dit,
        lambda _: sampling(**SMALL, guidance_scale=1.0) | hunyuan_prompt(1),
        lambda _: {"guidance_scale": 4.0} | hunyuan_prompt(2, "negative_"),
        output="+1 first 4 of axis 1",
    ),
    TinyFamily(
        "HiDreamImageTransformer2DModel",
        "HiDreamImagePipeline",
        "A",
        hidream,
        lambda _: sampling(**SIZE, guidance_scale=1.0) | hidream_prompt(1),
        lambda _: {"guidance_scale": 4.0} | hidream_prompt(2, "negative_"),
        time="timesteps = t",
        output="-1",
    ),
    TinyFamily(
        "LuminaNextDiT2DModel",
        "LuminaPipeline",
        "A",
        lumina,
        partial(kwargs, mask=MASK),
        partial(cfg, mask=MASK),
        time="timestep = 1 - t / 1000",
        output="-1 first 4 of axis 1",
        weights=None,
    ),
    TinyFamily(
        "ZImageTransformer2DModel",
        "ZImagePipeline",
        "A",
        z_image,
        lambda _: sampling(**SIZE, guidance_scale=0.0, prompt_embeds=[embeds(1, 5, 16)]),
        lambda _: {"guidance_scale": 4.0, "negative_prompt_embeds": [embeds(2, 7, 16)]},
        time="t = 1 - t / 1000",
        output="-1 reshaped",
        weights=(5.0, -4.0),
    ),
    TinyFamily("BriaTransformer2DModel", "BriaPipeline", "A", bria, kwargs, cfg),
    TinyFamily(
        "CogView3PlusTransformer2DModel", "CogView3PlusPipeline", "A", cogview3, kwargs, cfg
    ),
    TinyFamily(
        "PRXTransformer2DModel",
        "PRXPipeline",
        "A",
        prx,
        partial(kwargs, mask=MASK, size=SMALL),
        partial(cfg, mask=MASK),
        time="timestep = t / 1000",
    ),
)
