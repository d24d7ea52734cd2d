"""Exact denoisers for data whose distribution is known: ground truth for samplers and guidance.

An oracle returns E[x0 | x] at any level. With a `Kind` around it, it is the network that was
trained to perfection on that data and sees x and the level only.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffsteer.level import Level
from diffsteer.prediction import Kind
from diffsteer.sampler import Denoise


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
        var = Gaussian(0.0, self.std).var(level)
        # log odds of the two modes: difference of squared distances over 2 var
        odds = (2 * level.alpha * self.mode / var) * x.sum(dim=dims, keepdim=True)
        prior = torch.logit(torch.tensor(self.weight, dtype=torch.float64))
        p = torch.sigmoid(odds + prior)
        up, down = (Gaussian(m, self.std)(x, level) for m in (self.mode, -self.mode))
        return p * up + (1 - p) * down


def as_network(oracle: Denoise, kind: Kind) -> Denoise:
    """Return the network that outputs `kind`, followed by the conversion back to x0."""

    def denoise(x: Tensor, level: Level) -> Tensor:
        return kind.x0(x, kind.express(x, oracle(x, level), level), level)

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
