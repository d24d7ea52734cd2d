"""Video families of particular calls: packed tokens, chunks, identities, world models."""

from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.pipelines.consisid.pipeline_consisid import ConsisIDPipeline

from families import encoders
from families.parts import (
    TinyFamily,
    embeds,
    flow,
    image,
    network,
    pipeline,
    sampling,
    wan_vae,
)
from families.tiny_video_audio import ltx2_vae
from families.tiny_video_batched import COGVIDEO, HEADS, LATENT, cfg, kwargs
from families.tiny_video_separate import unipc


def consisid() -> Any:
    transformer = network(
        "ConsisIDTransformer3DModel",
        **COGVIDEO | {"in_channels": 8, "num_attention_heads": 3},
        is_train_face=True,
        cross_attn_interval=1,
        cross_attn_dim_head=8,
        cross_attn_num_heads=2,
        LFE_id_dim=8,
        LFE_vit_dim=8,
        LFE_depth=5,
        LFE_dim_head=8,
        LFE_num_heads=2,
        LFE_num_id_token=1,
        LFE_num_querie=2,
        LFE_output_dim=32,
        LFE_ff_mult=1,
        LFE_num_scale=1,
    )
    vae = network(
        "AutoencoderKLCogVideoX",
        block_out_channels=(8,) * 4,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
    )
    scheduler = diffusers.CogVideoXDDIMScheduler(prediction_type="v_prediction")
    parts = {"scheduler": scheduler, "transformer": transformer, "vae": vae}
    return pipeline(ConsisIDPipeline, **parts)


def consisid_kwargs(_: Any) -> dict[str, Any]:
    face = {"id_vit_hidden": [embeds(3, 1, 2, 8)], "id_cond": embeds(4, 1, 8)}
    return kwargs(_, image=image()) | face


def anyflow_far() -> Any:
    transformer = network(
        "AnyFlowFARTransformer3DModel",
        **LATENT | HEADS | {"attention_head_dim": 12},
        text_dim=16,
        freq_dim=8,
        ffn_dim=32,
        rope_max_seq_len=32,
        full_chunk_limit=2,
        chunk_partition=(1, 1),
    )
    scheduler = diffusers.FlowMapEulerDiscreteScheduler()
    return pipeline("AnyFlowFARPipeline", scheduler=scheduler, transformer=transformer)


def cosmos3() -> Any:
    """Cosmos 3, whose network takes text tokens and noise as one packed sequence."""
    transformer = network(
        "Cosmos3OmniTransformer",
        dtype="float32",
        head_dim=16,
        hidden_size=32,
        intermediate_size=32,
        latent_channel=4,
        patch_latent_dim=16,
        num_attention_heads=2,
        num_hidden_layers=2,
        num_key_value_heads=1,
        rope_scaling={"mrope_section": [4, 2, 2]},
        vocab_size=128,
    )
    return pipeline(
        "Cosmos3OmniPipeline",
        scheduler=unipc(),
        transformer=transformer,
        vae=wan_vae(),
        text_tokenizer=encoders.spelling(256, chat_template=encoders.CHAT),
        enable_safety_checker=False,
    )


def cosmos3_kwargs(_: Any) -> dict[str, Any]:
    size = {"height": 32, "width": 32, "num_frames": 5}
    templates = ("use_system_prompt", "add_resolution_template", "add_duration_template")
    words = {"prompt": "a cat", "negative_prompt": "a big dog"}
    return sampling(**size, **dict.fromkeys(templates, False), **words, guidance_scale=1.0)


def sana_wm() -> Any:
    """SANA-WM, which drives a camera through an image; its time is one per latent frame."""
    transformer = network(
        "SanaWMTransformer3DModel",
        in_channels=8,
        num_layers=2,
        hidden_size=32,
        num_attention_heads=2,
        softmax_every_n=2,
        linear_head_dim=16,
        chunk_plucker_post_attn_blocks=1,
        image_size=64,
        caption_channels=16,
        mlp_ratio=1.0,
        mixed_precision="no",
    )
    return pipeline("SanaWMPipeline", scheduler=flow(), transformer=transformer, vae=ltx2_vae())


def sana_wm_kwargs(_: Any) -> dict[str, Any]:
    camera = {"c2w": np.eye(4, dtype=np.float32)[None].repeat(9, 0), "intrinsics": [64, 64, 32, 32]}
    size = {"height": 64, "width": 64, "num_frames": 9}
    return sampling(**camera, **size, image=image(size=64), prompt="", guidance_scale=1.0) | {
        "prompt_embeds": embeds(1, 1, 1, 5, 16),
        "prompt_attention_mask": torch.ones(1, 5, dtype=torch.long),
        "negative_prompt_embeds": embeds(2, 1, 1, 5, 16),
        "negative_prompt_attention_mask": torch.ones(1, 5, dtype=torch.long),
    }


FAMILIES = (
    TinyFamily(
        "SanaWMTransformer3DModel",
        "SanaWMPipeline",
        "A",
        sana_wm,
        sana_wm_kwargs,
        lambda _: {"guidance_scale": 4.0},
        output="-1 axes (0, 2, 3, 4, 1) reshaped",
    ),
    TinyFamily(
        "ConsisIDTransformer3DModel",
        "ConsisIDPipeline",
        "A",
        consisid,
        consisid_kwargs,
        cfg,
    ),
    TinyFamily(
        "AnyFlowFARTransformer3DModel",
        "AnyFlowFARPipeline",
        "A",
        anyflow_far,
        kwargs,
        cfg,
        slow=True,  # compiles flex attention
    ),
    TinyFamily(
        "Cosmos3OmniTransformer",
        "Cosmos3OmniPipeline",
        "B",
        cosmos3,
        cosmos3_kwargs,
        lambda _: {"guidance_scale": 4.0},
        time="vision_timesteps = t",
        sample="vision_tokens",
        contexts=("cond", "uncond"),
    ),
)
