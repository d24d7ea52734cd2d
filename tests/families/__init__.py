"""Tiny pipelines of all model families of diffusers, and how each calls its network."""

from families import (
    tiny_audio,
    tiny_edit,
    tiny_fixtures,
    tiny_guider_based,
    tiny_image_batched,
    tiny_image_encoded,
    tiny_image_separate,
    tiny_image_separate_b,
    tiny_modular,
    tiny_modular_alone,
    tiny_unet,
    tiny_video_audio,
    tiny_video_batched,
    tiny_video_images,
    tiny_video_separate,
    tiny_video_unet,
    tiny_video_world,
)

KINDS = (
    tiny_fixtures,
    tiny_unet,
    tiny_image_separate,
    tiny_image_separate_b,
    tiny_video_separate,
    tiny_video_images,
    tiny_image_batched,
    tiny_video_batched,
    tiny_video_unet,
    tiny_video_audio,
    tiny_video_world,
    tiny_image_encoded,
    tiny_edit,
    tiny_audio,
    tiny_guider_based,
)
FAMILIES = tuple(family for kind in KINDS for family in kind.FAMILIES)
MODULAR = tiny_modular.FAMILIES + tiny_modular_alone.FAMILIES
