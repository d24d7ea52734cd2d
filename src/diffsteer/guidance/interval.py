"""Guidance in a part of a sampling: in an interval of noise, or in some steps."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.core.fields import Whole, as_float
from diffsteer.guidance.base import Guidance, Inner, composable
from diffsteer.guidance.queries import Answer, GuidanceState, Queries


class _Limited(Guidance):
    """A guidance that acts in a part of a sampling; elsewhere it costs nothing."""

    inner: Guidance

    @abstractmethod
    def acts(self, at: GuidanceState) -> bool:
        """Whether it acts in an evaluation."""

    @override
    def shift(self, at: GuidanceState) -> Queries[Tensor]:
        return (yield from self.inner.shift(at)) if self.acts(at) else torch.zeros_like(at.x)

    @override
    def guided(self, at: GuidanceState) -> Queries[tuple[Answer, Tensor]]:
        return (yield from self.inner.guided(at) if self.acts(at) else super().guided(at))


@composable("within")
@dataclass(frozen=True, repr=False)
class Within(_Limited):
    """A guidance in an interval of noise, lo < sigma / alpha <= hi, for any schedule.

    Source: Kynkaanniemi et al. 2024, https://arxiv.org/abs/2404.07724.
    """

    inner: Inner
    lo: float
    hi: float

    def __post_init__(self) -> None:
        for name in ("lo", "hi"):
            as_float(getattr(self, name), name)
        super().__post_init__()
        if not 0 <= self.lo < self.hi:
            raise InputError(
                f"within({self.lo}, {self.hi}) holds no noise: give 0 <= lo < hi in sigma/alpha"
            )

    @override
    def acts(self, at: GuidanceState) -> bool:
        return bool(self.lo < at.level.ratio <= self.hi)


@composable("over")
@dataclass(frozen=True, repr=False)
class Over(_Limited):
    """A guidance in some steps, start <= step < stop."""

    inner: Inner
    start: Whole
    stop: Whole

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.start < self.stop:
            raise InputError(
                f"over({self.start}, {self.stop}) holds no step: give 0 <= start < stop"
            )

    @override
    def acts(self, at: GuidanceState) -> bool:
        return self.start <= at.step < self.stop
