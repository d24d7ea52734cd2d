"""Pipelines that call their network once for each condition, for `steer.py`."""

import copy
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import diffusers
import torch
from torch import Tensor

from diffsteer import Guidance
from diffsteer.steering import steer

WIDTH, TOKENS, SIDE = 256, 64, 256
LATENT = {
    "base_dim": 4,
    "z_dim": 4,
    "dim_mult": [1, 1, 1, 1],
    "num_res_blocks": 1,
    "latents_mean": [0.0] * 4,
    "latents_std": [1.0] * 4,
}
HEADS: dict[str, Any] = {"attention_head_dim": 32, "num_attention_heads": WIDTH // 32}
LAYERS = {"small": 4, "mid": 24}


def qwen(layers: int) -> tuple[Any, dict[str, Any], str]:
    """A narrow Qwen-Image, its latents, and the argument of its guidance scale."""
    network = diffusers.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(8, 12, 12),
        num_layers=layers,
        **HEADS,
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer"))
    pipe = diffusers.QwenImagePipeline(transformer=network, scheduler=scheduler, **parts)
    return pipe, {"latents": torch.randn(1, 256, 16)}, "true_cfg_scale"


def wan(layers: int) -> tuple[Any, dict[str, Any], str]:
    """A narrow Wan, its latents of one frame, and the argument of its guidance scale."""
    network = diffusers.WanTransformer3DModel(
        in_channels=4,
        out_channels=4,
        text_dim=WIDTH,
        freq_dim=64,
        ffn_dim=4 * WIDTH,
        num_layers=layers,
        **HEADS,
    )
    vae = diffusers.AutoencoderKLWan(**LATENT)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    parts = dict.fromkeys(("text_encoder", "tokenizer"))
    pipe = diffusers.WanPipeline(transformer=network, scheduler=scheduler, vae=vae, **parts)
    latents = torch.randn(1, 4, 1, 32, 32)
    return pipe, {"latents": latents, "num_frames": 1}, "guidance_scale"


FAMILIES = {"qwen": qwen, "wan": wan}


class SeparateCalls:
    """One network, its embeddings and the pipeline around it.

    Args:
        family: Name in `FAMILIES`.
        size: Name in `LAYERS`.
        device: On which it runs.
        steps: Of a sampling.
    """

    def __init__(self, family: str, size: str, device: str, steps: int) -> None:
        torch.manual_seed(0)
        self.device, self.steps = device, steps
        self.dtype = torch.bfloat16 if device == "cuda" else torch.float32
        pipe, call, scale = FAMILIES[family](LAYERS[size])
        self.pipe = pipe.to(device, self.dtype)
        self.pipe.set_progress_bar_config(disable=True)
        self.network = self.pipe.transformer.eval().requires_grad_(False)
        text = torch.randn(2, TOKENS, WIDTH).to(device, self.dtype)
        embeddings = {"prompt_embeds": text[:1], "negative_prompt_embeds": text[1:]}
        options = {"height": SIDE, "width": SIDE, "output_type": "latent", scale: 5.0}
        self.call = {**call, **embeddings, **options}
        self._calls = self._noted()
        self._kept = ExitStack()

    def sampling(self, pipe: Any = None) -> Callable[[], Any]:
        """The pipeline with guidance of its own, unless it is steered."""
        latents: Tensor = self.call["latents"].to(self.device, self.dtype)
        made = self.pipe if pipe is None else pipe
        return lambda: made(
            **self.call | {"latents": latents.clone()}, num_inference_steps=self.steps
        )

    def predict(self, guidance: Guidance, max_rows: int | None = None) -> Callable[[], Any]:
        """The pipeline, steered anew for each sampling."""
        run = self.sampling()

        def act() -> object:
            with steer(self.pipe, guidance, max_rows=max_rows):
                return run()

        return act

    def kept(self, guidance: Guidance) -> Callable[[], Any]:
        """A copy of the pipeline that stays steered for all samplings."""
        pipe = copy.copy(self.pipe)
        pipe.transformer = copy.deepcopy(self.network)
        self._kept.enter_context(steer(pipe, guidance))
        return self.sampling(pipe)

    def bare(self, passes: tuple[int, ...]) -> Callable[[], Any]:
        """The network alone, as the pipeline calls it, on so many rows in each pass."""
        calls = [_joined([self._calls[i % 2] for i in range(rows)]) for rows in passes]

        def act() -> None:
            for _ in range(self.steps):
                for kwargs in calls:
                    self.network(**kwargs)

        return act

    def _noted(self) -> list[dict[str, Any]]:
        """Arguments of the calls of a step, for the prompt and for the null prompt."""
        calls: list[dict[str, Any]] = []
        noting = self.network.register_forward_pre_hook(
            lambda _, args, kwargs: calls.append(kwargs), with_kwargs=True
        )
        with torch.no_grad():
            self.sampling()()
        noting.remove()
        return calls[:2]


def _joined(calls: list[dict[str, Any]]) -> dict[str, Any]:
    """One call of several, whose tensors and lists have a row for each sample."""
    first = calls[0]
    joined: dict[str, Any] = {}
    for name, value in first.items():
        values = [call[name] for call in calls]
        if isinstance(value, Tensor) and value.ndim > 0:
            joined[name] = torch.cat(values)
        elif isinstance(value, list):
            joined[name] = [item for part in values for item in part]
        else:
            joined[name] = value
    return joined
