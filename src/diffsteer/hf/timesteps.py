"""Timesteps of a diffusers scheduler: their noise levels, and the step of a network's call.

The step is found without waiting for the device that holds the timesteps.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffsteer.core.level import Level
from diffsteer.core.prediction import Prediction
from diffsteer.core.schedule import Flow, Schedule
from diffsteer.hf.continuous_times import continuous
from diffsteer.hf.protocols import SchedulerLike
from diffsteer.hf.scheduler_config import trained

LOSSY = (torch.float16, torch.bfloat16)
"""Types that round a timestep away from the one that the scheduler means."""
FLOW_TIMESTEPS = 1000.0
"""Timestep of a flow's scheduler at the noisy end, t = 1."""


class SamplingStep(NamedTuple):
    """Step of a sampling, for which a network is called.

    Attributes:
        time: Timestep of the scheduler, 0-dim, float64, on the CPU.
        step: Index of the sampling step, as the scheduler counts: the calls of one step share it.
        first: Whether a sampling begins: timesteps are new, or time does not go on.
    """

    time: Tensor
    step: int
    first: bool


class StepTracker:
    """Follows a scheduler through samplings.

    Attributes:
        times: Its timesteps, copied to the CPU once a sampling.
        start: Index of the timestep that the sampling began at; not 0 in image to image.
    """

    def __init__(self) -> None:
        self.timesteps: Tensor | None = None
        self.times: Sequence[float] = ()
        self._last: int | None = None
        self.start = 0
        self._steps: Sequence[int] = ()

    def follow(self, scheduler: SchedulerLike) -> bool:
        """Take over a scheduler's timesteps and return whether they are new: a sampling begins."""
        if scheduler.timesteps is self.timesteps:
            return False
        self.timesteps, self._last = scheduler.timesteps, None
        self.times = scheduler.timesteps.double().tolist()
        return True

    def read(
        self, given: float | Tensor, scheduler: SchedulerLike, factor: float = 1.0
    ) -> SamplingStep:
        """Step that a network is called for.

        Args:
            given: What it is told, 0-dim or `(B,)`. It is read where it lies on the CPU, or where
                nothing else says which of the scheduler's timesteps it is.
            scheduler: A diffusers scheduler.
            factor: From what the network is told to the scheduler's timesteps.
        """
        self.follow(scheduler)
        index = self._viewed(given)
        if index is None:
            index, time = self._matched(given, self._counted(scheduler), factor)
        else:
            time = self.times[index]
        if self._last is None or index < self._last:
            self.start, self._steps = index, _steps(scheduler, len(self.times), index)
        first = self._last is None or index <= self._last
        self._last = index
        return SamplingStep(torch.tensor(time, dtype=torch.float64), self._steps[index], first)

    def remaining(self) -> tuple[tuple[int, float], ...]:
        """Step and timestep of the last call that was read and of those after it."""
        start = self._last or 0
        return tuple(zip(self._steps[start:], self.times[start:], strict=True))

    def _viewed(self, given: float | Tensor) -> int | None:
        """Index of a timestep that is a view of the scheduler's."""
        timesteps = self.timesteps
        if not isinstance(given, Tensor) or timesteps is None:
            return None
        if timesteps.is_meta or given.dtype != timesteps.dtype:
            return None
        # a view starts a whole number of elements after the tensor that it is a view of
        start, size = timesteps.data_ptr(), timesteps.element_size()
        index, offset = divmod(given.data_ptr() - start, size * (timesteps.stride(0) or 1))
        storages = (t.untyped_storage().data_ptr() for t in (given, timesteps))
        inside = offset == 0 and 0 <= index < len(self.times) and len(set(storages)) == 1
        return index if inside else None

    def _counted(self, scheduler: SchedulerLike) -> int | None:
        """Index of the timestep that the scheduler expects next, where it says so."""
        index = getattr(scheduler, "step_index", None)
        if index is None:
            index = getattr(scheduler, "begin_index", None)
        if index is None and self._last is not None and hasattr(scheduler, "counter"):  # PNDM
            index = self.start + scheduler.counter
        return index if index is not None and index < len(self.times) else None

    def _matched(
        self, given: float | Tensor, counted: int | None, factor: float
    ) -> tuple[int, float]:
        """Index of the timestep nearest to what the network is told, and what that means.

        Of timesteps that are equal within rounding it is the one that the scheduler counts.
        """
        eps = torch.finfo(torch.float32).eps
        if isinstance(given, Tensor):
            if given.device.type != "cpu" and counted is not None:
                return counted, self.times[counted]
            eps = torch.finfo(given.dtype).eps if given.dtype in LOSSY else eps
            given = float(given.flatten()[0])
        time = given * factor
        gaps = [abs(known - time) for known in self.times]
        reach = 4 * eps * abs(time)
        index = gaps.index(min(gaps))
        if counted is not None and gaps[counted] <= reach:
            index = counted
        return index, self.times[index] if gaps[index] <= reach else time


def _steps(scheduler: SchedulerLike, calls: int, start: int) -> Sequence[int]:
    """Step of each timestep of a sampling that begins at `start`.

    PNDM's Runge-Kutta steps take four calls each; without them, its first step takes two.
    """
    timesteps = getattr(scheduler, "prk_timesteps", None)
    if timesteps is None:
        return [i // getattr(scheduler, "order", 1) for i in range(calls)]
    if runge_kutta := len(timesteps):
        return [i // 4 if i < runge_kutta else i - runge_kutta * 3 // 4 for i in range(calls)]
    return [i - (i > start) for i in range(calls)]


def timestep_schedule(scheduler: SchedulerLike) -> tuple[Schedule, Prediction]:
    """Schedule on which the timesteps of a scheduler lie, and prediction type of the network."""
    if (known := continuous(scheduler)) is not None:
        return known
    schedule, prediction = trained(scheduler)
    # the timesteps of a flow are shifted already
    return Flow() if isinstance(schedule, Flow) else schedule, prediction


def level_at(schedule: Schedule, timestep: Any) -> Level:
    """Noise level of a scheduler timestep, on the schedule of `timestep_schedule`."""
    return schedule.at(timestep / FLOW_TIMESTEPS if isinstance(schedule, Flow) else timestep)


def timestep_like(
    level: Level, schedule: Schedule, flow_time: float, like: float | Tensor
) -> Tensor:
    """Time of a level as a network is told, a float tensor in the shape of what it was told.

    Levels of their own for samples, `(B,)`, give each its time.
    """
    like = torch.as_tensor(like)
    dtype = like.dtype if like.is_floating_point() else torch.float32
    time = level.t * (flow_time if isinstance(schedule, Flow) else 1.0)
    if time.ndim:
        time = time.reshape(-1, *(1,) * (like.ndim - 1)).expand(-1, *like.shape[1:])
        return time.to(like.device, dtype)
    return torch.full_like(like, time.item(), dtype=dtype)
