"""Noise levels: x = alpha x0 + sigma eps.

A level is three finite numbers, at zero signal-to-noise ratio as everywhere else, so that pure
noise (alpha = 0) and clean data (sigma = 0) are ordinary values of every formula downstream.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from diffsteer.core.errors import InputError


class Level(NamedTuple):
    """One noise level, or one for each sample.

    Attributes:
        t: Time that the network is given: a trained timestep, a flow time, or sigma for EDM.
        alpha: Factor of the data, in [0, 1].
        sigma: Factor of unit Gaussian noise, >= 0, in data units.

    Each is 0-dim, float64, on the CPU when sampling (no device synchronisation, and no promotion
    of float32 samples), or `(B,)` when samples have levels of their own, as in training.
    """

    t: Tensor
    alpha: Tensor
    sigma: Tensor

    @property
    def ratio(self) -> Tensor:
        """Noise-to-signal ratio sigma / alpha, the sigma of EDM; inf at zero SNR."""
        return self.sigma / self.alpha

    @property
    def half_log_snr(self) -> Tensor:
        """Half log-SNR, log(alpha / sigma), in nats; -inf at zero SNR, +inf when clean."""
        return torch.log(self.alpha / self.sigma)

    @property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio alpha^2 / sigma^2; 0 at zero SNR, +inf when clean."""
        return (self.alpha / self.sigma) ** 2

    def mix(self, x0: Tensor, eps: Tensor) -> Tensor:
        """Noise the data: alpha x0 + sigma eps; bit for bit `eps` at zero SNR.

        Args:
            x0: Data, `(B, *D)`.
            eps: Unit Gaussian noise of the same shape.
        """
        require_alike(x0=x0, eps=eps)
        return lincomb(self.alpha, x0, self.sigma, eps)


def require_alike(**tensors: Tensor) -> None:
    """Check that tensors have one shape and are floating point."""
    (first, a), *others = tensors.items()
    for name, b in others:
        if a.shape != b.shape:
            raise InputError(
                f"{first} has shape {tuple(a.shape)}, {name} {tuple(b.shape)}: give both one shape"
            )
    for name, x in tensors.items():
        if not x.is_floating_point():
            raise InputError(f"{name} has dtype {x.dtype}: scale pixels to floats in [-1, 1] first")


def upcast(x: Tensor) -> Tensor:
    """`x` in float32, or as it is where it is float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def broadcast_like(value: Tensor, x: Tensor) -> Tensor:
    """Shape a coefficient so that it multiplies the rows of `x`.

    0-dim coefficients pass as they are: float64 on the CPU promotes nothing and costs no transfer.
    `(B,)` becomes `(B, 1, ...)` on the device and in the dtype of `x`.
    """
    if value.ndim == 0:
        return value
    if value.shape != x.shape[:1]:
        raise InputError(
            f"a level of shape {tuple(value.shape)} cannot apply to x of shape {tuple(x.shape)}: "
            "give one level for all rows (0-dim) or one a row, (B,)"
        )
    return value.to(x).reshape(-1, *(1,) * (x.ndim - 1))


def lincomb(a: Tensor, x: Tensor, b: Tensor, y: Tensor) -> Tensor:
    """Return a x + b y; in two kernels where the coefficients are 0-dim."""
    if b.ndim == 0:
        return torch.add(broadcast_like(a, x) * x, y, alpha=b.item())
    return broadcast_like(a, x) * x + broadcast_like(b, y) * y


CLEAN = Level(*(torch.tensor(v, dtype=torch.float64) for v in (0.0, 1.0, 0.0)))
"""Data without noise, where every grid ends."""
