"""Video transformers that take images, called once a condition (pattern B)."""

from typing import Any

import diffusers

from families import encoders
from families.parts import TinyFamily, image, network, pipeline, wan_vae
from families.tiny_video_separate import WAN, cfg, prompted, unipc

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
    parts = {"transformer": transformer, "vae": wan_vae()}
    return pipeline("WanAnimatePipeline", scheduler=unipc(), **parts)


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


FAMILIES = (
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
