"""Schedules of networks trained on whole timesteps."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.core.level import Level
from diffsteer.core.schedule.base import F64, Schedule, Time, checked_ratio, checked_time


@dataclass(frozen=True, eq=False, repr=False)
class Discrete(Schedule):
    """Variance-preserving schedule of a network trained on N integer timesteps.

    Interpolates the angle psi = atan2(alpha, sigma) between timesteps: finite at every SNR, with
    alpha^2 + sigma^2 = 1 everywhere. Its complement is interpolated as well, so that both alpha and
    sigma are exactly 0 where the table says so.

    Args:
        alphas: alpha at t = 0..N-1, strictly decreasing, in [0, 1], shape `(N,)`, N >= 2; the
            square root of what is often called alphas_cumprod.

    Source: Ho et al. 2020, eq. 4, https://arxiv.org/abs/2006.11239.
    """

    alphas: Tensor
    first = 0.0
    unit = 1.0

    def __post_init__(self) -> None:
        a = torch.as_tensor(self.alphas).detach().to("cpu", F64)
        if a.ndim != 1 or len(a) < 2:
            raise InputError(f"alphas have shape {tuple(a.shape)}: give one row (N,) with N >= 2")
        if not a.isfinite().all():
            raise InputError(f"alphas[{(~a.isfinite()).nonzero()[0].item()}] is not finite")
        if not (a.diff() < 0).all():
            i = int((a.diff() >= 0).nonzero()[0])
            raise InputError(
                f"alphas must decrease, but alphas[{i}]={a[i]:g} and alphas[{i + 1}]={a[i + 1]:g}: "
                "noise grows with t (were they given in reverse, or do betas of 1 underflow?)"
            )
        if a[-1] < 0 or a[0] > 1:
            raise InputError(f"alphas run from {a[0]:g} to {a[-1]:g}: they must lie in [0, 1]")
        object.__setattr__(self, "alphas", a)

    @property
    def last(self) -> float:  # type: ignore[override]
        """The last timestep, N - 1."""
        return len(self.alphas) - 1.0

    @classmethod
    def from_betas(cls, betas: Tensor) -> "Discrete":
        """Build from the variances added at each step, `(N,)`, in ]0, 1], 1 only at the end."""
        b = torch.as_tensor(betas).detach().to("cpu", F64)
        bad = ~((b > 0) & (b <= 1))
        if b.ndim == 1 and bad.any():
            i = int(bad.nonzero()[0])
            raise InputError(f"betas[{i}]={b[i]:g} is no variance share: each lies in ]0, 1]")
        return cls((1 - b).cumprod(0).sqrt())

    @classmethod
    def linear(cls, start: float = 1e-4, end: float = 0.02, n: int = 1000) -> "Discrete":
        """Betas on a line (Ho et al. 2020, sec. 4): ADM, DDPM; ends at SNR 4.04e-5."""
        _check_range(start, end, n)
        return cls.from_betas(torch.linspace(start, end, n, dtype=F64))

    @classmethod
    def scaled_linear(cls, start: float = 0.00085, end: float = 0.012, n: int = 1000) -> "Discrete":
        """Square roots of betas on a line: Stable Diffusion 1, 2 and XL; ends at SNR 4.68e-3."""
        _check_range(start, end, n)
        return cls.from_betas(torch.linspace(start**0.5, end**0.5, n, dtype=F64) ** 2)

    @classmethod
    def cosine(cls, n: int = 1000, max_beta: float = 0.999) -> "Discrete":
        """Squared cosine (Nichol & Dhariwal 2021, eq. 17), betas clipped at `max_beta`: IDDPM."""
        t = torch.arange(n + 1, dtype=F64) / n
        bar = ((t + 0.008) / 1.008 * math.pi / 2).cos() ** 2
        return cls.from_betas((1 - bar[1:] / bar[:-1]).clamp(max=max_beta))

    @property
    def betas(self) -> Tensor:
        """Variance added at each step, `(N,)`; the last is exactly 1 at zero SNR."""
        bar = self.alphas**2
        return 1 - bar / torch.cat([torch.ones(1, dtype=F64), bar[:-1]])

    def zero_snr(self) -> "Discrete":
        """Shift and scale alpha so that the last level is pure noise; alpha at t = 0 stays.

        Source: Lin et al. 2023, algorithm 1, https://arxiv.org/abs/2305.08891.
        """
        a = self.alphas
        return Discrete((a - a[-1]) * (a[0] / (a[0] - a[-1])))

    @cached_property
    def _psi(self) -> Tensor:
        return torch.atan2(self.alphas, (1 - self.alphas**2).sqrt())

    @cached_property
    def _phi(self) -> Tensor:
        return torch.atan2((1 - self.alphas**2).sqrt(), self.alphas)

    @override
    def at(self, t: Time) -> Level:
        t = checked_time(t, self.first, self.last)
        i = t.long().clamp(max=len(self.alphas) - 2)
        psi, phi = (torch.lerp(table[i], table[i + 1], t - i) for table in (self._psi, self._phi))
        return Level(t, psi.sin(), phi.sin())

    @override
    def time(self, ratio: Time) -> Tensor:
        ratio = checked_ratio(ratio)
        psi, rising = torch.atan(1 / ratio), self._psi.flip(0)
        low, high = rising[0], rising[-1]
        slack = 1e-12  # radians: what one round trip ratio -> angle may lose
        if not ((psi >= low - slack) & (psi <= high + slack)).all():
            lo, hi = (self.at(t).ratio.item() for t in (self.first, self.last))
            raise InputError(
                f"sigma/alpha={ratio.tolist()} is outside of this schedule: [{lo:g}, {hi:g}]"
            )
        psi = psi.clamp(low, high)
        j = torch.searchsorted(rising, psi, right=True).clamp(1, len(rising) - 1)
        part = (psi - rising[j - 1]) / (rising[j] - rising[j - 1])
        return self.last - (j - 1 + part)

    def __repr__(self) -> str:
        snr = self.at(self.last).snr.item()
        return f"<Discrete: {len(self.alphas)} timesteps, terminal SNR {snr:.6g}>"


def _check_range(start: float, end: float, n: int) -> None:
    if not (0 < start <= 1 and 0 < end <= 1 and n >= 2):
        raise InputError(
            f"{n} betas from {start} to {end} make no schedule: take at least 2, each in ]0, 1]"
        )
