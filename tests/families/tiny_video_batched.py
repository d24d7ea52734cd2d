"""Video transformers that pipelines call once a step, the conditions in the batch (pattern A)."""

from functools import partial
from typing import Any

import diffusers

from families.parts import (
    TinyFamily,
    flow,
    network,
    pipeline,
    prompt,
    sampling,
    wan_vae,
)

MASK = "prompt_attention_mask"
SIZE = {"height": 32, "width": 32, "num_frames": 5}
LATENT = {"in_channels": 4, "out_channels": 4}
HEADS = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2}
COGVIDEO = (
    LATENT
    | HEADS
    | {
        "time_embed_dim": 8,
        "text_embed_dim": 16,
        "sample_width": 4,
        "sample_height": 4,
        "sample_frames": 5,
        "max_text_seq_length": 5,
    }
)


def kwargs(_: Any, mask: str = "", size: Any = SIZE, **more: Any) -> dict[str, Any]:
    return sampling(**size, guidance_scale=1.0) | prompt(1, mask=mask) | more


def cfg(_: Any, mask: str = "", **more: Any) -> dict[str, Any]:
    return {"guidance_scale": 4.0} | prompt(2, "negative_", mask=mask) | more


def ltx() -> Any:
    transformer = network(
        "LTXVideoTransformer3DModel",
        **LATENT | HEADS,
        cross_attention_dim=32,
        caption_channels=16,
    )
    return pipeline("LTXPipeline", scheduler=flow(), transformer=transformer)


def cogvideox() -> Any:
    transformer = network("CogVideoXTransformer3DModel", **COGVIDEO)
    scheduler = diffusers.CogVideoXDDIMScheduler(prediction_type="v_prediction")
    return pipeline("CogVideoXPipeline", scheduler=scheduler, transformer=transformer)


def mochi() -> Any:
    transformer = network(
        "MochiTransformer3DModel",
        in_channels=4,
        **HEADS,
        pooled_projection_dim=16,
        text_embed_dim=16,
        time_embed_dim=8,
        max_sequence_length=5,
    )
    scheduler = flow(invert_sigmas=True)
    return pipeline("MochiPipeline", scheduler=scheduler, transformer=transformer)


def allegro() -> Any:
    transformer = network(
        "AllegroTransformer3DModel",
        **LATENT | HEADS | {"attention_head_dim": 24},
        cross_attention_dim=48,
        sample_height=4,
        sample_width=4,
        sample_frames=2,
        caption_channels=16,
    )
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    return pipeline("AllegroPipeline", scheduler=scheduler, transformer=transformer)


def latte() -> Any:
    transformer = network(
        "LatteTransformer3DModel",
        in_channels=4,
        out_channels=8,
        **HEADS,
        cross_attention_dim=32,
        attention_bias=True,
        sample_size=4,
        patch_size=2,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        caption_channels=16,
        video_length=2,
    )
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    return pipeline("LattePipeline", scheduler=scheduler, transformer=transformer)


def sana_video() -> Any:
    transformer = network(
        "SanaVideoTransformer3DModel",
        **LATENT,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=16,
        mlp_ratio=1.0,
        sample_size=4,
        rope_max_seq_len=32,
    )
    return pipeline("SanaVideoPipeline", scheduler=flow(), transformer=transformer, vae=wan_vae())


def easyanimate() -> Any:
    transformer = network(
        "EasyAnimateTransformer3DModel",
        **LATENT | HEADS,
        patch_size=2,
        mmdit_layers=1,
        sample_width=4,
        sample_height=4,
        time_embed_dim=8,
        text_embed_dim=16,
    )
    vae = diffusers.AutoencoderKLMagvit(
        block_out_channels=(8,) * 4, latent_channels=4, layers_per_block=1, norm_num_groups=4
    )
    parts = {"transformer": transformer, "vae": vae}
    return pipeline("EasyAnimatePipeline", scheduler=flow(), **parts)


def anyflow() -> Any:
    transformer = network(
        "AnyFlowTransformer3DModel",
        **LATENT | HEADS | {"attention_head_dim": 12},
        text_dim=16,
        freq_dim=8,
        ffn_dim=32,
        rope_max_seq_len=32,
    )
    scheduler = diffusers.FlowMapEulerDiscreteScheduler()
    return pipeline("AnyFlowPipeline", scheduler=scheduler, transformer=transformer)


FAMILIES = (
    TinyFamily(
        "LTXVideoTransformer3DModel",
        "LTXPipeline",
        "A",
        ltx,
        partial(kwargs, mask=MASK, size={"height": 64, "width": 64, "num_frames": 9}),
        partial(cfg, mask=MASK),
        contexts=("cond_uncond",),
    ),
    TinyFamily(
        "CogVideoXTransformer3DModel",
        "CogVideoXPipeline",
        "A",
        cogvideox,
        kwargs,
        cfg,
        contexts=("cond_uncond",),
    ),
    TinyFamily(
        "MochiTransformer3DModel",
        "MochiPipeline",
        "A",
        mochi,
        partial(kwargs, mask=MASK, size=SIZE | {"num_frames": 7}),
        partial(cfg, mask=MASK),
        contexts=("cond_uncond",),
    ),
    TinyFamily(
        "AllegroTransformer3DModel",
        "AllegroPipeline",
        "A",
        allegro,
        partial(kwargs, mask=MASK, negative_prompt=None, size=SIZE | {"num_frames": 8}),
        partial(cfg, mask=MASK),
    ),
    TinyFamily(
        "LatteTransformer3DModel",
        "LattePipeline",
        "A",
        latte,
        lambda _: (
            sampling(
                height=32,
                width=32,
                video_length=2,
                guidance_scale=1.0,
                negative_prompt=None,
                mask_feature=False,
            )
            | prompt(1)
        ),
        cfg,
        output="+1 first 4 of axis 1",
    ),
    TinyFamily(
        "SanaVideoTransformer3DModel",
        "SanaVideoPipeline",
        "A",
        sana_video,
        partial(
            kwargs,
            mask=MASK,
            size={"height": 32, "width": 32, "frames": 5},
            use_resolution_binning=False,
            negative_prompt=None,
        ),
        partial(cfg, mask=MASK),
    ),
    TinyFamily(
        "EasyAnimateTransformer3DModel",
        "EasyAnimatePipeline",
        "A",
        easyanimate,
        partial(kwargs, mask=MASK),
        partial(cfg, mask=MASK),
    ),
    TinyFamily(
        "AnyFlowTransformer3DModel",
        "AnyFlowPipeline",
        "A",
        anyflow,
        kwargs,
        cfg,
    ),
)
