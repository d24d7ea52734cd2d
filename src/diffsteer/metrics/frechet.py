"""Frechet distance between Gaussians, without square roots of rounding noise.

With covariances S = R R^T for any R, the trace of (S1 S2)^(1/2) is the sum of the singular values
of R1^T R2. The usual square root of the eigenvalues of S1 S2 turns an error of 1e-16 into one of
1e-8 wherever a covariance is singular, which it is below d + 1 images; this does not.
"""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.metrics.moments import F64, Moments


@dataclass(frozen=True, eq=False)
class Gaussian:
    """Mean and covariance that stand for a set of features; float64 on the CPU.

    Attributes:
        mean: `(d,)`.
        cov: Symmetric, positive semi-definite up to the rounding of its dtype, `(d, d)`.
        noise: Bound of the relative error of an eigenvalue: d units in the last place of `cov`.
    """

    mean: Tensor
    cov: Tensor
    noise: float = field(init=False)

    def __post_init__(self) -> None:
        d = self.mean.numel()
        floats = self.mean.is_floating_point() and self.cov.is_floating_point()
        if d == 0 or self.mean.shape != (d,) or self.cov.shape != (d, d) or not floats:
            raise InputError(
                f"mean has shape {tuple(self.mean.shape)} and dtype {self.mean.dtype}, covariance "
                f"{tuple(self.cov.shape)} and {self.cov.dtype}: give floats, (d,) and (d, d)"
            )
        if not (self.mean.isfinite().all() and self.cov.isfinite().all()):
            raise InputError("a mean or covariance is NaN or infinite: measure the features again")
        noise = d * torch.finfo(self.cov.dtype).eps
        skew = (self.cov - self.cov.mT).abs().max().item()
        if skew > noise * self.cov.abs().max().item():
            raise InputError(f"the covariance is not symmetric: entries differ by {skew:.3g}")
        object.__setattr__(self, "noise", noise)
        object.__setattr__(self, "mean", self.mean.detach().to("cpu", F64))
        object.__setattr__(self, "cov", self.cov.detach().to("cpu", F64))

    @classmethod
    def of(cls, moments: Moments) -> "Gaussian":
        """Gaussian of measured moments; raises ValueError below two images."""
        return cls(moments.mean, moments.cov)

    @cached_property
    def root(self) -> Tensor:
        """R with R R^T = cov, `(d, rank)`: eigenvectors scaled by square roots.

        Eigenvalues within rounding of zero are dropped, since their square roots are noise of
        half the digits.
        """
        values, vectors = torch.linalg.eigh(self.cov)
        noise = self.noise * values[-1].item()
        if values[0] < -noise:
            raise InputError(
                f"the covariance has eigenvalue {values[0]:.3g} (the largest is {values[-1]:.3g}): "
                "it is no covariance; accumulate it in float64"
            )
        kept = values > noise
        root: Tensor = vectors[:, kept] * values[kept].sqrt()
        return root


def frechet(a: Gaussian, b: Gaussian) -> float:
    """Squared Frechet (2-Wasserstein) distance; 0 for equal Gaussians, symmetric.

    Source: Dowson & Landau 1982; Heusel et al. 2017, eq. 6, https://arxiv.org/abs/1706.08500.
    """
    if a.mean.shape != b.mean.shape:
        raise InputError(
            f"features of {len(a.mean)} and of {len(b.mean)} numbers have no distance: "
            "they come from different extractors or layers"
        )
    gap = (a.mean - b.mean).square().sum()
    spread = a.root.square().sum() + b.root.square().sum()
    overlap = torch.linalg.svdvals(a.root.mT @ b.root).sum()
    return max(0.0, float(gap + spread - 2 * overlap))  # rounding: 1e-15 of the traces
