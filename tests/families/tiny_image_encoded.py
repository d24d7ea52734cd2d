"""Image families whose pipelines insist on a text encoder, and distilled ones (pattern E)."""

from typing import Any

import diffusers

from families import encoders
from families.parts import (
    TinyFamily,
    flow,
    network,
    pipeline,
    prompt,
    sampling,
    wan_vae,
)
from families.tiny_image_batched import BLOCKS, MASK, ROPE
from families.tiny_image_separate import flux2
from families.tiny_unet import UNET

SIZE = {"height": 64, "width": 64}
WORDS = {"prompt": "a cat", "negative_prompt": "a big dog"}


def bria_fibo() -> Any:
    transformer = network(
        "BriaFiboTransformer2DModel",
        in_channels=4,
        num_single_layers=1,
        joint_attention_dim=2 * encoders.WIDTH,
        text_encoder_dim=encoders.WIDTH,
        **BLOCKS | ROPE,
    )
    return pipeline(
        "BriaFiboPipeline",
        scheduler=flow(use_dynamic_shifting=True),
        transformer=transformer,
        vae=wan_vae(),
        text_encoder=encoders.decoder("SmolLM3ForCausalLM", "SmolLM3Config", num_hidden_layers=2),
        tokenizer=encoders.spelling(),
    )


def ernie_image() -> Any:
    transformer = network(
        "ErnieImageTransformer2DModel",
        hidden_size=32,
        num_attention_heads=2,
        num_layers=2,
        ffn_hidden_size=32,
        in_channels=16,
        out_channels=16,
        text_in_dim=16,
        rope_axes_dim=(4, 6, 6),
    )
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
    )
    return pipeline(
        "ErnieImagePipeline",
        scheduler=flow(),
        transformer=transformer,
        vae=vae,
        text_encoder=encoders.decoder("Qwen3Model", "Qwen3Config", num_hidden_layers=2),
        tokenizer=encoders.spelling(),
    )


def joy_image_edit_plus() -> Any:
    transformer = network(
        "JoyImageEditPlusTransformer3DModel",
        in_channels=4,
        hidden_size=32,
        num_attention_heads=2,
        text_dim=16,
        mlp_width_ratio=1.0,
        num_layers=2,
        rope_dim_list=[4, 6, 6],
    )
    return pipeline(
        "JoyImageEditPlusPipeline",
        scheduler=flow(),
        transformer=transformer,
        vae=wan_vae(),
        text_encoder=encoders.qwen3_vl(kind="Qwen3VLForConditionalGeneration"),
        processor=encoders.processor(),
    )


def dreamlite() -> Any:
    """DreamLite, whose UNet sees noise at the left and the image to edit at the right."""
    unet = network(
        "DreamLiteUNetModel",
        **{k: v for k, v in UNET.items() if "types" not in k},
        down_block_types=(
            "DreamLiteCrossAttnNoSelfAttnDownBlock2D",
            "DreamLiteCrossAttnDownBlock2D",
        ),
        up_block_types=("DreamLiteCrossAttnUpBlock2D", "DreamLiteUpBlock2D"),
        addition_embed_type="time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=8,
    )
    return pipeline(
        "DreamLitePipeline",
        scheduler=flow(use_dynamic_shifting=True),
        unet=unet,
        vae=diffusers.AutoencoderTiny(latent_channels=4),
        text_encoder=encoders.qwen3_vl(kind="Qwen3VLForConditionalGeneration"),
        tokenizer=encoders.spelling(512),
    )


def sana_sprint() -> Any:
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
        guidance_embeds=True,
    )
    return pipeline(
        "SanaSprintPipeline", scheduler=diffusers.SCMScheduler(), transformer=transformer
    )


def flux2_dev() -> Any:
    klein = flux2(distilled=True)
    parts = {name: getattr(klein, name) for name in ("transformer", "vae", "scheduler")}
    return pipeline("Flux2Pipeline", **parts)


FAMILIES = (
    TinyFamily(
        "BriaFiboTransformer2DModel",
        "BriaFiboPipeline",
        "A",
        bria_fibo,
        lambda _: sampling(**SIZE, **WORDS, guidance_scale=1.0),
        lambda _: {"guidance_scale": 4.0},
    ),
    TinyFamily(
        "ErnieImageTransformer2DModel",
        "ErnieImagePipeline",
        "A",
        ernie_image,
        lambda _: sampling(**SIZE, **WORDS, guidance_scale=1.0),
        lambda _: {"guidance_scale": 4.0},
    ),
    TinyFamily(
        "JoyImageEditPlusTransformer3DModel",
        "JoyImageEditPlusPipeline",
        "A",
        joy_image_edit_plus,
        lambda _: sampling(**SIZE, **WORDS, guidance_scale=1.0, max_sequence_length=8),
        lambda _: {"guidance_scale": 4.0},
        weights=None,
    ),
    TinyFamily(
        "DreamLiteUNetModel",
        "DreamLitePipeline",
        "A",
        dreamlite,
        lambda _: sampling(**SIZE, **WORDS, guidance_scale=1.0),
        lambda _: {"guidance_scale": 4.0},
        output="+1 first 8 of axis 3",
    ),
    TinyFamily(
        "SanaTransformer2DModel",
        "SanaSprintPipeline",
        "E",
        sana_sprint,
        lambda _: sampling(
            height=256, width=256, use_resolution_binning=False, **prompt(1, mask=MASK)
        ),
        None,
        time="timestep = sin t / (sin t + cos t)",
        output="affine in sample",
    ),
    TinyFamily(
        "Flux2Transformer2DModel",
        "Flux2Pipeline",
        "E",
        flux2_dev,
        lambda _: sampling(**SIZE, **prompt(1)),
        None,
        time="timestep = t / 1000",
    ),
)
