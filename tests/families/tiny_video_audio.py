"""Video with audio, and the world models: several samples or parts of a sample in a call."""

from typing import Any

import diffusers

from families.parts import TinyFamily, embeds, flow, network, pipeline, prompt, sampling, wan_vae
from families.tiny_video_separate import NoChecker, cfg, cosmos_network, prompted, unipc

MASK = "prompt_attention_mask"


def ltx2_vae() -> Any:
    return network(
        "AutoencoderKLLTX2Video",
        latent_channels=8,
        block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 3,
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 4,
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
    )


def ltx2() -> Any:
    transformer = network(
        "LTX2VideoTransformer3DModel",
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        audio_in_channels=8,
        audio_out_channels=8,
        audio_num_attention_heads=2,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=16,
        num_layers=2,
        caption_channels=16,
        perturbed_attn=True,
        rope_double_precision=False,
    )
    connectors = network(
        diffusers.pipelines.ltx2.LTX2TextConnectors,
        caption_channels=16,
        text_proj_in_factor=1,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=8,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=None,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=8,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=None,
        rope_double_precision=False,
    )
    audio = network(
        "AutoencoderKLLTX2Audio", base_channels=8, latent_channels=2, num_res_blocks=1, mel_bins=16
    )
    return pipeline(
        "LTX2Pipeline",
        scheduler=flow(use_dynamic_shifting=True),
        transformer=transformer,
        connectors=connectors,
        vae=ltx2_vae(),
        audio_vae=audio,
    )


def ltx2_kwargs(_: Any) -> dict[str, Any]:
    off = {"stg_scale": 0.0, "modality_scale": 1.0, "guidance_rescale": 0.0}
    off |= {f"audio_{name}": value for name, value in off.items()}
    size = {"height": 64, "width": 64, "num_frames": 9}
    more = off | size | {"guidance_scale": 1.0, "audio_guidance_scale": 1.0}
    return sampling(**more, **prompt(1, mask=MASK))


def ltx2_cfg(_: Any) -> dict[str, Any]:
    return {"guidance_scale": 4.0, "audio_guidance_scale": 4.0} | prompt(2, "negative_", mask=MASK)


def ltx2_all(_: Any) -> dict[str, Any]:
    """CFG, spatio-temporal guidance and modality guidance, as by default."""
    more = {"stg_scale": 1.0, "modality_scale": 3.0, "spatio_temporal_guidance_blocks": [1]}
    return ltx2_cfg(_) | more | {"audio_stg_scale": 1.0, "audio_modality_scale": 3.0}


def kandinsky6() -> Any:
    transformer = network(
        "Kandinsky6Transformer3DModel",
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=16,
        in_text_dim2=16,
        time_dim=16,
        model_dim=32,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=(4, 6, 6),
        in_audio_dim=4,
        out_audio_dim=4,
    )
    return pipeline("Kandinsky6TI2VAPipeline", scheduler=flow(), transformer=transformer)


def kandinsky_prompt(seed: int, prefix: str = "") -> dict[str, Any]:
    return prompt(seed, prefix) | {f"{prefix}pooled_prompt_embeds": embeds(seed, 1, 16)}


def cosmos25() -> Any:
    parts = {"transformer": cosmos_network(5), "vae": wan_vae(), "scheduler": unipc()}
    return pipeline("Cosmos2_5_PredictBasePipeline", **parts, safety_checker=NoChecker())


FAMILIES = (
    TinyFamily(
        "LTX2VideoTransformer3DModel",
        "LTX2Pipeline",
        "A",
        ltx2,
        ltx2_kwargs,
        ltx2_cfg,
        contexts=("cond_uncond",),
    ),
    TinyFamily(
        "LTX2VideoTransformer3DModel",
        "LTX2Pipeline",
        "A",
        ltx2,
        ltx2_kwargs,
        ltx2_all,
        batches=(2, 1, 1),
        contexts=("cond_uncond", "uncond_stg", "uncond_modality"),
        weights=(-3.0, 7.0, -1.0, -2.0),
        variant="all",
    ),
    TinyFamily(
        "Kandinsky6Transformer3DModel",
        "Kandinsky6TI2VAPipeline",
        "B",
        kandinsky6,
        lambda _: sampling(
            height=32,
            width=32,
            num_frames=5,
            guidance_scale=1.0,
            sample_audio=False,
            **kandinsky_prompt(1),
        ),
        lambda _: {"guidance_scale": 4.0} | kandinsky_prompt(2, "negative_"),
        contexts=("cond", "uncond"),
    ),
    TinyFamily(
        "CosmosTransformer3DModel",
        "Cosmos2_5_PredictBasePipeline",
        "B",
        cosmos25,
        prompted,
        cfg,
        time="timestep = sigma",
        weights=(5.0, -4.0),
    ),
)
