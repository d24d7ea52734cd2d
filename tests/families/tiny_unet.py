"""UNets of images, called once a step with the conditions in the batch (pattern A)."""

from typing import Any

import diffusers
import tiny
import torch

from families.parts import (
    TinyFamily,
    embeds,
    kl_vae,
    network,
    pipeline,
    prompt,
    sampling,
)

SIZE = {"height": 32, "width": 32}
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
UNET = {
    "sample_size": 4,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 16,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}


def ddim(**more: Any) -> Any:
    return diffusers.DDIMScheduler(clip_sample=False, **more)


def lcm() -> Any:
    """SD 1.5 distilled by LCM: the scale is embedded with the time."""
    unet = network("UNet2DConditionModel", **UNET, time_cond_proj_dim=8)
    parts = {"scheduler": diffusers.LCMScheduler(**SD), "unet": unet, "vae": kl_vae()}
    return pipeline("LatentConsistencyModelPipeline", **parts, requires_safety_checker=False)


def kandinsky22() -> Any:
    """The decoder of Kandinsky 2.2: conditions are image embeddings, the variance is learned."""
    unet = network(
        "UNet2DConditionModel",
        **UNET
        | {
            "out_channels": 8,
            "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        },
        addition_embed_type="image",
        encoder_hid_dim=16,
        encoder_hid_dim_type="image_proj",
        resnet_time_scale_shift="scale_shift",
    )
    movq = diffusers.VQModel(
        block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
    )
    return pipeline("KandinskyV22Pipeline", unet=unet, scheduler=ddim(), movq=movq)


def kandinsky3() -> Any:
    unet = network(
        "Kandinsky3UNet",
        time_embedding_dim=8,
        groups=2,
        attention_head_dim=4,
        layers_per_block=2,
        block_out_channels=(8, 8, 8, 8),
        cross_attention_dim=8,
        encoder_hid_dim=16,
    )
    movq = diffusers.VQModel(latent_channels=4, block_out_channels=(8,), norm_num_groups=4)
    scheduler = diffusers.DDPMScheduler(**SD)
    return pipeline("Kandinsky3Pipeline", unet=unet, scheduler=scheduler, movq=movq)


def stable_cascade() -> Any:
    prior = network(
        "StableCascadeUNet",
        in_channels=4,
        out_channels=4,
        timestep_ratio_embedding_dim=8,
        conditioning_dim=16,
        block_out_channels=(16, 16),
        num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        clip_text_in_channels=16,
        clip_text_pooled_in_channels=16,
        clip_image_in_channels=16,
        switch_level=(False,),
    )
    scheduler = diffusers.DDPMWuerstchenScheduler()
    parts = {"prior": prior, "scheduler": scheduler, "text_encoder": tiny.text_encoder()}
    return pipeline("StableCascadePriorPipeline", **parts)


def stable_cascade_decoder() -> Any:
    decoder = network(
        "StableCascadeUNet",
        in_channels=4,
        out_channels=4,
        timestep_ratio_embedding_dim=8,
        patch_size=2,
        conditioning_dim=16,
        block_out_channels=(16, 16),
        num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        clip_text_pooled_in_channels=16,
        effnet_in_channels=4,
        switch_level=(False,),
    )
    vqgan = diffusers.pipelines.deprecated.wuerstchen.PaellaVQModel(
        bottleneck_blocks=1, embed_dim=8, latent_channels=4, num_vq_embeddings=8
    )
    parts = {"decoder": decoder, "scheduler": diffusers.DDPMWuerstchenScheduler(), "vqgan": vqgan}
    return pipeline("StableCascadeDecoderPipeline", **parts, latent_dim_scale=1.0)


def consistency() -> Any:
    """A consistency model, for which no guidance is defined."""
    names = ("sample_size", "block_out_channels", "layers_per_block", "norm_num_groups")
    unet = network(
        "UNet2DModel",
        **{name: UNET[name] for name in names},
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        num_class_embeds=4,
    )
    scheduler = diffusers.CMStochasticIterativeScheduler()
    return pipeline("ConsistencyModelPipeline", unet=unet, scheduler=scheduler)


def cascade(seed: int, prefix: str = "") -> dict[str, Any]:
    return prompt(seed, prefix) | {f"{prefix}prompt_embeds_pooled": embeds(seed, 1, 1, 16)}


FAMILIES = (
    TinyFamily(
        "UNet2DConditionModel",
        "LatentConsistencyModelPipeline",
        "E",
        lcm,
        lambda _: sampling(guidance_scale=1.0, original_inference_steps=20, **prompt(1)),
        None,
    ),
    TinyFamily(
        "UNet2DConditionModel",
        "KandinskyV22Pipeline",
        "A",
        kandinsky22,
        lambda _: sampling(
            **SIZE,
            guidance_scale=1.0,
            image_embeds=embeds(1, 1, 16),
            negative_image_embeds=embeds(2, 1, 16),
        ),
        lambda _: {"guidance_scale": 4.0},
        output="+1 first 4 of axis 1",
    ),
    TinyFamily(
        "Kandinsky3UNet",
        "Kandinsky3Pipeline",
        "A",
        kandinsky3,
        lambda _: sampling(
            **SIZE, guidance_scale=1.0, attention_mask=torch.ones(1, 5), **prompt(1)
        ),
        lambda _: (
            {"guidance_scale": 4.0, "negative_attention_mask": torch.ones(1, 5)}
            | prompt(2, "negative_")
        ),
        weights=(-4.0, 5.0),
    ),
    TinyFamily(
        "StableCascadeUNet",
        "StableCascadePriorPipeline",
        "A",
        stable_cascade,
        lambda _: sampling(
            height=128, width=128, guidance_scale=1.0, output_type="pt", **cascade(1)
        ),
        lambda _: {"guidance_scale": 4.0} | cascade(2, "negative_"),
        time="timestep_ratio = t",
        weights=(4.0, -3.0),
    ),
    TinyFamily(
        "StableCascadeUNet",
        "StableCascadeDecoderPipeline",
        "A",
        stable_cascade_decoder,
        lambda _: sampling(
            guidance_scale=1.0, image_embeddings=embeds(5, 1, 4, 4, 4), **cascade(1)
        ),
        lambda _: {"guidance_scale": 4.0} | cascade(2, "negative_"),
        time="timestep_ratio = t",
        weights=(4.0, -3.0),
    ),
    TinyFamily(
        "UNet2DModel",
        "ConsistencyModelPipeline",
        "E",
        consistency,
        lambda _: sampling(output_type="np", class_labels=[1]),
        None,
    ),
)
