"""Tiny families: what describes one, and the parts of its pipeline."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor

Options = Callable[[Any], dict[str, Any]]


BATCHES = {"A": (2,), "B": (1, 1), "C": (1, 1), "D": (1, 1), "E": (1,)}
WEIGHTS = {"A": (-3.0, 4.0), "B": (4.0, -3.0), "C": (4.0, -3.0), "D": (4.0, -3.0)}


@dataclass(frozen=True)
class TinyFamily:
    """One network class in a pipeline of random weights, and the facts of how it is called.

    Patterns, as the pipeline's own guidance calls the network in a step: A one call, the
    conditions in its batch; B one call a condition; C as its `guider` says; D a second network
    for the null condition; E distilled, no null condition.
    """

    network: str
    pipeline: str
    pattern: str
    build: Callable[[], Any]
    kwargs: Options  # of a call without guidance
    guided: Options | None  # what turns on the pipeline's own classifier-free guidance
    time: str = "timestep = t"  # argument of the network, from the timestep t of the scheduler
    output: str = "+1"  # factor between the network's output and what `scheduler.step` is given
    batches: tuple[int, ...] = ()  # conditions in each call of a guided step; () as the pattern
    contexts: tuple[str | None, ...] = ()  # `cache_context` of each call of a guided step
    weights: tuple[float, ...] | None = ()  # of the conditions, in their order, at a scale of 4
    sample: str = ""  # argument that carries the sample where it is not the first
    components: tuple[str, ...] = ()  # networks of a guided sampling where there are several
    variant: str = ""
    slow: bool = False

    @property
    def name(self) -> str:
        names = self.network.removesuffix("Model"), self.pipeline.removesuffix("Pipeline")
        return "-".join(filter(None, (*names, self.variant)))


def network(kind: str | type, seed: int = 0, **config: Any) -> Any:
    """A network of diffusers: every weight random, so that no gate or last layer is 0."""
    torch.manual_seed(seed)
    cls = getattr(diffusers, kind) if isinstance(kind, str) else kind
    return randomised(cls(**config), seed)


@torch.no_grad()
def randomised(module: Any, seed: int = 0) -> Any:
    """Draw all weights anew: norms near 1, matrices that keep features of order 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        scale = value[0].numel() ** -0.5 if value.ndim > 1 else 0.1
        value.copy_(scale * noise + float(value.ndim == 1 and name.endswith("weight")))
    return module.eval().requires_grad_(False)


def pipeline(kind: str | type, **parts: Any) -> Any:
    """A pipeline of the given parts, None for each other part, its progress bar off."""
    cls = getattr(diffusers, kind) if isinstance(kind, str) else kind
    names = inspect.signature(cls.__init__).parameters.values()
    missing = [p.name for p in names if p.default is p.empty and p.name not in {"self", *parts}]
    pipe = cls(**dict.fromkeys(missing), **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def embeds(seed: int, *shape: int) -> Tensor:
    """A prompt embedding of the given shape; seed 1 stands for a prompt, 2 for the null prompt."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sampling(**more: Any) -> dict[str, Any]:
    """Arguments that all calls share: two steps, latents, a seed."""
    generator = torch.Generator().manual_seed(0)
    return {"num_inference_steps": 2, "generator": generator, "output_type": "latent"} | more


def flow(**config: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**config)


def image(seed: int = 0, size: int = 32) -> Any:
    """A PIL image of coloured noise."""
    from PIL import Image

    pixels = torch.randint(0, 256, (size, size, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.byte().numpy())


def wan_vae(**more: Any) -> Any:
    """The autoencoder of Wan, Qwen-Image and many others: 8x8 pixels, 4 frames, 4 channels."""
    settings = {
        "base_dim": 4,
        "z_dim": 4,
        "dim_mult": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "latents_mean": [0.0] * 4,
        "latents_std": [1.0] * 4,
    }
    return network("AutoencoderKLWan", 2, **settings | more)


def prompt(seed: int, prefix: str = "", length: int = 5, mask: str = "") -> dict[str, Any]:
    """The arguments of one prompt as an embedding of 16 channels, with a mask where named."""
    kwargs = {f"{prefix}prompt_embeds": embeds(seed, 1, length, 16)}
    return kwargs | ({prefix + mask: torch.ones(1, length, dtype=torch.long)} if mask else {})


def kl_vae(channels: int = 4, blocks: int = 4, **more: Any) -> Any:
    """An autoencoder of images: 8x8 pixels where it has four blocks."""
    settings = {
        "block_out_channels": (8,) * blocks,
        "down_block_types": ("DownEncoderBlock2D",) * blocks,
        "up_block_types": ("UpDecoderBlock2D",) * blocks,
        "layers_per_block": 1,
        "latent_channels": channels,
        "norm_num_groups": 4,
        "shift_factor": 0.1,
    }
    return network("AutoencoderKL", 2, **settings | more)
