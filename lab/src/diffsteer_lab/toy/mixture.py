"""Mixtures of any Gaussians in a few dimensions, as exact denoisers."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.core.level import Level

F64 = torch.float64
BLOCK = 2**17
"""Distances to means held at once: half a megabyte in float32, which stays in the cache."""


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
        means = []
        for seen in self._seen(x, level):
            along = (seen.shares * seen.centres).sum(2) + seen.alpha * seen.variances * seen.pull
            means.append(torch.einsum("abg,adg->bd", along, seen.axes))
        return torch.cat(means)

    def score(self, x: Tensor, level: Level) -> Tensor:
        """Return the gradient of `log_density` by x, `(B, D)`."""
        parts = self._seen(x, level)
        return torch.cat([torch.einsum("abg,adg->bd", -seen.pull, seen.axes) for seen in parts])

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
