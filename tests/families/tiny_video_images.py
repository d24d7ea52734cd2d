"""Video transformers that take images, called once a condition (pattern B)."""

from typing import Any

import diffusers

from families import encoders
from families.parts import TinyFamily, flow, image, network, pipeline, prompt, sampling, wan_vae
from families.tiny_video_separate import HUNYUAN, WAN, cfg, hunyuan_prompt, prompted, unipc

WAN_INTO = WAN | {"in_channels": 12}  # noise, mask of 4, image


def wan_i2v() -> Any:
    transformer = network("WanTransformer3DModel", **WAN_INTO)
    parts = {"transformer": transformer, "vae": wan_vae()}
    return pipeline("WanImageToVideoPipeline", scheduler=unipc(), **parts)


def wan_vace() -> Any:
    transformer = network("WanVACETransformer3DModel", **WAN, vace_layers=[0], vace_in_channels=72)
    return pipeline("WanVACEPipeline", scheduler=unipc(), transformer=transformer, vae=wan_vae())


def wan_animate() -> Any:
    transformer = network(
        "WanAnimateTransformer3DModel",
        **WAN_INTO,
        latent_channels=4,
        image_dim=16,
        motion_encoder_channel_sizes={"4": 4, "8": 4, "16": 4},
        motion_encoder_size=16,
        motion_style_dim=8,
        motion_dim=4,
        motion_encoder_dim=8,
        face_encoder_hidden_dim=8,
        face_encoder_num_heads=2,
        inject_face_latents_blocks=1,
    )
    return pipeline(
        "WanAnimatePipeline",
        scheduler=unipc(),
        transformer=transformer,
        vae=wan_vae(),
        image_encoder=encoders.vision(),
        image_processor=encoders.image_processor(),
    )


def chronoedit() -> Any:
    transformer = network(
        "ChronoEditTransformer3DModel", **WAN_INTO, image_dim=16, rope_temporal_skip_len=8
    )
    return pipeline(
        "ChronoEditPipeline",
        scheduler=unipc(),
        transformer=transformer,
        vae=wan_vae(),
        image_encoder=encoders.vision(),
        image_processor=encoders.image_processor(),
    )


def helios() -> Any:
    settings = {k: v for k, v in WAN.items() if k != "rope_max_seq_len"}
    transformer = network("HeliosTransformer3DModel", **settings, rope_dim=(4, 4, 4))
    parts = {"transformer": transformer, "vae": wan_vae()}
    return pipeline("HeliosPipeline", scheduler=diffusers.HeliosScheduler(stages=1), **parts)


def framepack() -> Any:
    transformer = network(
        "HunyuanVideoFramepackTransformer3DModel",
        **HUNYUAN,
        has_image_proj=True,
        image_proj_dim=16,
        has_clean_x_embedder=True,
    )
    vae = network(
        "AutoencoderKLHunyuanVideo",
        latent_channels=4,
        block_out_channels=(8,) * 4,
        layers_per_block=1,
        norm_num_groups=4,
    )
    return pipeline(
        "HunyuanVideoFramepackPipeline",
        scheduler=flow(use_dynamic_shifting=True),
        transformer=transformer,
        vae=vae,
        image_encoder=encoders.vision("SiglipVisionModel", "SiglipVisionConfig"),
        feature_extractor=encoders.image_processor(),
    )


def animated(_: Any) -> dict[str, Any]:
    frames = [image(seed) for seed in range(5)]
    videos = {"image": image(), "pose_video": frames, "face_video": frames}
    size = {"height": 32, "width": 32, "segment_frame_length": 5}
    return sampling(**size, **videos, guidance_scale=1.0, **prompt(1))


FAMILIES = (
    TinyFamily(
        "WanAnimateTransformer3DModel",
        "WanAnimatePipeline",
        "B",
        wan_animate,
        animated,
        cfg,
        contexts=("cond", "uncond"),
    ),
    TinyFamily(
        "HunyuanVideoFramepackTransformer3DModel",
        "HunyuanVideoFramepackPipeline",
        "B",
        framepack,
        lambda _: (
            sampling(height=32, width=32, num_frames=5, latent_window_size=2, image=image())
            | hunyuan_prompt(1)
        ),
        lambda _: {"true_cfg_scale": 4.0} | hunyuan_prompt(2, "negative_"),
    ),
    TinyFamily(
        "WanTransformer3DModel",
        "WanImageToVideoPipeline",
        "B",
        wan_i2v,
        lambda _: prompted(_, image=image()),
        cfg,
        contexts=("cond", "uncond"),
    ),
    TinyFamily(
        "WanVACETransformer3DModel",
        "WanVACEPipeline",
        "B",
        wan_vace,
        prompted,
        cfg,
        contexts=("cond", "uncond"),
    ),
    TinyFamily(
        "ChronoEditTransformer3DModel",
        "ChronoEditPipeline",
        "B",
        chronoedit,
        lambda _: prompted(_, image=image()),
        cfg,
    ),
    TinyFamily(
        "HeliosTransformer3DModel",
        "HeliosPipeline",
        "B",
        helios,
        prompted,
        cfg,
        contexts=("cond", "uncond"),
    ),
)
