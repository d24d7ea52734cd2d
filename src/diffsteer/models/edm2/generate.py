"""Sampling EDM2 networks as their authors did: the same random numbers and the same rounding.

`Denoiser` with `Heun()` solves the same equation more exactly in float32, with any sampler and
schedule. This loop is for who wants the published images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import index
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffsteer.core.errors import InputError, brief
from diffsteer.core.level import Level
from diffsteer.core.prediction import X0
from diffsteer.core.schedule import EDM
from diffsteer.guidance import Auto, Guidance
from diffsteer.guidance.denoiser import Cond, Denoiser, Network
from diffsteer.guidance.weight_schedules import WeightSchedule
from diffsteer.models.edm2.loop_settings import Guided
from diffsteer.models.edm2.loop_settings import Loop as Loop
from diffsteer.models.edm2.model import EDM2, network

OFFICIAL = Loop()


@torch.no_grad()
def generate(
    main: EDM2,
    seeds: Sequence[int],
    guidance: Guidance | None = None,
    guide: EDM2 | None = None,
    loop: Loop = OFFICIAL,
    label: int | None = None,
    dtype: torch.dtype = torch.float32,
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
        loop: The sampler.
        label: Class of all samples; None draws one for each.
        dtype: Of all but the networks.

    Returns:
        `(B, C, H, W)`, in `dtype`.
    """
    _check(main, guide, label)
    seeds = [int(seed) % 2**32 for seed in seeds]
    if not seeds:
        raise InputError("there are no seeds: give one for each sample")
    draws = [torch.Generator().manual_seed(seed) for seed in seeds]
    device = main.unet.out_gain.device

    def noise(dtype: torch.dtype = dtype) -> Tensor:
        rows = [torch.randn(main.shape, generator=g, dtype=dtype) for g in draws]
        return torch.stack(rows).to(device)

    start = noise(torch.float32).to(dtype)
    conds: dict[str, Cond] = {"cond": {}, "null": {}}
    if main.label_dim:
        drawn = torch.stack([torch.randint(main.label_dim, (), generator=g) for g in draws])
        drawn = drawn if label is None else torch.full_like(drawn, label)
        labels = F.one_hot(drawn, main.label_dim).float().to(device)
        conds = {"cond": {"labels": labels}, "null": {"labels": torch.zeros_like(labels)}}
    return loop(start, guided(main, guide, conds, guidance, seeds, loop.times(dtype)), noise)


def guided(
    main: EDM2,
    guide: EDM2 | None,
    conds: Mapping[str, Cond],
    guidance: Guidance | None,
    seeds: Sequence[int] | None = None,
    times: Tensor | None = None,
) -> Guided:
    """A guided denoiser for `Loop`, in the dtype of its x.

    Each network's denoised x is rounded to the dtype that the network computes in, and `Auto` alone
    is one `torch.lerp`, as in official sampling; other guidances are computed in float64, draw by
    `seeds`, and see the level that a step goes to where the loop's `times` are given.
    """

    def called(net: EDM2) -> Network:
        def call(x: Tensor, level: Level, cond: Cond) -> Tensor:
            x0: Tensor = net(x, level.sigma, cond.get("labels"))
            return x0.double()

        return replace(network(net), call=call)

    nets = {"main": called(main)}
    if guide is not None:
        nets["guide"] = nets["main"] if guide is main else called(guide)
    one = torch.ones((), dtype=torch.float64)
    levels = [] if times is None else [Level(t.double(), one, t.double()) for t in times]
    denoiser = Denoiser(nets, conds, X0(), guidance, schedule=EDM(), seeds=seeds, levels=levels)

    def denoise(x: Tensor, sigma: Tensor, step: int) -> Tensor:
        level = Level(sigma.double(), one, sigma.double())
        return denoiser.at_step(step)(x.double(), level).x0.to(x.dtype)

    if not isinstance(guidance, Auto) or guide is None:
        return denoise
    if isinstance(guidance.scale, WeightSchedule) or guidance != Auto(guidance.scale):
        return denoise
    return _lerp(nets["main"], nets["guide"], conds["cond"], guidance.scale)


def _lerp(main: Network, guide: Network, cond: Cond, scale: float) -> Guided:
    def denoise(x: Tensor, sigma: Tensor, step: int) -> Tensor:
        level = Level(sigma, torch.ones_like(sigma), sigma)
        good = main.call(x, level, cond).to(x.dtype)
        return (
            good if scale == 1 else torch.lerp(guide.call(x, level, cond).to(x.dtype), good, scale)
        )

    return denoise


def _check(main: EDM2, guide: EDM2 | None, label: int | None) -> None:
    if label is not None and not _is_class(label, main.label_dim):
        hint = f"give one number, 0 to {main.label_dim - 1}" if main.label_dim else "leave it out"
        raise InputError(f"class {brief(label)} of a network that knows {main.label_dim}: {hint}")
    if guide is None:
        return
    if guide.shape != main.shape or guide.sigma_data != main.sigma_data:
        raise InputError(f"a guide for {guide.shape} cannot guide a network for {main.shape}")
    if guide.label_dim not in (0, main.label_dim):
        raise InputError(f"a guide of {guide.label_dim} classes, a network of {main.label_dim}")


def _is_class(label: Any, count: int) -> bool:
    try:
        return 0 <= index(label) < count
    except TypeError:  # several, or a text
        return False


def pixels(x: Tensor) -> Tensor:
    """Bytes of samples in [-1, 1], `(B, 3, H, W)` of RGB or of grey, whose one channel is copied.

    Truncated as in official sampling.
    """
    grey = x.shape[1] == 1
    return (x * 127.5 + 128).clamp(0, 255).to(torch.uint8).expand(-1, 3 if grey else -1, -1, -1)


def latents(x: Tensor, scale: Sequence[float], bias: Sequence[float]) -> Tensor:
    """What the decoder takes for latent samples: (x - bias) / scale by channel."""
    by_channel = (torch.tensor(v, dtype=x.dtype, device=x.device) for v in (scale, bias))
    scales, biases = (v.view(1, -1, 1, 1) for v in by_channel)
    return (x - biases) / scales


@torch.no_grad()
def encoded(shown: Tensor, vae: Any) -> Tensor:
    """Raw latents of bytes `(B, 3, H, W)`: the mean of each posterior, for pixels in [0, 1].

    The autoencoder was trained on pixels in [-1, 1], but published networks on these latents, whose
    means and deviations their constants are.
    """
    mean: Tensor = vae.encode(shown.to(vae.device, vae.dtype) / 255).latent_dist.mean
    return mean


@torch.no_grad()
def decode_latents(x: Tensor, vae: Any, scale: Sequence[float], bias: Sequence[float]) -> Tensor:
    """Images of latent samples, `(B, 3, H, W)`, about [0, 1]."""
    raw = latents(x, scale, bias).to(vae.dtype)
    rows = [vae.decode(row[None]).sample for row in raw]  # one at a time, so that batches agree
    return torch.cat(rows)


def decoded_bytes(images: Tensor) -> Tensor:
    """Bytes of decoded images on the CPU; truncated as in official sampling."""
    return (images.clamp(0, 1) * 255).to(torch.uint8).cpu()
