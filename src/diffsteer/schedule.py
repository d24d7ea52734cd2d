"""Noise schedules: from a time to a level, exact at zero terminal SNR.

A network was trained on a range of times, `first` (least noise) to `last` (most noise). `at(t)`
gives the level of any time in that range, and `time(ratio)` inverts it, so that every sampler can
visit levels between the trained timesteps.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from typing_extensions import override

from diffsteer.level import Level

F64 = torch.float64
Time = Tensor | float


class Schedule(ABC):
    """A map from time to level: define `at` and `time`, and the range where it is not ]0, 1].

    Attributes:
        first: Least noisy time that the network was trained on.
        last: Noisiest time, where sampling starts.
        unit: Time between neighbouring trained levels.
    """

    first: float = 1e-3
    last: float = 1.0
    unit: float = 1e-3

    @abstractmethod
    def at(self, t: Time) -> Level:
        """Level at time `t`, 0-dim or `(B,)`, in float64.

        Raises:
            ValueError: `t` is NaN or outside of the schedule.
        """

    @abstractmethod
    def time(self, ratio: Time) -> Tensor:
        """Time at which sigma / alpha equals `ratio` in [0, inf], 0-dim or `(B,)`, in float64.

        Raises:
            ValueError: the schedule has no such level.
        """

    def span(self) -> tuple[float, float]:
        """Least and greatest finite sigma / alpha of the trained levels, the range of ratio nodes.

        At zero SNR the greatest is that of the level before the last.
        """
        top = self.last if self.at(self.last).alpha > 0 else self.last - self.unit
        return self.at(self.first).ratio.item(), self.at(top).ratio.item()


def _time(t: Time, first: float, last: float) -> Tensor:
    """Check a time and make it a float64 tensor on the CPU."""
    t = torch.as_tensor(t, dtype=F64, device="cpu")
    if not ((t >= first) & (t <= last)).all():
        raise ValueError(
            f"time {t.tolist()} is outside of this schedule: t runs from {first:g} to {last:g}"
        )
    return t


def _ratio(ratio: Time) -> Tensor:
    ratio = torch.as_tensor(ratio, dtype=F64, device="cpu")
    if not (ratio >= 0).all():
        raise ValueError(f"sigma/alpha={ratio.tolist()} is no noise level: it must be >= 0")
    return ratio


@dataclass(frozen=True, eq=False, repr=False)
class Discrete(Schedule):
    """Variance-preserving schedule of a network trained on N integer timesteps.

    Interpolates the angle psi = atan2(alpha, sigma) between timesteps: finite at every SNR, with
    alpha^2 + sigma^2 = 1 everywhere, and alpha exactly 0 where the table says so.

    Args:
        alphas: alpha at t = 0..N-1, strictly decreasing, in [0, 1], shape `(N,)`, N >= 2; the
            square root of what is often called alphas_cumprod.

    Raises:
        ValueError: `alphas` has another shape, is NaN, does not decrease or leaves [0, 1].

    Source: Ho et al. 2020, eq. 4, https://arxiv.org/abs/2006.11239.
    """

    alphas: Tensor
    first = 0.0
    unit = 1.0

    def __post_init__(self) -> None:
        a = torch.as_tensor(self.alphas).detach().to("cpu", F64)
        if a.ndim != 1 or len(a) < 2:
            raise ValueError(f"alphas have shape {tuple(a.shape)}: give one row (N,) with N >= 2")
        if not a.isfinite().all():
            raise ValueError(f"alphas[{(~a.isfinite()).nonzero()[0].item()}] is not finite")
        if not (a.diff() < 0).all():
            i = int((a.diff() >= 0).nonzero()[0])
            raise ValueError(
                f"alphas must decrease, but alphas[{i}]={a[i]:g} and alphas[{i + 1}]={a[i + 1]:g}: "
                "noise grows with t (were they given in reverse, or as betas?)"
            )
        if a[-1] < 0 or a[0] > 1:
            raise ValueError(f"alphas run from {a[0]:g} to {a[-1]:g}: they must lie in [0, 1]")
        object.__setattr__(self, "alphas", a)

    @property
    def last(self) -> float:  # type: ignore[override]
        """The last timestep, N - 1."""
        return len(self.alphas) - 1.0

    @classmethod
    def from_betas(cls, betas: Tensor) -> "Discrete":
        """Build from the variances added at each step, shape `(N,)`, in ]0, 1], 1 only at the end.

        Raises:
            ValueError: a beta is NaN or outside of ]0, 1].
        """
        b = torch.as_tensor(betas).detach().to("cpu", F64)
        bad = ~((b > 0) & (b <= 1))
        if b.ndim == 1 and bad.any():
            i = int(bad.nonzero()[0])
            raise ValueError(f"betas[{i}]={b[i]:g} is no variance share: each lies in ]0, 1]")
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

    @override
    def at(self, t: Time) -> Level:
        t = _time(t, self.first, self.last)
        i = t.long().clamp(max=len(self.alphas) - 2)
        psi = torch.lerp(self._psi[i], self._psi[i + 1], t - i)
        return Level(t, psi.sin(), psi.cos())

    @override
    def time(self, ratio: Time) -> Tensor:
        ratio = _ratio(ratio)
        psi, rising = torch.atan(1 / ratio), self._psi.flip(0)
        low, high = rising[0], rising[-1]
        slack = 1e-12  # radians: what one round trip ratio -> angle may lose
        if not ((psi >= low - slack) & (psi <= high + slack)).all():
            lo, hi = (self.at(t).ratio.item() for t in (self.first, self.last))
            raise ValueError(
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
        raise ValueError(
            f"{n} betas from {start} to {end} make no schedule: take at least 2, each in ]0, 1]"
        )


@dataclass(frozen=True)
class Cosine(Schedule):
    """Quarter circle in continuous time, alpha = cos(pi t / 2); zero SNR at t = 1.

    Source: Salimans & Ho 2022, sec. 4, https://arxiv.org/abs/2202.00512.
    """

    @override
    def at(self, t: Time) -> Level:
        t = _time(t, 0, 1)
        return Level(t, (math.pi / 2 * (1 - t)).sin(), (math.pi / 2 * t).sin())

    @override
    def time(self, ratio: Time) -> Tensor:
        return torch.atan(_ratio(ratio)) * (2 / math.pi)


@dataclass(frozen=True)
class EDM(Schedule):
    """Variance exploding: alpha = 1, and time is sigma itself.

    Args:
        sigma_min: Least noise of the sampling range, > 0.
        sigma_max: Most noise; SNR there is (sigma_data / sigma_max)^2, small but never 0.

    Source: Karras et al. 2022, table 1, https://arxiv.org/abs/2206.00364.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                f"need 0 < sigma_min < sigma_max, not {self.sigma_min} and {self.sigma_max}"
            )

    @property
    def first(self) -> float:  # type: ignore[override]
        """Same as `sigma_min`."""
        return self.sigma_min

    @property
    def last(self) -> float:  # type: ignore[override]
        """Same as `sigma_max`."""
        return self.sigma_max

    @override
    def at(self, t: Time) -> Level:
        t = _time(t, 0, math.inf)
        return Level(t, torch.ones_like(t), t)

    @override
    def time(self, ratio: Time) -> Tensor:
        return _ratio(ratio)


@dataclass(frozen=True)
class Flow(Schedule):
    """Straight line from data to noise, alpha = 1 - t; zero SNR at t = 1.

    Args:
        shift: How much more of the sampling goes to high noise, > 0: a uniform u in [0, 1] becomes
            the time shift u / (1 + (shift - 1) u). 1 is none; Stable Diffusion 3 uses 3.

    Source: Esser et al. 2024, eq. 23, https://arxiv.org/abs/2403.03206.
    """

    shift: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.shift < math.inf:
            raise ValueError(f"shift={self.shift} must be a number > 0; 1 is none")

    @override
    def at(self, t: Time) -> Level:
        """Level at the unshifted time `t` in [0, 1]; its own `t` is shifted, as the network's."""
        u = _time(t, 0, 1)
        t = self.shift * u / (1 + (self.shift - 1) * u)
        return Level(t, (1 - u) / (1 + (self.shift - 1) * u), t)

    @override
    def time(self, ratio: Time) -> Tensor:
        """Unshifted time with this ratio: sigma / alpha = shift u / (1 - u)."""
        return 1 / (1 + self.shift / _ratio(ratio))


NAMED: dict[str, Callable[[], Schedule]] = {
    "sd": Discrete.scaled_linear,
    "linear": Discrete.linear,
    "cosine": Discrete.cosine,
    "continuous-cosine": Cosine,
    "edm": EDM,
    "flow": Flow,
    "sd3": lambda: Flow(shift=3.0),
}
"""Schedules that have a name on the command line."""
