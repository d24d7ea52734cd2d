"""UNets of video, called once a step with the conditions in the batch (pattern A)."""

from typing import Any

import diffusers

from families import encoders
from families.parts import TinyFamily, image, kl_vae, network, pipeline, prompt, sampling
from families.tiny_unet import SD, SIZE, UNET, ddim

VIDEO = {name: UNET[name] for name in UNET if name != "attention_head_dim"}
BLOCKS_3D = {
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    "attention_head_dim": 4,
}


def animatediff() -> Any:
    unet = network(
        "UNetMotionModel",
        **VIDEO
        | {
            "down_block_types": ("DownBlockMotion", "CrossAttnDownBlockMotion"),
            "up_block_types": ("CrossAttnUpBlockMotion", "UpBlockMotion"),
        },
        num_attention_heads=2,
        motion_num_attention_heads=2,
    )
    parts = {"unet": unet, "scheduler": ddim(**SD), "motion_adapter": None}
    return pipeline("AnimateDiffPipeline", **parts)


def svd() -> Any:
    """SVD, whose scale rises from frame to frame."""
    unet = network(
        "UNetSpatioTemporalConditionModel",
        sample_size=4,
        in_channels=8,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
        cross_attention_dim=16,
        num_attention_heads=(2, 2),
        num_frames=2,
    )
    vae = network(
        "AutoencoderKLTemporalDecoder",
        block_out_channels=(32,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        latent_channels=4,
    )
    scheduler = diffusers.EulerDiscreteScheduler(
        **SD,
        prediction_type="v_prediction",
        interpolation_type="linear",
        use_karras_sigmas=True,
        timestep_type="continuous",
        sigma_min=0.002,
        sigma_max=700.0,
    )
    return pipeline(
        "StableVideoDiffusionPipeline",
        unet=unet,
        vae=vae,
        scheduler=scheduler,
        image_encoder=encoders.vision(
            "CLIPVisionModelWithProjection", image_size=224, patch_size=112
        ),
        feature_extractor=encoders.image_processor(),
    )


def i2vgen() -> Any:
    unet = network("I2VGenXLUNet", **UNET | BLOCKS_3D | {"cross_attention_dim": 16})
    return pipeline(
        "I2VGenXLPipeline",
        unet=unet,
        vae=kl_vae(),
        scheduler=ddim(**SD, prediction_type="v_prediction"),
        image_encoder=encoders.vision("CLIPVisionModelWithProjection"),
        feature_extractor=encoders.image_processor(),
    )


def text_to_video() -> Any:
    unet = network("UNet3DConditionModel", **UNET | BLOCKS_3D)
    return pipeline("TextToVideoSDPipeline", unet=unet, scheduler=ddim(**SD))


FAMILIES = (
    TinyFamily(
        "UNetMotionModel",
        "AnimateDiffPipeline",
        "A",
        animatediff,
        lambda _: sampling(**SIZE, num_frames=2, guidance_scale=1.0, **prompt(1)),
        lambda _: {"guidance_scale": 4.0} | prompt(2, "negative_"),
    ),
    TinyFamily(
        "UNetSpatioTemporalConditionModel",
        "StableVideoDiffusionPipeline",
        "A",
        svd,
        lambda _: sampling(
            **SIZE, num_frames=2, image=image(), min_guidance_scale=1.0, max_guidance_scale=1.0
        ),
        lambda _: {"min_guidance_scale": 2.0, "max_guidance_scale": 4.0},
        weights=None,
    ),
    TinyFamily(
        "I2VGenXLUNet",
        "I2VGenXLPipeline",
        "A",
        i2vgen,
        lambda _: sampling(**SIZE, num_frames=2, image=image(), guidance_scale=1.0, **prompt(1)),
        lambda _: {"guidance_scale": 4.0} | prompt(2, "negative_"),
        output="+1 axes (0, 2, 1, 3, 4) reshaped",
    ),
    TinyFamily(
        "UNet3DConditionModel",
        "TextToVideoSDPipeline",
        "A",
        text_to_video,
        lambda _: sampling(**SIZE, num_frames=2, guidance_scale=1.0, **prompt(1)),
        lambda _: {"guidance_scale": 4.0} | prompt(2, "negative_"),
        output="+1 axes (0, 2, 1, 3, 4) reshaped",
    ),
)
