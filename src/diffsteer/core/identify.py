"""Prediction type and schedule of a network from its outputs, since no config tells for sure.

Checkpoints lose their prediction type and their schedule on the way from trainer to user. A handful
of forward passes brings both back.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.core.level import Level
from diffsteer.core.noise import Noise
from diffsteer.core.prediction import X0, Eps, Prediction, V, Velocity
from diffsteer.core.sampler import Denoise
from diffsteer.core.schedule import Schedule

Ask = Callable[[Tensor, Level], Tensor]
"""A network's raw output for `x`, `(B, *D)`, at a level."""

SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Where in the trained range a network is asked: five forward passes."""


@torch.no_grad()
def kind_of_network(network: Ask, schedule: Schedule, x0: Tensor, seed: int = 0) -> Prediction:
    """Prediction type of a network, by its error on a few noised samples.

    Args:
        network: Its raw output.
        schedule: That it was trained on.
        x0: Samples of its kind of data, `(B, *D)`; eight are plenty.
        seed: Of the noise.

    Raises:
        ValueError: no type explains the output better than the next by a fifth.
    """
    noise = Noise(range(seed, seed + len(x0)))
    errors: dict[Prediction, float] = dict.fromkeys((Eps(), X0(), V(), Velocity()), 0.0)
    for share in SHARES:
        level = schedule.at(schedule.share(torch.tensor(share)))
        eps = noise(x0)
        out = network(level.mix(x0, eps), level)
        for prediction in errors:
            target = prediction.target(x0, eps, level)
            errors[prediction] += ((out - target).square().mean() / target.square().mean()).item()
    best, second = sorted(errors, key=errors.__getitem__)[:2]
    if not errors[second] > 1.2 * errors[best]:
        shares = ", ".join(f"{type(k).__name__} {e / len(SHARES):.3g}" for k, e in errors.items())
        raise InputError(
            f"the output is explained by no prediction type alone; relative errors are {shares}: "
            "give more samples of the network's own data, or check the schedule"
        )
    return best


@torch.no_grad()
def noise_slope(network: Ask, schedule: Schedule, like: Tensor, seed: int = 0) -> float:
    """Slope of the output on pure noise at the last level.

    1 for Eps and Velocity, whose output there holds the noise, near 0 for V and X0, which say the
    mean of all data. Needs none of the data.

    Args:
        network: Its raw output.
        schedule: That it was trained on.
        like: Any tensor with the shape of some samples, `(B, *D)`.
        seed: Seed of the noise.
    """
    z = Noise(range(seed, seed + len(like)))(like)
    out = network(z, schedule.at(schedule.last))
    return float((out * z).sum() / z.square().sum())


@torch.no_grad()
def data_slope(network: Ask, schedule: Schedule, like: Tensor, seed: int = 0) -> float:
    """Slope of the output's mean with the mean of the data, at `data_level`.

    Noise hides the mean of many pixels there no longer. With x0 in full it is 1 for X0, -sigma for
    V, 0 for Eps and -1 for Velocity, so that it parts those that `noise_slope` does not. Smooth
    random fields stand for data.

    Args:
        network: Its raw output.
        schedule: That it was trained on.
        like: Any tensor with the shape of some samples, `(B, C, H, W)`.
        seed: Seed of the fields and of the noise.
    """
    x0, eps = _noised(like, seed)
    level = data_level(schedule)
    up, down = (network(level.mix(x0 + s, eps), level).mean() for s in (0.1, -0.1))
    return float((up - down) / 0.2)


def data_level(schedule: Schedule) -> Level:
    """Level of `data_slope`: half way through the trained range, or sigma = 2 alpha if noisier.

    Where alpha / sigma is small, so is what a network that misses the mean of x0 adds to eps.
    """
    half, twice = schedule.share(torch.tensor(0.5)), schedule.time(torch.tensor(2.0).double())
    return schedule.at(torch.maximum(half, twice))


@dataclass(frozen=True)
class Responses:
    """Outputs of a network in numbers, which tell its prediction type without any data.

    Attributes:
        noise: `noise_slope`.
        noise_share: Share of the output's square there that is along the noise.
        data: `data_slope`.
        change: Slope of the output with a small change of the noise, where sigma = alpha.
        change_share: Share of the square of the output's change that is along it.
        image_share: Share of the output's square along the data where sigma = alpha / 4.
    """

    noise: float
    noise_share: float
    data: float
    change: float
    change_share: float
    image_share: float


@torch.no_grad()
def responses(network: Ask, schedule: Schedule, like: Tensor, seed: int = 0) -> Responses:
    """Ask a network six times; arguments as of `data_slope`."""
    z, last = Noise(range(seed, seed + len(like)))(like), schedule.at(schedule.last)
    noise = network(z, last)
    x0, eps = _noised(like, seed)
    equal, low = (schedule.at(schedule.time(torch.tensor(r).double())) for r in (1.0, 0.25))
    step = 0.1 * Noise(range(seed + 2 * len(like), seed + 3 * len(like)))(like)
    up, down = (network(equal.mix(x0, eps + s), equal) for s in (step, -step))
    image = network(low.mix(x0, eps), low)
    return Responses(
        *_along(noise, z),
        data_slope(network, schedule, like, seed),
        *_along((up - down) / 2, step),
        _along(image, x0)[1],
    )


def _along(out: Tensor, x: Tensor) -> tuple[float, float]:
    """Slope of `out` with `x`, and the share of its square that this explains."""
    product, square = (out * x).sum(), x.square().sum()
    whole = (out.square().sum() * square).clamp(min=torch.finfo(square.dtype).tiny)
    return float(product / square), float(product.square() / whole)


def _noised(like: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Fields that stand for data, and noise."""
    return 0.5 * _fields(like, seed), Noise(range(seed, seed + len(like)))(like)


def _fields(like: Tensor, seed: int) -> Tensor:
    """Random fields of standard deviation 1 whose amplitude falls with frequency^-1.5."""
    noise = Noise(range(seed + len(like), seed + 2 * len(like)))(like)
    waves = [torch.fft.fftfreq(n, device=noise.device) for n in like.shape[-2:]]
    frequency = torch.hypot(waves[0][:, None], waves[1][None])
    frequency[0, 0] = 1 / max(like.shape[-2:])
    field = torch.fft.ifft2(torch.fft.fft2(noise) / frequency**1.5).real
    scaled: Tensor = field / field.std(dim=(1, 2, 3), keepdim=True)
    return scaled


def kind_without_data(seen: Responses) -> Prediction | None:
    """Prediction type by its responses; None where they fit none, as those of untrained networks.

    A trained network of any type but X0 answers a change of the noise, which random weights do not.
    Bounds are wide for small networks: one of 7 million weights has 0.57 in place of V's 0.7 for
    `change`, -0.3 in place of -0.9 for `data`, and one that was brought from eps to V by 8,000
    images alone still 0.2 for `noise`. Between them is nothing: a network of Velocity that
    hardly sees the mean of the data has `data` of Eps, but the mean image in its output on noise.
    """
    noisy = seen.change_share > 0.4
    if abs(seen.noise - 1) < 0.2 and noisy:
        if seen.data < -0.25 and seen.noise_share > 0.5 and seen.change > 0.5:
            return Velocity()
        clean = seen.data > -0.1 and seen.noise_share > 0.95 and seen.change > 0.75
        return Eps() if clean else None
    if abs(seen.noise) < 0.35 and noisy and 0.25 < seen.change < 0.95 and seen.data < -0.15:
        return V()
    still = abs(seen.noise) < 0.2 and abs(seen.change) < 0.25
    return X0() if still and seen.data > 0.5 and seen.image_share > 0.6 else None


@torch.no_grad()
def brightness_gain(denoise: Denoise, schedule: Schedule, like: Tensor, seed: int = 0) -> float:
    """How much the mean of x0 follows the mean of the noise at the last level.

    0 for a network of zero terminal SNR, which cannot know; of the order of 10 for large latents on
    Stable Diffusion's schedule, whose network reads the brightness of the image off its noise.

    Args as of `noise_slope`, with the network as a denoiser.

    Source of the effect: Lin et al. 2023, https://arxiv.org/abs/2305.08891.
    """
    z = Noise(range(seed, seed + len(like)))(like)
    step = like[0].numel() ** -0.5  # a standard deviation of the mean of noise
    level = schedule.at(schedule.last)
    up, down = (denoise(z + s, level).mean() for s in (step, -step))
    return float((up - down) / (2 * step))
