"""Exact denoisers for data whose distribution is known: ground truth for samplers and guidance.

An oracle returns E[x0 | x] at any level. With a `Prediction` around it, it is the network that was
trained to perfection on that data and sees x and the level only.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.core.level import Level
from diffsteer.core.prediction import Prediction
from diffsteer.core.sampler import Denoise

F64 = torch.float64
BLOCK = 2**17
"""Distances to means held at once: half a megabyte in float32, which stays in the cache."""


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
        modes = Gaussians(
            torch.tensor([[self.weight, 1 - self.weight]], dtype=F64),
            torch.tensor([[[self.mode], [-self.mode]]], dtype=F64),
            torch.tensor([[[self.std**2 / size]]], dtype=F64),
        )
        flat = modes(level_mean.reshape(-1, 1), scaled(level, size)).view_as(level_mean)
        return flat + Gaussian(0.0, self.std)(x - level_mean, level)


class Gaussians:
    """Mixture of any Gaussians in a few dimensions, in groups that share a covariance.

    Computes in the dtype of x, some rows at a time, in the eigenbasis of each covariance, where
    noise only adds to the eigenvalues: nothing is inverted for a level.

    Args:
        weights: Of the M Gaussians of each of G groups, `(G, M)`, > 0, in any unit.
        means: `(G, M, D)`.
        covs: Of each group, `(G, D, D)`.

    Raises:
        ValueError: the shapes do not fit, or a weight or a covariance cannot be.
    """

    def __init__(self, weights: Tensor, means: Tensor, covs: Tensor) -> None:
        groups, _, dims = means.shape
        if weights.shape != means.shape[:2] or covs.shape != (groups, dims, dims):
            raise InputError(
                f"weights {tuple(weights.shape)}, means {tuple(means.shape)} and covariances "
                f"{tuple(covs.shape)} do not fit: give (G, M), (G, M, D) and (G, D, D)"
            )
        variances, axes = torch.linalg.eigh(covs.to(F64))
        if not (weights > 0).all() or not (variances >= 0).all():
            raise InputError("a mixture needs weights > 0 and covariances without variance < 0")
        self.weights, self.means = (weights / weights.sum()).to(F64), means.to(F64)
        # by axis, then group last, so that what a group shares is spread along contiguous numbers
        self._variances, self._axes = variances.T.contiguous(), axes.permute(2, 1, 0).contiguous()
        self._centres = torch.einsum("adg,gmd->amg", self._axes, self.means)
        self._roots = axes * variances.sqrt()[:, None]

    def __call__(self, x: Tensor, level: Level) -> Tensor:
        """Return E[x0 | x], `(B, D)`."""
        found = []
        for seen in self._seen(x, level):
            along = (seen.shares * seen.centres).sum(2) + seen.alpha * seen.variances * seen.pull
            found.append(torch.einsum("abg,adg->bd", along, seen.axes))
        return torch.cat(found)

    def score(self, x: Tensor, level: Level) -> Tensor:
        """Return the gradient of `log_density` by x, `(B, D)`."""
        found = self._seen(x, level)
        return torch.cat([torch.einsum("abg,adg->bd", -seen.pull, seen.axes) for seen in found])

    def log_density(self, x: Tensor, level: Level) -> Tensor:
        """Return log p(x; level), `(B,)`."""
        unit = x.shape[1] / 2 * math.log(2 * math.pi)
        parts = [seen.logs.flatten(1).logsumexp(1) - unit for seen in self._seen(x, level)]
        return torch.cat(parts)

    def groups(self, x: Tensor, level: Level) -> Tensor:
        """Return the probability that each sample came from each group, `(B, G)`."""
        return torch.cat([seen.shares.sum(1) for seen in self._seen(x, level)])

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw clean samples, `(n, D)`, in float64."""
        picked = torch.multinomial(self.weights.flatten(), n, True, generator=generator)
        z = torch.randn(n, self.means.shape[2], 1, generator=generator, dtype=F64)
        from_mean: Tensor = self._roots[picked // self.means.shape[1]] @ z
        return self.means.flatten(0, 1)[picked] + from_mean[..., 0]

    def _seen(self, x: Tensor, level: Level) -> Iterator["_Seen"]:
        fixed = (self._variances, self._axes, self._centres, self.weights.T.log())
        variances, axes, centres, logs = (t.to(x) for t in fixed)
        step = max(1, BLOCK // logs.numel())
        for start in range(0, len(x), step):
            rows = slice(start, start + step)
            alpha, sigma = ((v if v.ndim == 0 else v[rows]).to(x).reshape(-1, 1) for v in level[1:])
            precisions = 1 / (alpha**2 * variances[:, None] + sigma**2)
            offsets = torch.einsum("adg,bd->abg", axes, x[rows])[:, :, None]
            offsets = offsets - alpha[..., None] * centres[:, None]
            pulls = offsets * precisions[:, :, None]
            joint = logs + precisions.log().sum(0)[:, None] / 2
            for offset, pull in zip(offsets, pulls, strict=True):
                joint = torch.addcmul(joint, offset, pull, value=-0.5)
            yield _Seen(alpha, variances[:, None], axes, centres[:, None], pulls, joint)


@dataclass(frozen=True, eq=False)
class _Seen:
    """Some rows, along the D axes of each group.

    Attributes:
        alpha: `(b, 1)` or `(1, 1)`.
        variances: Of clean data, `(D, 1, G)`.
        axes: `(D, D, G)`.
        centres: Clean means, `(D, 1, M, G)`.
        pulls: Offsets of x from its means over its variances, `(D, b, M, G)`.
        logs: Joint density with each Gaussian but for the unit, `(b, M, G)`.
    """

    alpha: Tensor
    variances: Tensor
    axes: Tensor
    centres: Tensor
    pulls: Tensor
    logs: Tensor

    @cached_property
    def shares(self) -> Tensor:
        """Probability of each Gaussian, `(b, M, G)`."""
        return self.logs.flatten(1).softmax(1).view_as(self.logs)

    @cached_property
    def pull(self) -> Tensor:
        """Expected pull, in parts of each group, `(D, b, G)`."""
        return (self.shares * self.pulls).sum(2)


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
