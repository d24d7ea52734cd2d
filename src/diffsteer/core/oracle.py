"""Exact denoisers for data whose distribution is known: ground truth for samplers and guidance.

An oracle returns E[x0 | x] at any level. With a `Prediction` around it, it is the network that was
trained to perfection on that data and sees x and the level only.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffsteer.core.level import Level
from diffsteer.core.prediction import Prediction
from diffsteer.core.sampler import Denoise


@dataclass(frozen=True)
class Gaussian:
    """Independent pixels N(mean, std^2)."""

    mean: float = 1.5
    std: float = 0.5

    def __call__(self, x: Tensor, level: Level) -> Tensor:
        """Return E[x0 | x], `(B, *D)`."""
        gain = level.alpha * self.std**2 / self.var(level)
        return self.mean + gain * (x - level.alpha * self.mean)

    def var(self, level: Level) -> Tensor:
        """Variance of a pixel of x."""
        return (level.alpha * self.std) ** 2 + level.sigma**2

    def exact(self, z: Tensor, level: Level) -> Tensor:
        """Point of the probability-flow ODE through quantile `z`, in float64."""
        return level.alpha * self.mean + self.var(level).sqrt() * z


@dataclass(frozen=True)
class Bright:
    """x0 = b 1 + std n with one brightness b ~ N(mean, spread^2) a sample."""

    mean: float = 0.6
    spread: float = 0.3
    std: float = 0.2

    def __call__(self, x: Tensor, level: Level) -> Tensor:
        """Return E[x0 | x], `(B, *D)`."""
        dims = tuple(range(1, x.ndim))
        size = x[0].numel()
        level_mean = x.mean(dim=dims, keepdim=True)
        flat = Gaussian(self.mean, (self.spread**2 + self.std**2 / size) ** 0.5)
        rest = Gaussian(0.0, self.std)
        return flat(level_mean, scaled(level, size)) + rest(x - level_mean, level)


def scaled(level: Level, size: int) -> Level:
    """Level of the mean of `size` pixels, whose noise is sqrt(size) times smaller."""
    return level._replace(sigma=level.sigma / size**0.5)


@dataclass(frozen=True)
class Mixture:
    """Share `weight` from N(mode, std^2 I), the rest from N(-mode, std^2 I)."""

    mode: float = 0.9
    std: float = 0.2
    weight: float = 0.8

    def __call__(self, x: Tensor, level: Level) -> Tensor:
        """Return E[x0 | x], `(B, *D)`."""
        dims = tuple(range(1, x.ndim))
        size = x[0].numel()
        level_mean = x.mean(dim=dims, keepdim=True)
        modes = (Gaussian(m, self.std / size**0.5) for m in (self.mode, -self.mode))
        near, far = (mode(level_mean, scaled(level, size)) for mode in modes)
        pull = 2 * level.alpha * self.mode * level_mean * size / Gaussian(0.0, self.std).var(level)
        share = torch.sigmoid(pull + math.log(self.weight / (1 - self.weight)))
        flat = share * near + (1 - share) * far
        return flat + Gaussian(0.0, self.std)(x - level_mean, level)


def as_network(oracle: Denoise, kind: Prediction) -> Denoise:
    """Return the network that outputs `kind`, followed by the conversion back to x0."""

    def denoise(x: Tensor, level: Level) -> Tensor:
        return kind.x0(x, kind.output_for_x0(x, oracle(x, level), level), level)

    return denoise


def antithetic(n: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Noise in pairs x, -x whose means are exact normal quantiles: no Monte-Carlo error there."""
    gen = torch.Generator().manual_seed(seed)
    x = torch.randn(n // 2, *shape, generator=gen, dtype=torch.float64)
    dims = tuple(range(1, x.ndim))
    q = torch.special.ndtri((torch.arange(n // 2, dtype=torch.float64) + 0.5) / n + 0.5)
    q = q / (q**2).mean().sqrt() / math.sqrt(x[0].numel())
    x = x - x.mean(dims, keepdim=True) + q.view(-1, *(1,) * len(shape))
    return torch.cat([x, -x])
