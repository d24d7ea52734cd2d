"""Sampling EDM2 networks as their authors did: the same random numbers for the same seed."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffsteer.denoiser import Denoiser
from diffsteer.guidance import Guidance
from diffsteer.nets.edm2 import EDM2, network
from diffsteer.noise import Noise
from diffsteer.prediction import Preconditioned
from diffsteer.sampler import Heun, Sampler, trace
from diffsteer.schedule import EDM
from diffsteer.spacing import Spacing, grid


@torch.no_grad()
def generate(
    main: EDM2,
    seeds: Sequence[int],
    guidance: Guidance | None = None,
    guide: EDM2 | None = None,
    steps: int = 32,
    sampler: Sampler | None = None,
    schedule: EDM | None = None,
    spacing: str | Spacing = "karras",
    label: int | None = None,
) -> Tensor:
    """Sample what the network works on: pixels in [-1, 1], or latents.

    Each seed has a generator on the CPU, which gives, in this order, the latent, the class, and the
    noise of churn: the same numbers as official sampling on a CPU. A class is drawn even if one is
    given.

    Args:
        main: The network.
        seeds: One for each sample; taken modulo 2^32.
        guidance: `Auto(weight)` with a guide, `CFG(weight)` with the network's own null class, any
            sum of guidances; None for none.
        guide: The weaker, or unconditional, network.
        steps: Of the sampler.
        sampler: None is `Heun()`. Churn is Heun(gamma=min(S_churn / steps, 2^0.5 - 1), lo=S_min,
            hi=S_max, swell=S_noise).
        schedule: None is `EDM()`, sigma from 80 to 0.002.
        spacing: As for `grid`.
        label: Class of all samples; None draws one for each.

    Returns:
        `(B, C, H, W)`, float32.

    Raises:
        ValueError: the networks do not work on the same data, or there is no such class.
    """
    _check(main, guide, label)
    noise = Noise([seed % 2**32 for seed in seeds])
    device = next(main.parameters()).device
    start = noise(torch.empty(len(seeds), *main.shape, device=device))
    conds: dict[str, Mapping[str, Any]] = {"cond": {}, "null": {}}
    if main.label_dim:
        drawn = noise.integers(main.label_dim)
        drawn = drawn if label is None else torch.full_like(drawn, label)
        labels = F.one_hot(drawn, main.label_dim).float().to(device)
        conds = {"cond": {"labels": labels}, "null": {"labels": torch.zeros_like(labels)}}
    nets = {"main": network(main)}
    if guide is not None:
        nets["guide"] = nets["main"] if guide is main else network(guide)
    denoiser = Denoiser(nets, conds, Preconditioned(main.sigma_data), guidance)
    levels = grid(schedule or EDM(), steps, spacing)
    *_, last = trace(sampler or Heun(), levels[0].sigma * start, levels, denoiser, noise)
    return last.x


def _check(main: EDM2, guide: EDM2 | None, label: int | None) -> None:
    if label is not None and not 0 <= label < main.label_dim:
        raise ValueError(f"class {label} of a network that knows {main.label_dim}")
    if guide is None:
        return
    if guide.shape != main.shape or guide.sigma_data != main.sigma_data:
        raise ValueError(f"a guide for {guide.shape} cannot guide a network for {main.shape}")
    if guide.label_dim not in (0, main.label_dim):
        raise ValueError(f"a guide of {guide.label_dim} classes, a network of {main.label_dim}")


def pixels(x: Tensor) -> Tensor:
    """Bytes of RGB samples, `(B, 3, H, W)` in [-1, 1]; truncated as in official sampling."""
    return (x * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def latents(x: Tensor, scale: Sequence[float], bias: Sequence[float]) -> Tensor:
    """What the decoder takes for latent samples: (x - bias) / scale by channel."""
    by_channel = (torch.tensor(v, dtype=x.dtype, device=x.device) for v in (scale, bias))
    scales, biases = (v.view(1, -1, 1, 1) for v in by_channel)
    return (x - biases) / scales
