"""Schedules in continuous time."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.core.fields import NotNegative, PositiveFinite
from diffsteer.core.level import Level
from diffsteer.core.schedule.base import Schedule, Time, between, checked_ratio, checked_time


@dataclass(frozen=True)
class Cosine(Schedule):
    """Quarter circle in continuous time, alpha = cos(pi t / 2); zero SNR at t = 1.

    Source: Salimans & Ho 2022, sec. 4, https://arxiv.org/abs/2202.00512.
    """

    @override
    def at(self, t: Time) -> Level:
        t = checked_time(t, 0, 1)
        return Level(t, (math.pi / 2 * (1 - t)).sin(), (math.pi / 2 * t).sin())

    @override
    def time(self, ratio: Time) -> Tensor:
        return torch.atan(checked_ratio(ratio)) * (2 / math.pi)


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
    spacing = "karras"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise InputError(
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
        t = checked_time(t, 0, math.inf)
        return Level(t, torch.ones_like(t), t)

    @override
    def time(self, ratio: Time) -> Tensor:
        return checked_ratio(ratio)


BOUNDS = 1e-4, 0.9999
"""Least and greatest alpha^2 of Wuerstchen's cosine."""


@dataclass(frozen=True)
class OffsetCosine(Schedule):
    """Cosine in continuous time with an offset, alpha^2 in [1e-4, 0.9999].

    Args:
        offset: Time at which the cosine begins, >= 0; without it there is next to no noise near 0.

    Source: Nichol & Dhariwal 2021, eq. 17, https://arxiv.org/abs/2102.09672; the bounds are of
    Wuerstchen and Stable Cascade.
    """

    offset: NotNegative = 0.008

    @property
    def first(self) -> float:  # type: ignore[override]
        """Last time of the least noise."""
        return self.time(((1 - BOUNDS[1]) / BOUNDS[1]) ** 0.5).item()

    @property
    def last(self) -> float:  # type: ignore[override]
        """First time of the most noise."""
        return self.time(((1 - BOUNDS[0]) / BOUNDS[0]) ** 0.5).item()

    @override
    def at(self, t: Time) -> Level:
        t = checked_time(t, 0, 1)
        bar = ((t + self.offset) * self._speed).cos() ** 2 / math.cos(
            self.offset * self._speed
        ) ** 2
        bar = bar.clamp(*BOUNDS)
        return Level(t, bar.sqrt(), (1 - bar).sqrt())

    @override
    def time(self, ratio: Time) -> Tensor:
        bar = 1 / (1 + checked_ratio(ratio) ** 2)
        angle = (bar.sqrt() * math.cos(self.offset * self._speed)).acos()
        return (angle / self._speed - self.offset).clamp(0, 1)

    @property
    def _speed(self) -> float:
        return math.pi / 2 / (1 + self.offset)


@dataclass(frozen=True)
class LogSigma(Schedule):
    """Variance preserving, and time is log(sigma) / 4, as networks of EDM are given it.

    With s = `sigma_data`, x = (data + sigma eps) / sqrt(s^2 + sigma^2), EDM's c_in x, and x0 is
    data / s.

    Args:
        sigma_data: Standard deviation of the data, > 0.
        sigma_min: Least noise of the sampling range, > 0, in data units.
        sigma_max: Most noise.

    Source: Karras et al. 2022, table 1 (c_in and c_noise), https://arxiv.org/abs/2206.00364.
    """

    sigma_data: PositiveFinite = 0.5
    sigma_min: PositiveFinite = 0.002
    sigma_max: PositiveFinite = 80.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sigma_min < self.sigma_max:
            raise InputError(f"need sigma_min < sigma_max, not {self.sigma_min}, {self.sigma_max}")

    @property
    def first(self) -> float:  # type: ignore[override]
        """Time of `sigma_min`."""
        return math.log(self.sigma_min) / 4

    @property
    def last(self) -> float:  # type: ignore[override]
        """Time of `sigma_max`."""
        return math.log(self.sigma_max) / 4

    @override
    def at(self, t: Time) -> Level:
        t = checked_time(t, -math.inf, math.inf)
        angle = torch.atan((4 * t).exp() / self.sigma_data)
        return Level(t, angle.cos(), angle.sin())

    @override
    def time(self, ratio: Time) -> Tensor:
        return (checked_ratio(ratio) * self.sigma_data).log() / 4


@dataclass(frozen=True)
class Flow(Schedule):
    """Straight line from data to noise, alpha = 1 - t; zero SNR at t = 1.

    Args:
        shift: How much more of the sampling goes to high noise, > 0: a uniform u in [0, 1] becomes
            the time shift u / (1 + (shift - 1) u). 1 is none; Stable Diffusion 3 uses 3.

    Source: Esser et al. 2024, eq. 23, https://arxiv.org/abs/2403.03206.
    """

    shift: PositiveFinite = 1.0

    @property
    def first(self) -> float:  # type: ignore[override]
        """Least noisy time: the even time 1e-3, shifted."""
        return self.share(torch.tensor(0.0)).item()

    @override
    def at(self, t: Time) -> Level:
        t = checked_time(t, 0, 1)
        return Level(t, 1 - t, t)

    @override
    def time(self, ratio: Time) -> Tensor:
        return 1 / (1 + 1 / checked_ratio(ratio))

    @override
    def shifted(self, u: Tensor) -> Tensor:
        return self.shift * u / (1 + (self.shift - 1) * u)

    @override
    def share(self, share: Tensor) -> Tensor:
        return self.shifted(between(1e-3, 1.0, share))
