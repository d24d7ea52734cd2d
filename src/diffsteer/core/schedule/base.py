"""Noise schedules: from a time to a level, exact at zero terminal SNR.

A network was trained on a range of times, `first` (least noise) to `last` (most noise). `at(t)`
gives the level of any time in that range, and `time(ratio)` inverts it, so that every sampler can
visit levels between the trained timesteps.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.core.fields import check_fields
from diffsteer.core.level import Level

F64 = torch.float64
Time = Tensor | float


class Schedule(ABC):
    """A map from time to level: define `at` and `time`, and the range where it is not ]0, 1].

    `t` is what the network is given, everywhere: `at(level.t)` is the level itself.

    Attributes:
        first: Least noisy time that the network was trained on.
        last: Noisiest time, where sampling starts.
        unit: Time between neighbouring trained levels, before `shifted`.
        spacing: Name of the spacing that suits it, where none is asked for.
    """

    first: float = 1e-3
    last: float = 1.0
    unit: float = 1e-3
    spacing: str = "trailing"

    def __post_init__(self) -> None:
        check_fields(self)

    @abstractmethod
    def at(self, t: Time) -> Level:
        """Level at time `t`, 0-dim or `(B,)`, in float64."""

    @abstractmethod
    def time(self, ratio: Time) -> Tensor:
        """Time at which sigma / alpha equals `ratio` in [0, inf], 0-dim or `(B,)`, in float64.

        Raises:
            ValueError: the schedule has no such level.
        """

    def shifted(self, u: Tensor) -> Tensor:
        """Times that even times `u` become; the same ones unless the schedule has a shift."""
        return u

    def share(self, share: Tensor) -> Tensor:
        """Times at shares of the trained range, 0 at `first` and 1 at `last`, in float64."""
        return between(self.first, self.last, share)

    def span(self) -> tuple[float, float]:
        """Least and greatest finite sigma / alpha of the trained levels, the range of ratio nodes.

        At zero SNR the greatest is that of the level before the last.
        """
        top = torch.tensor(self.last, dtype=F64)
        if self.at(top).alpha == 0:
            top = self.shifted(top - self.unit)
        return self.at(self.first).ratio.item(), self.at(top).ratio.item()


def between(first: float, last: float, share: Tensor) -> Tensor:
    """Point at a share of the way from `first` to `last`, in float64; exact at both ends."""
    return (first + share.double() * (last - first)).clamp(max=last)


def checked_time(t: Time, first: float, last: float) -> Tensor:
    """Check a time and make it a float64 tensor on the CPU."""
    t = torch.as_tensor(t, dtype=F64, device="cpu")
    outside = t[~((t >= first) & (t <= last))]
    if len(outside := outside.flatten()):
        raise InputError(
            f"time {outside[0]:g} is outside of this schedule: t runs from {first:g} to {last:g}"
        )
    return t


def checked_ratio(ratio: Time) -> Tensor:
    """Check a noise-to-signal ratio and make it a float64 tensor on the CPU."""
    ratio = torch.as_tensor(ratio, dtype=F64, device="cpu")
    if not (ratio >= 0).all():
        raise InputError(f"sigma/alpha={ratio.tolist()} is no noise level: it must be >= 0")
    return ratio
