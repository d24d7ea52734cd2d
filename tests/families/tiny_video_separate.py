"""Video transformers that pipelines call once a condition (pattern B)."""

from functools import partial
from typing import Any

import diffusers
import torch

from families.parts import TinyFamily, embeds, flow, network, pipeline, sampling

SIZE = {"height": 32, "width": 32, "num_frames": 5}  # 2x4x4 latents
WAN = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 2,
    "rope_max_seq_len": 32,
}
HUNYUAN = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "num_refiner_layers": 1,
    "text_embed_dim": 16,
    "pooled_projection_dim": 16,
    "rope_axes_dim": (4, 6, 6),
    "mlp_ratio": 1.0,
}


def prompted(_: Any, **more: Any) -> dict[str, Any]:
    prompt = {"prompt_embeds": embeds(1, 1, 5, 16)}
    return sampling(**SIZE, guidance_scale=1.0) | prompt | more


def cfg(_: Any) -> dict[str, Any]:
    return {"guidance_scale": 4.0, "negative_prompt_embeds": embeds(2, 1, 5, 16)}


def unipc() -> Any:
    settings = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    return diffusers.UniPCMultistepScheduler(**settings, num_train_timesteps=1000, flow_shift=3.0)


def wan(channels: int = 4) -> Any:
    latent = {"in_channels": channels, "out_channels": channels}
    transformer = network("WanTransformer3DModel", **WAN | latent)
    return pipeline("WanPipeline", scheduler=unipc(), transformer=transformer)


def wan_two(channels: int = 4) -> Any:
    """Wan 2.2, whose second transformer takes the steps of low noise."""
    config = WAN | {"in_channels": channels, "out_channels": channels}
    return pipeline(
        "WanPipeline",
        scheduler=unipc(),
        transformer=network("WanTransformer3DModel", 0, **config),
        transformer_2=network("WanTransformer3DModel", 1, **config),
        boundary_ratio=0.9,
    )


def wan_per_token() -> Any:
    """Wan 2.2 of 5B, which tells the time of each token."""
    transformer = network("WanTransformer3DModel", **WAN)
    return pipeline(
        "WanPipeline", scheduler=unipc(), transformer=transformer, expand_timesteps=True
    )


def skyreels_v2() -> Any:
    transformer = network("SkyReelsV2Transformer3DModel", **WAN)
    return pipeline("SkyReelsV2Pipeline", scheduler=unipc(), transformer=transformer)


def hunyuan_video() -> Any:
    transformer = network("HunyuanVideoTransformer3DModel", **HUNYUAN)
    return pipeline("HunyuanVideoPipeline", scheduler=flow(shift=7.0), transformer=transformer)


def kandinsky5() -> Any:
    transformer = network(
        "Kandinsky5Transformer3DModel",
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
    )
    return pipeline("Kandinsky5T2VPipeline", scheduler=flow(), transformer=transformer)


def cosmos_network(channels: int = 4, out_channels: int = 4) -> Any:
    return network(
        "CosmosTransformer3DModel",
        in_channels=channels,
        out_channels=out_channels,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        mlp_ratio=1.0,
        text_embed_dim=16,
        adaln_lora_dim=4,
        max_size=(4, 8, 8),
        concat_padding_mask=False,  # it would take torchvision
    )


class NoChecker:
    """The guardrail, whose package is not installed: everything is safe."""

    def to(self, *_: Any) -> "NoChecker":
        return self

    def check_text_safety(self, _: str) -> bool:
        return True


def cosmos() -> Any:
    scheduler = diffusers.EDMEulerScheduler(
        sigma_min=0.002, sigma_max=80, sigma_data=0.5, final_sigmas_type="sigma_min"
    )
    parts = {"scheduler": scheduler, "transformer": cosmos_network()}
    return pipeline("CosmosTextToWorldPipeline", **parts, safety_checker=NoChecker())


def cosmos2() -> Any:
    parts = {"scheduler": flow(use_karras_sigmas=True), "transformer": cosmos_network()}
    return pipeline("Cosmos2TextToImagePipeline", **parts, safety_checker=NoChecker())


def hunyuan_prompt(seed: int, prefix: str = "") -> dict[str, Any]:
    return {
        f"{prefix}prompt_embeds": embeds(seed, 1, 5, 16),
        f"{prefix}pooled_prompt_embeds": embeds(seed, 1, 16),
        f"{prefix}prompt_attention_mask": torch.ones(1, 5),
    }


def kandinsky_prompt(seed: int, prefix: str = "", length: int = 5) -> dict[str, Any]:
    return {
        f"{prefix}prompt_embeds_qwen": embeds(seed, 1, length, 16),
        f"{prefix}prompt_embeds_clip": embeds(seed, 1, 16),
        f"{prefix}prompt_cu_seqlens": torch.tensor([0, length]),
    }


FAMILIES = (
    TinyFamily(
        "WanTransformer3DModel", "WanPipeline", "B", wan, prompted, cfg, contexts=("cond", "uncond")
    ),
    TinyFamily(
        "WanTransformer3DModel",
        "WanPipeline",
        "B",
        wan_two,
        partial(prompted, num_inference_steps=3),
        cfg,
        contexts=("cond", "uncond"),
        components=("transformer", "transformer_2"),
        variant="two",
    ),
    TinyFamily(
        "WanTransformer3DModel",
        "WanPipeline",
        "B",
        wan_per_token,
        prompted,
        cfg,
        contexts=("cond", "uncond"),
        variant="per_token",
    ),
    TinyFamily(
        "SkyReelsV2Transformer3DModel",
        "SkyReelsV2Pipeline",
        "B",
        skyreels_v2,
        prompted,
        cfg,
        contexts=("cond", "uncond"),
    ),
    TinyFamily(
        "HunyuanVideoTransformer3DModel",
        "HunyuanVideoPipeline",
        "B",
        hunyuan_video,
        lambda _: sampling(**SIZE) | hunyuan_prompt(1),
        lambda _: {"true_cfg_scale": 4.0} | hunyuan_prompt(2, "negative_"),
        contexts=("cond", "uncond"),
    ),
    TinyFamily(
        "Kandinsky5Transformer3DModel",
        "Kandinsky5T2VPipeline",
        "B",
        kandinsky5,
        lambda _: sampling(**SIZE, guidance_scale=1.0) | kandinsky_prompt(1),
        lambda _: {"guidance_scale": 4.0} | kandinsky_prompt(2, "negative_", 7),
    ),
    TinyFamily(
        "CosmosTransformer3DModel",
        "CosmosTextToWorldPipeline",
        "B",
        cosmos,
        partial(prompted, num_frames=9),
        cfg,
        output="affine in sample",
        weights=(5.0, -4.0),
    ),
    TinyFamily(
        "CosmosTransformer3DModel",
        "Cosmos2TextToImagePipeline",
        "B",
        cosmos2,
        lambda _: (
            sampling(height=32, width=32, guidance_scale=1.0)
            | {"prompt_embeds": embeds(1, 1, 5, 16)}
        ),
        cfg,
        time="timestep = sigma / (sigma + 1)",
        output="affine in sample",
        weights=(5.0, -4.0),
    ),
)
