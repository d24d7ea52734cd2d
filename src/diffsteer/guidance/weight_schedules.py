"""Weights that change during sampling, inside any guidance: `CFG(ramp(1, 7))`.

Each is a function of u, the share of the way from noise to data. It is that of the noise angle,
u = 1 - 2 / pi atan2(sigma, alpha), which needs no schedule and is the share of time on a cosine
schedule; with by="time" it is the share of the time that the network is given, as in the paper.

Source: Wang et al. 2024, https://arxiv.org/abs/2404.13040, by whom weights that rise are best.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any

import torch
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.core.fields import (
    Finite,
    NotNegative,
    Positive,
    PositiveFinite,
    Rule,
    argument_texts,
    as_float,
    check_fields,
    numbers_of,
)

if TYPE_CHECKING:
    from diffsteer.guidance.queries import GuidanceState

By = Annotated[str, Rule('"angle" or "time"', lambda by: by in ("angle", "time"))]


class WeightSchedule(ABC):
    """A number that changes during sampling, in place of any weight of a guidance."""

    def __post_init__(self) -> None:
        check_fields(self)

    @abstractmethod
    def at(self, state: "GuidanceState") -> float:
        """Weight of an evaluation."""

    @property
    @abstractmethod
    def range(self) -> tuple[float, float]:
        """Two of its weights that hold all others between them."""

    def __repr__(self) -> str:
        """Text that `parse` reads back; fields at their defaults are left out."""
        return f"{type(self).__name__}({', '.join(argument_texts(self))})"


@dataclass(frozen=True, repr=False)
class _Between(WeightSchedule):
    """A weight that goes from `start` at noise to `stop` at data."""

    start: Finite
    stop: Finite
    by: By = "angle"

    @property
    @override
    def range(self) -> tuple[float, float]:
        return self.start, self.stop

    @override
    def at(self, state: "GuidanceState") -> float:
        return self.between(share_of(state, self.by))

    @abstractmethod
    def between(self, u: float) -> float:
        """Weight at a share of the way from noise, 0, to data, 1."""


@dataclass(frozen=True, repr=False)
class ramp(_Between):  # noqa: N801
    """Straight line from `start` at noise to `stop` at data."""

    @override
    def between(self, u: float) -> float:
        return self.start + u * (self.stop - self.start)


@dataclass(frozen=True, repr=False)
class cosine(_Between):  # noqa: N801
    """Half a cosine from `start` at noise to `stop` at data, flat at both ends."""

    @override
    def between(self, u: float) -> float:
        return self.start + (1 - math.cos(math.pi * u)) / 2 * (self.stop - self.start)


@dataclass(frozen=True, repr=False)
class exponential(_Between):  # noqa: N801
    """From `start` at noise to `stop` at data by a constant factor, both > 0."""

    start: PositiveFinite
    stop: PositiveFinite

    @override
    def between(self, u: float) -> float:
        return float(self.start ** (1 - u) * self.stop**u)


@dataclass(frozen=True, repr=False)
class interval(WeightSchedule):  # noqa: N801
    """`inside` where lo < sigma / alpha <= hi, and `outside` elsewhere.

    Source: Kynkaanniemi et al. 2024, https://arxiv.org/abs/2404.07724.
    """

    inside: Finite
    lo: NotNegative
    hi: Positive
    outside: Finite = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lo < self.hi:
            raise InputError(f"interval: lo must be below hi, got {self.lo} and {self.hi}")

    @property
    @override
    def range(self) -> tuple[float, float]:
        return self.inside, self.outside

    @override
    def at(self, state: "GuidanceState") -> float:
        return self.inside if self.lo < state.level.ratio <= self.hi else self.outside


def share_of(state: "GuidanceState", by: str) -> float:
    """Share of the way from noise, 0, to data, 1."""
    level, schedule = state.level, state.schedule
    if by == "angle":
        return 1 - torch.atan2(level.sigma, level.alpha).item() / (math.pi / 2)
    if schedule is None:
        raise InputError(
            'by="time" needs to know the times of training: give Denoiser the schedule'
        )
    share = (schedule.last - level.t.item()) / (schedule.last - schedule.first)
    return min(max(share, 0.0), 1.0)


Shift = Callable[[Any, "GuidanceState"], Any]


def by_numbers(shift: Shift) -> Shift:
    """Let `Guidance.shift` find numbers where weight schedules were given."""

    @wraps(shift)
    def scheduled(guidance: Any, state: "GuidanceState") -> Any:
        weights = {name: schedule.at(state) for name, schedule in _schedules(guidance).items()}
        return shift(replace(guidance, **weights) if weights else guidance, state)

    return scheduled


def check_schedules(guidance: Any) -> bool:
    """Check both ends of each weight schedule in its place; returns whether there are any."""
    schedules = _schedules(guidance)
    for name, schedule in schedules.items():
        if name not in numbers_of(type(guidance)):
            raise InputError(
                f"{type(guidance).__name__}: {name} takes no weight schedule, got {schedule!r}: "
                "schedules stand for numbers that need not be whole"
            )
    return bool(list(at_ends(guidance)))


def at_ends(guidance: Any) -> Iterator[Any]:
    """Yield a guidance with its weight schedules at the one end and the other, if it has any."""
    schedules = _schedules(guidance)
    for ends in zip(*(schedule.range for schedule in schedules.values()), strict=True):
        yield replace(guidance, **dict(zip(schedules, ends, strict=True)))


def as_weight(value: object, name: str) -> float:
    """Convert a number, and leave a weight schedule as it is."""
    if isinstance(value, WeightSchedule):
        return value  # type: ignore[return-value]
    return as_float(value, name)


def _schedules(guidance: Any) -> dict[str, WeightSchedule]:
    given = {f.name: getattr(guidance, f.name) for f in fields(guidance)}
    return {name: value for name, value in given.items() if isinstance(value, WeightSchedule)}
