"""Families with images beside the noise: tokens after it, channels around it, learned variance."""

import tempfile
from pathlib import Path
from typing import Any

import diffusers
import tiny
import torch

from families.parts import (
    TinyFamily,
    flow,
    image,
    kl_vae,
    network,
    pipeline,
    prompt,
    sampling,
)
from families.tiny_image_separate import DYNAMIC, FLUX, flux2, qwen_transformer
from families.tiny_unet import SD, UNET, ddim

SIZE = {"height": 64, "width": 64}


def kontext() -> Any:
    """Flux Kontext: the tokens of the image follow those of the noise."""
    with tempfile.TemporaryDirectory() as folder:
        return tiny.flux(Path(folder), "FluxKontextPipeline", distilled=False)


def qwen_edit() -> Any:
    vae = network(
        "AutoencoderKLQwenImage",
        2,
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    parts = {"scheduler": flow(**DYNAMIC), "transformer": qwen_transformer(), "vae": vae}
    return pipeline("QwenImageEditPipeline", **parts)


def inpaint() -> Any:
    """SD 1.5 inpainting: noise, mask, image in 9 channels."""
    unet = network("UNet2DConditionModel", **UNET | {"in_channels": 9})
    parts = {"unet": unet, "vae": kl_vae(), "scheduler": ddim(**SD)}
    return pipeline("StableDiffusionInpaintPipeline", **parts, requires_safety_checker=False)


def deepfloyd() -> Any:
    """The pixels of DeepFloyd IF, with learned variance."""
    unet = network("UNet2DConditionModel", **UNET | {"in_channels": 3, "out_channels": 6})
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range")
    return pipeline("IFPipeline", unet=unet, scheduler=scheduler, requires_safety_checker=False)


def deepfloyd_large() -> Any:
    """The upscaler of IF: noise, then the small image."""
    config = {"in_channels": 6, "out_channels": 6, "num_class_embeds": 1000}
    unet = network("UNet2DConditionModel", **UNET | config)
    return pipeline(
        "IFSuperResolutionPipeline",
        unet=unet,
        scheduler=diffusers.DDPMScheduler(variance_type="learned_range"),
        image_noising_scheduler=diffusers.DDPMScheduler(),
        requires_safety_checker=False,
    )


def marigold() -> Any:
    """Marigold: the image's channels come before those of the noise, and nothing is guided."""
    unet = network("UNet2DConditionModel", **UNET | {"in_channels": 8, "cross_attention_dim": 32})
    with tempfile.TemporaryDirectory() as folder:
        words = tiny.tokenizer(Path(folder))
    return pipeline(
        "MarigoldDepthPipeline",
        unet=unet,
        vae=kl_vae(),
        scheduler=ddim(**SD, prediction_type="v_prediction"),
        text_encoder=tiny.text_encoder(),
        tokenizer=words,
        default_processing_resolution=0,
    )


def upscale() -> Any:
    """The latent upscaler of SD: noise and the small latents."""
    unet = network("UNet2DConditionModel", **UNET | {"in_channels": 7, "num_class_embeds": 1000})
    return pipeline(
        "StableDiffusionUpscalePipeline",
        unet=unet,
        vae=kl_vae(),
        low_res_scheduler=diffusers.DDPMScheduler(),
        scheduler=ddim(**SD),
    )


FAMILIES = (
    TinyFamily(
        "FluxTransformer2DModel",
        "FluxKontextPipeline",
        "B",
        kontext,
        lambda _: (
            sampling(height=16, width=16, image=image(size=16), _auto_resize=False, max_area=256)
            | FLUX
        ),
        lambda _: {"true_cfg_scale": 4.0} | {f"negative_{k}": -v for k, v in FLUX.items()},
        time="timestep = t / 1000",
        output="+1 first 16 of axis 1",
    ),
    TinyFamily(
        "QwenImageTransformer2DModel",
        "QwenImageEditPipeline",
        "B",
        qwen_edit,
        lambda _: sampling(**SIZE, image=image(size=64)) | prompt(1, mask="prompt_embeds_mask"),
        lambda _: {"true_cfg_scale": 4.0} | prompt(2, "negative_", mask="prompt_embeds_mask"),
        contexts=("cond", "uncond"),
        time="timestep = t / 1000",
        weights=None,
        output="+1 first 16 of axis 1",
        slow=True,  # brings the image to 1024x1024 pixels
    ),
    TinyFamily(
        "Flux2Transformer2DModel",
        "Flux2KleinPipeline",
        "B",
        flux2,
        lambda _: sampling(**SIZE, guidance_scale=1.0, image=image(size=64)) | prompt(1),
        lambda _: {"guidance_scale": 4.0} | prompt(2, "negative_", length=7),
        contexts=("cond", "uncond"),
        time="timestep = t / 1000",
        output="+1 first 16 of axis 1",
        variant="edit",
    ),
    TinyFamily(
        "UNet2DConditionModel",
        "StableDiffusionInpaintPipeline",
        "A",
        inpaint,
        lambda _: sampling(
            height=32, width=32, guidance_scale=1.0, image=image(), mask_image=image(1), **prompt(1)
        ),
        lambda _: {"guidance_scale": 4.0} | prompt(2, "negative_"),
    ),
    TinyFamily(
        "UNet2DConditionModel",
        "IFPipeline",
        "A",
        deepfloyd,
        lambda _: sampling(height=8, width=8, guidance_scale=1.0, output_type="pt", **prompt(1)),
        lambda _: {"guidance_scale": 4.0} | prompt(2, "negative_"),
    ),
    TinyFamily(
        "UNet2DConditionModel",
        "IFSuperResolutionPipeline",
        "A",
        deepfloyd_large,
        lambda _: sampling(
            height=8,
            width=8,
            guidance_scale=1.0,
            output_type="pt",
            image=image(size=4),
            **prompt(1),
        ),
        lambda _: {"guidance_scale": 4.0} | prompt(2, "negative_"),
    ),
    TinyFamily(
        "UNet2DConditionModel",
        "MarigoldDepthPipeline",
        "E",
        marigold,
        lambda _: {
            "image": image(),
            "num_inference_steps": 2,
            "output_type": "pt",
            "generator": torch.Generator().manual_seed(0),
            "match_input_resolution": False,
        },
        None,
    ),
    TinyFamily(
        "UNet2DConditionModel",
        "StableDiffusionUpscalePipeline",
        "A",
        upscale,
        lambda _: sampling(guidance_scale=1.0, image=image(size=8), **prompt(1)),
        lambda _: {"guidance_scale": 4.0} | prompt(2, "negative_"),
    ),
)
