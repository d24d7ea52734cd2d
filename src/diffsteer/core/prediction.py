"""Prediction types: what a network outputs, as one row of a 2 x 2 system.

    x   = alpha x0 + sigma eps
    out = a x0     + b eps          (a, b) = coefficients(alpha, sigma)

Cramer's rule gives every conversion, the same row is the training target, and the determinant
det = alpha b - sigma a says where the output does not fix x0: for Eps at alpha = 0, nowhere else
that a network is asked.
"""

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import deprecated, override

from diffsteer.core.errors import InputError
from diffsteer.core.fields import PositiveFinite, check_fields
from diffsteer.core.level import Level, broadcast_like, lincomb, require_alike


class Prediction(ABC):
    """What a network outputs: out = a x0 + b eps. Define `coefficients`."""

    def __post_init__(self) -> None:
        check_fields(self)

    def __init_subclass__(cls) -> None:
        if "row" in vars(cls):  # the name of version 0.1.0
            warnings.warn(f"{cls.__name__}.row is coefficients now", DeprecationWarning, 2)
            cls.coefficients = vars(cls)["row"]  # type: ignore[method-assign]

    @abstractmethod
    def coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return (a, b), each of the shape of `alpha`."""

    def target(self, x0: Tensor, eps: Tensor, level: Level) -> Tensor:
        """What the network should output for data `x0` noised with `eps`, `(B, *D)`."""
        require_alike(x0=x0, eps=eps)
        a, b = self.coefficients(level.alpha, level.sigma)
        return lincomb(a, x0, b, eps)

    def solve(self, x: Tensor, out: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """Return (x0, eps), each `(B, *D)`, from the noisy `x` and the network's `out`.

        Raises:
            ValueError: the output does not fix x0 or eps at this level, or the shapes differ.
        """
        (p, q), (r, s) = self._inverse(x, out, level)
        return lincomb(p, x, q, out), lincomb(r, x, s, out)

    def x0(self, x: Tensor, out: Tensor, level: Level) -> Tensor:
        """Return the x0 of `solve` alone, `(B, *D)`, at half the cost; raises as `solve`."""
        (p, q), _ = self._inverse(x, out, level)
        return lincomb(p, x, q, out)

    def output_for_x0(self, x: Tensor, x0: Tensor, level: Level) -> Tensor:
        """Return the output that says `x0` at `x`, `(B, *D)`; inverse of `solve`."""
        if (level.sigma == 0).any():
            raise InputError("x holds no noise at sigma=0, so no output can be derived from it")
        a, b = self.coefficients(level.alpha, level.sigma)
        return lincomb(b / level.sigma, x, a - b * level.alpha / level.sigma, x0)

    def output_shift(self, shift: Tensor, level: Level) -> Tensor:
        """Return the change of the output that moves x0 by `shift` at the same x, `(B, *D)`."""
        if (level.sigma == 0).any():
            raise InputError("x is data already at sigma=0, so no output can move it")
        return broadcast_like(-self.det(level) / level.sigma, shift) * shift

    @deprecated("express is output_for_x0 now")
    def express(self, x: Tensor, x0: Tensor, level: Level) -> Tensor:
        """Return `output_for_x0`; the name of version 0.1.0."""
        return self.output_for_x0(x, x0, level)

    def det(self, level: Level) -> Tensor:
        """Determinant alpha b - sigma a, in the shape of the level; 0 where out fixes nothing."""
        a, b = self.coefficients(level.alpha, level.sigma)
        return level.alpha * b - level.sigma * a

    def _inverse(
        self, x: Tensor, out: Tensor, level: Level
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Weights of `x` and `out` in x0 and in eps."""
        if x.shape != out.shape:
            raise InputError(
                f"the network returned shape {tuple(out.shape)} for an input of {tuple(x.shape)}: "
                "split off learned variances and other extra channels first"
            )
        a, b = self.coefficients(level.alpha, level.sigma)
        det = level.alpha * b - level.sigma * a
        if (det == 0).any():
            raise InputError(self._singular(level))
        return (b / det, -level.sigma / det), (-a / det, level.alpha / det)

    def _singular(self, level: Level) -> str:
        name = type(self).__name__
        if (level.alpha == 0).any():
            return (
                f"{name} output does not fix x0 at alpha=0 (zero terminal SNR): the input is pure "
                "noise and the output repeats it. Use a network that predicts v or velocity, or "
                "drop zero SNR"
            )
        if (level.sigma == 0).any():
            return (
                f"{name} output does not fix eps at sigma=0, where the input is data already: "
                "do not ask a network at a level without noise"
            )
        return f"{name} output fixes neither x0 nor eps at {level}: its row repeats the input"


@dataclass(frozen=True)
class Eps(Prediction):
    """The noise itself; fixes x0 wherever alpha > 0.

    Source: Ho et al. 2020, eq. 14, https://arxiv.org/abs/2006.11239.
    """

    @override
    def coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(alpha), torch.ones_like(alpha)


@dataclass(frozen=True)
class X0(Prediction):
    """The data itself ("sample" in diffusers); fixes eps wherever sigma > 0."""

    @override
    def coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(alpha), torch.zeros_like(alpha)


@dataclass(frozen=True)
class V(Prediction):
    """v = alpha eps - sigma x0; equals -x0 at zero SNR and is singular nowhere.

    Source: Salimans & Ho 2022, app. D, https://arxiv.org/abs/2202.00512.
    """

    @override
    def coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return -sigma, alpha


@dataclass(frozen=True)
class Velocity(Prediction):
    """Flow velocity eps - x0, the direction of noise; singular nowhere.

    Source: Liu et al. 2022, eq. 1, https://arxiv.org/abs/2209.03003 (there with the opposite sign
    of time).
    """

    @override
    def coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(alpha), torch.ones_like(alpha)


@dataclass(frozen=True)
class Preconditioned(Prediction):
    """Output F of an EDM network, x0 = c_skip x + c_out F.

    With alpha < 1 the same derivation gives c_skip = alpha s^2 / r^2 and c_out = sigma s / r, where
    s is `sigma_data` and r^2 = sigma^2 + alpha^2 s^2: unit-variance inputs and targets at every
    level, zero SNR included. On a variance-preserving schedule with s = 1 it is -V.

    Args:
        sigma_data: Standard deviation of the data, > 0.

    Source: Karras et al. 2022, table 1, https://arxiv.org/abs/2206.00364.
    """

    sigma_data: PositiveFinite = 0.5

    @override
    def coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        s = self.sigma_data
        r = (sigma**2 + (alpha * s) ** 2).sqrt()
        return sigma / (s * r), -alpha * s / r
