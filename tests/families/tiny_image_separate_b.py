"""Image transformers called once a condition (pattern B), whose pipelines keep latents unpacked."""

from typing import Any

import torch

from families import encoders
from families.parts import TinyFamily, embeds, flow, network, pipeline, sampling

DYNAMIC = {"use_dynamic_shifting": True}
SIZE = {"height": 64, "width": 64}


def mask(length: int) -> torch.Tensor:
    return torch.ones(1, length, dtype=torch.long)


def prompted(_: Any) -> dict[str, Any]:
    prompt = {"prompt_embeds": embeds(1, 1, 5, 16), "prompt_embeds_mask": mask(5)}
    return sampling(**SIZE, guidance_scale=1.0) | prompt


def cfg(_: Any) -> dict[str, Any]:
    null = {"negative_prompt_embeds": embeds(2, 1, 7, 16), "negative_prompt_embeds_mask": mask(7)}
    return {"guidance_scale": 4.0} | null


def true_cfg(_: Any) -> dict[str, Any]:
    kwargs = cfg(_)
    return {"true_cfg_scale": kwargs.pop("guidance_scale")} | kwargs


def nucleus() -> Any:
    transformer = network(
        "NucleusMoEImageTransformer2DModel",
        in_channels=16,
        out_channels=4,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
        mlp_ratio=8.0,
        dense_moe_strategy="leave_first_block_dense",
        num_experts=2,
        moe_intermediate_dim=16,
        capacity_factors=[2.0] * 3,
    )
    return pipeline("NucleusMoEImagePipeline", scheduler=flow(**DYNAMIC), transformer=transformer)


def glm_image() -> Any:
    transformer = network(
        "GlmImageTransformer2DModel",
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        text_embed_dim=16,
        time_embed_dim=16,
        condition_dim=8,
        prior_vq_quantizer_codebook_size=16,
    )
    return pipeline("GlmImagePipeline", scheduler=flow(**DYNAMIC), transformer=transformer)


def qwen_image_21() -> Any:
    transformer = network(
        "QwenImage21Transformer2DModel",
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        context_in_dim=16,
        mlp_ratio=1,
        axes_dims_rope=(4, 6, 6),
    )
    parts = {"transformer": transformer, "processor": encoders.processor()}
    return pipeline("QwenImage21Pipeline", scheduler=flow(**DYNAMIC), **parts)


def bria_fibo2() -> Any:
    transformer = network(
        "BriaFibo2Transformer2DModel",
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        cap_feat_dim=16,
        injection_layer_ids=(1,),
        perceiver_num_layers=1,
        min_num_gist_tokens=2,
        max_num_gist_tokens=4,
        gist_step=2,
        gist_min_text_len=2,
        gist_max_text_len=16,
        axes_dims=(4, 6, 6),
        axes_lens=(64, 16, 16),
    )
    return pipeline("BriaFibo2Pipeline", scheduler=flow(**DYNAMIC), transformer=transformer)


def joy_image_edit() -> Any:
    transformer = network(
        "JoyImageEditTransformer3DModel",
        in_channels=4,
        hidden_size=32,
        num_attention_heads=2,
        text_dim=16,
        mlp_width_ratio=1.0,
        num_layers=2,
        rope_dim_list=[4, 6, 6],
    )
    return pipeline("JoyImageEditPipeline", scheduler=flow(), transformer=transformer)


FAMILIES = (
    TinyFamily(
        "NucleusMoEImageTransformer2DModel",
        "NucleusMoEImagePipeline",
        "B",
        nucleus,
        prompted,
        cfg,
        time="timestep = t / 1000",
        output="-1",
        weights=None,
    ),
    TinyFamily(
        "GlmImageTransformer2DModel",
        "GlmImagePipeline",
        "B",
        glm_image,
        lambda _: sampling(
            **SIZE,
            guidance_scale=1.0,
            prompt_embeds=embeds(1, 1, 5, 16),
            prior_token_ids=torch.arange(16)[None],
        ),
        lambda _: {"guidance_scale": 4.0, "negative_prompt_embeds": embeds(2, 1, 5, 16)},
        time="timestep = t - 1",
    ),
    TinyFamily(
        "QwenImage21Transformer2DModel",
        "QwenImage21Pipeline",
        "B",
        qwen_image_21,
        lambda _: sampling(**SIZE, prompt_embeds=embeds(1, 1, 5, 16), prompt_embeds_mask=mask(5)),
        true_cfg,
        contexts=("cond", "uncond"),
        time="timestep = t / 1000",
        output="+1 last 16 of axis 1",
    ),
    TinyFamily(
        "BriaFibo2Transformer2DModel",
        "BriaFibo2Pipeline",
        "B",
        bria_fibo2,
        lambda _: prompted(_) | {"prompt_embeds": embeds(1, 1, 2, 5, 16)},
        lambda _: cfg(_) | {"negative_prompt_embeds": embeds(2, 1, 2, 7, 16)},
        time="timestep = t / 1000",
    ),
    TinyFamily(
        "JoyImageEditTransformer3DModel",
        "JoyImageEditPipeline",
        "B",
        joy_image_edit,
        lambda _: prompted(_) | {"latents": embeds(0, 1, 1, 4, 1, 8, 8)},
        cfg,
        weights=None,
    ),
)
