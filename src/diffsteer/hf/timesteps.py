"""Where a pipeline is in its sampling, without waiting for the device that holds its timesteps."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

LOSSY = (torch.float16, torch.bfloat16)
"""Types that round a timestep away from the one that the scheduler means."""


class SamplingStep(NamedTuple):
    """A call of the network in time.

    Attributes:
        time: Timestep of the scheduler, 0-dim, float64, on the CPU.
        step: Index of the sampling step; of the nearest one where it is none of the scheduler's.
            Schedulers of second order call the network twice a step.
        first: Whether a sampling begins here.
    """

    time: Tensor
    step: int
    first: bool


class StepTracker:
    """Reads timesteps.

    Attributes:
        times: Those of the scheduler, copied to the CPU once a sampling.
    """

    def __init__(self) -> None:
        self.timesteps: Tensor | None = None
        self.times: Sequence[float] = ()
        self._last: int | None = None
        self._order = 1

    def read(self, given: float | Tensor, scheduler: Any, factor: float = 1.0) -> SamplingStep:
        """Say which step a network is called for.

        Args:
            given: What it is told, 0-dim or `(B,)`. It is read where it lies on the CPU, or where
                nothing else says which of the scheduler's timesteps it is.
            scheduler: A diffusers scheduler.
            factor: From what the network is told to the scheduler's timesteps.
        """
        new = scheduler.timesteps is not self.timesteps
        if new:
            self.timesteps = scheduler.timesteps
            self.times = self.timesteps.double().tolist()
            self._order = getattr(scheduler, "order", 1)
        place = self._place(given, scheduler)
        if place is not None:
            time = self.times[place]
        else:
            value = given.flatten()[0] if isinstance(given, Tensor) else given
            time = float(value) * factor
            place = min(range(len(self.times)), key=lambda i: abs(self.times[i] - time), default=0)
            if isinstance(given, Tensor) and given.dtype in LOSSY and self.times:
                time = self.times[place]
        first = new or self._last is None or place <= self._last
        self._last = place
        return SamplingStep(torch.tensor(time, dtype=torch.float64), place // self._order, first)

    def left(self) -> tuple[tuple[int, float], ...]:
        """Step and time of the last call that was read and of those after it."""
        start = self._last or 0
        return tuple((i // self._order, t) for i, t in enumerate(self.times[start:], start))

    def _place(self, given: float | Tensor, scheduler: Any) -> int | None:
        """Index of a timestep that is a view of the scheduler's, or that the scheduler says."""
        all_of = self.timesteps
        if not isinstance(given, Tensor) or all_of is None:
            return None
        if not all_of.is_meta and given.dtype == all_of.dtype:
            start, size = all_of.data_ptr(), all_of.element_size()
            place, off = divmod(given.data_ptr() - start, size * (all_of.stride(0) or 1))
            if off == 0 and 0 <= place < len(self.times) and _same_storage(given, all_of):
                return place
        said = None if given.device.type == "cpu" else getattr(scheduler, "step_index", None)
        return said if said is not None and said < len(self.times) else None


def _same_storage(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
