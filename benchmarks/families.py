"""Steered CFG beside the pipeline's own in networks of published size, with random weights.

    python benchmarks/families.py sd15        # one family a process; prints one row of the table

Weights are random, so images mean nothing; sizes, memory and times are those of the published
configurations. Flux, Qwen-Image and Wan have two blocks of each kind. "difference" is the largest
of the final sample relative to its largest value; Qwen-Image brings the norm of its own sum back,
so that it is compared with the sum of its unguided outputs, after one step. Peak memory is that of
the process, first with the pipeline's own guidance and then steered. Seconds are CPU time of one
thread.
"""

import argparse
import inspect
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import accelerate
import diffusers
import torch
from torch import Tensor

from diffsteer.steering import steer

SCALE = 4.0
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}
SD35_MEDIUM = {
    "sample_size": 128,
    "num_layers": 24,
    "num_attention_heads": 24,
    "pos_embed_max_size": 384,
    "caption_projection_dim": 1536,
    "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
}
WAN = {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 2, "patch_size": (1, 2, 2)}


@dataclass(frozen=True)
class Family:
    """A pipeline of published size.

    Attributes:
        pipeline: Its class.
        part: Name of the network in it.
        network: Class of the network.
        config: Of the network, where it differs from the defaults of its class.
        scheduler: Makes the scheduler.
        prompts: Shapes of the prompt's embeddings.
        call: Further arguments of a call.
        scale: Argument that holds the pipeline's own guidance scale.
        steps: Of a sampling.
    """

    pipeline: str
    part: str
    network: str
    config: dict[str, Any]
    scheduler: Callable[[], Any]
    prompts: dict[str, tuple[int, ...]]
    call: dict[str, Any]
    scale: str = "guidance_scale"
    steps: int = 2


def flow() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)


def ddim() -> Any:
    return diffusers.DDIMScheduler(**BETAS)


SIZE = {"height": 256, "width": 256}
FAMILIES = {
    "sd15": Family(
        "StableDiffusionPipeline",
        "unet",
        "UNet2DConditionModel",
        {"sample_size": 64, "cross_attention_dim": 768},
        ddim,
        {"prompt_embeds": (1, 77, 768)},
        SIZE,
    ),
    "sdxl": Family(
        "StableDiffusionXLPipeline",
        "unet",
        "UNet2DConditionModel",
        SDXL,
        ddim,
        {"prompt_embeds": (1, 77, 2048), "pooled_prompt_embeds": (1, 1280)},
        SIZE,
    ),
    "sd35-medium": Family(
        "StableDiffusion3Pipeline",
        "transformer",
        "SD3Transformer2DModel",
        SD35_MEDIUM,
        flow,
        {"prompt_embeds": (1, 333, 4096), "pooled_prompt_embeds": (1, 2048)},
        SIZE,
    ),
    "flux": Family(
        "FluxPipeline",
        "transformer",
        "FluxTransformer2DModel",
        {"num_layers": 2, "num_single_layers": 2, "guidance_embeds": True},
        flow,
        {"prompt_embeds": (1, 128, 4096), "pooled_prompt_embeds": (1, 768)},
        SIZE,
        "true_cfg_scale",
    ),
    "qwen-image": Family(
        "QwenImagePipeline",
        "transformer",
        "QwenImageTransformer2DModel",
        {"num_layers": 2},
        flow,
        {"prompt_embeds": (1, 64, 3584)},
        SIZE,
        "true_cfg_scale",
        steps=1,
    ),
    "wan": Family(
        "WanPipeline",
        "transformer",
        "WanTransformer3DModel",
        WAN,
        flow,
        {"prompt_embeds": (1, 128, 4096)},
        SIZE | {"num_frames": 9},
    ),
}


def network(family: Family, dtype: torch.dtype) -> Any:
    """A network with random weights, drawn as one block and repeated."""
    with accelerate.init_empty_weights(include_buffers=False):
        made = getattr(diffusers, family.network)(**family.config)
    noise = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)).to(dtype)
    for module in made.modules():
        for name, value in module.named_parameters(recurse=False):
            count = value.numel()
            drawn = noise.repeat(-(-count // len(noise)))[:count].clone().reshape(value.shape)
            drawn.mul_(value[0].numel() ** -0.5 if value.ndim > 1 else 0.02)
            drawn.add_(float(value.ndim == 1 and name == "weight"))
            setattr(module, name, torch.nn.Parameter(drawn, requires_grad=False))
    return made.eval()


def pipeline(family: Family, dtype: torch.dtype) -> Any:
    """A pipeline of this network and scheduler alone."""
    cls = getattr(diffusers, family.pipeline)
    names = inspect.signature(cls.__init__).parameters.values()
    parts = {family.part: network(family, dtype), "scheduler": family.scheduler()}
    missing = [p.name for p in names if p.default is p.empty and p.name not in {"self", *parts}]
    pipe = cls(**dict.fromkeys(missing), **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sampled(
    family: Family,
    pipe: Any,
    scale: float,
    guidance: str = "",
    null: dict[str, Tensor] | None = None,
) -> Tensor:
    """Final latents, with the pipeline's own guidance or steered."""
    dtype = getattr(pipe, family.part).dtype
    call = family.call | {"num_inference_steps": family.steps, family.scale: scale}
    call |= {"output_type": "latent", "return_dict": False}
    for seed, prefix in enumerate(("", "negative_")):
        for name, shape in family.prompts.items():
            generator = torch.Generator().manual_seed(seed)
            call[prefix + name] = torch.randn(shape, generator=generator).to(dtype)
    call |= {name: value.to(dtype) for name, value in (null or {}).items()}
    call |= {"generator": torch.Generator().manual_seed(2)}
    if not guidance:
        return torch.as_tensor(pipe(**call)[0]).float()
    with steer(pipe, guidance):
        return torch.as_tensor(pipe(**call)[0]).float()


def expected(family: Family, pipe: Any) -> Tensor:
    """What the pipeline's own guidance gives, or, of Qwen-Image, the sum of its outputs."""
    own = sampled(family, pipe, SCALE)
    if family.pipeline != "QwenImagePipeline":
        return own
    null = {
        name: torch.randn(shape, generator=torch.Generator().manual_seed(1))
        for name, shape in family.prompts.items()
    }
    cond = sampled(family, pipe, 1.0)
    return SCALE * cond - (SCALE - 1) * sampled(family, pipe, 1.0, null=null)


def peak() -> float:
    """Peak memory of this process in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def timed(run: Callable[[], Tensor]) -> tuple[Tensor, float, float]:
    """Result, CPU seconds of this thread, and the peak of memory after it."""
    start = time.thread_time()
    result = run()
    return result, time.thread_time() - start, peak()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    settings = parser.parse_args()
    name, family = settings.family, FAMILIES[settings.family]
    pipe = pipeline(family, getattr(torch, settings.dtype))
    size = sum(p.numel() for p in getattr(pipe, family.part).parameters())
    wanted, _, _ = timed(lambda: expected(family, pipe))
    _, own, before = timed(lambda: sampled(family, pipe, SCALE))
    steered, seconds, after = timed(lambda: sampled(family, pipe, SCALE, f"CFG({SCALE})"))
    difference = float((steered - wanted).abs().max() / wanted.abs().max())
    cells = [name, f"{size / 1e9:.2f}", settings.dtype, family.steps, f"{difference:.1e}"]
    cells += [f"{own:.1f}", f"{seconds:.1f}", f"{before:.1f}", f"{after:.1f}"]
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
