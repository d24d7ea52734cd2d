"""Noise schedules: from a time to a level, exact at zero terminal SNR.

A network was trained on a range of times, `first` (least noise) to `last` (most noise). `at(t)`
gives the level of any time in that range, and `time(ratio)` inverts it, so that every sampler can
visit levels between the trained timesteps.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.core.level import Level

F64 = torch.float64
Time = Tensor | float


class Schedule(ABC):
    """A map from time to level: define `at` and `time`, and the range where it is not ]0, 1].

    Attributes:
        first: Least noisy time that the network was trained on.
        last: Noisiest time, where sampling starts.
        unit: Time between neighbouring trained levels.
        spacing: Name of the spacing that suits it, where none is asked for.
    """

    first: float = 1e-3
    last: float = 1.0
    unit: float = 1e-3
    spacing: str = "trailing"

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


def checked_time(t: Time, first: float, last: float) -> Tensor:
    """Check a time and make it a float64 tensor on the CPU."""
    t = torch.as_tensor(t, dtype=F64, device="cpu")
    if not ((t >= first) & (t <= last) & t.isfinite()).all():
        raise InputError(
            f"time {t.tolist()} is outside of this schedule: t runs from {first:g} to {last:g}"
        )
    return t


def checked_ratio(ratio: Time) -> Tensor:
    """Check a noise-to-signal ratio and make it a float64 tensor on the CPU."""
    ratio = torch.as_tensor(ratio, dtype=F64, device="cpu")
    if not (ratio >= 0).all():
        raise InputError(f"sigma/alpha={ratio.tolist()} is no noise level: it must be >= 0")
    return ratio
