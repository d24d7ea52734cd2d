"""Timesteps of a scheduler as noise levels, and the arguments by which networks are told them.

Networks are told the timestep itself, a share of the schedule, or the share that is left.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.core.level import CLEAN, Level, upcast
from diffsteer.core.prediction import Prediction
from diffsteer.core.schedule import Flow, Schedule
from diffsteer.hf.protocols import SchedulerLike
from diffsteer.hf.sample_placement import ROUNDING
from diffsteer.hf.timesteps import (
    FLOW_TIMESTEPS,
    LOSSY,
    SamplingStep,
    StepTracker,
    level_at,
    timestep_schedule,
)

Rule = Callable[[float, float], float]
RULES: tuple[Rule, ...] = (
    lambda t, n: t,
    lambda t, n: t / n,
    lambda t, n: 1 - t / n,
    lambda t, n: t - 1,
    lambda t, n: t / (t + n),
)
"""Times that networks are told at a timestep t of n."""


@dataclass(frozen=True)
class Timeline:
    """Timesteps of a scheduler.

    Attributes:
        schedule: Levels of the timesteps.
        prediction: Prediction type of the scheduler's model output times `direction`.
        count: Timestep at the noisy end, by which shares of the schedule are told.
        inverted: Whether the timesteps of a flow run from data to noise (Mochi).
        scaled: Whether they are sigma / alpha of a flow, beyond 1, whose samples are scaled for the
            network, x / (1 + sigma) (Cosmos 2).
    """

    schedule: Schedule
    prediction: Prediction
    count: float
    inverted: bool
    scaled: bool = False
    _levels: dict[float, Level] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, scheduler: SchedulerLike) -> "Timeline":
        """Timesteps of a scheduler; raises where it cannot be steered."""
        schedule, prediction = timestep_schedule(scheduler)
        flow = isinstance(schedule, Flow)
        count = scheduler.config.get("num_train_timesteps", FLOW_TIMESTEPS)
        inverted = bool(scheduler.config.get("invert_sigmas"))
        sigmas = getattr(scheduler, "sigmas", None)
        scaled = flow and isinstance(sigmas, Tensor) and bool(sigmas.max() > 1 + ROUNDING)
        last = float(count if flow else schedule.last)
        return cls(schedule, prediction, last, inverted, scaled)

    @property
    def direction(self) -> float:
        """Factor of the scheduler's model output in the prediction."""
        return -1.0 if self.inverted else 1.0

    def level(self, time: float) -> Level:
        """Noise level of a timestep, made once."""
        if time not in self._levels:
            at = self.count - time if self.inverted else time
            at = self.count * at / (self.count + at) if self.scaled else at
            if isinstance(self.schedule, Flow) and self.count != FLOW_TIMESTEPS:
                at = at / self.count * FLOW_TIMESTEPS
            self._levels[time] = level_at(self.schedule, torch.tensor(at, dtype=torch.float64))
        return self._levels[time]

    def time(self, level: Level) -> float:
        """Timestep of a level."""
        time = float(level.t) * (self.count if isinstance(self.schedule, Flow) else 1.0)
        time = time / (1 - float(level.t)) if self.scaled else time
        return self.count - time if self.inverted else time

    def holds(self, factor: float, time: float) -> bool:
        """Whether x0 or eps of the network's output is `factor` times its input, and the output.

        Args:
            factor: Of the input, where that of the output is 1.
            time: Timestep.
        """
        level, (one, zero) = self.level(time), torch.eye(2, dtype=torch.float64)
        x0 = self.prediction.x0(one, zero, level)
        eps = (one - level.alpha * x0) / level.sigma
        return any(abs(factor * q - p) <= ROUNDING * abs(p) for p, q in (x0.tolist(), eps.tolist()))


class Predicted(NamedTuple):
    """Prediction of a network at a step, guidance included.

    Attributes:
        x: Sample as the network takes it, `(B, *D)`.
        level: Of the sample.
        x0: Of it, `(B, *D)`, in float32 or wider.
        timestep: As the scheduler is given it.
    """

    x: Tensor
    level: Level
    x0: Tensor
    timestep: float | Tensor


def predicted(
    scheduler: SchedulerLike, out: Tensor, timestep: float | Tensor, sample: Tensor
) -> Predicted:
    """Prediction of a network by its output.

    Args:
        scheduler: Of diffusers, about to step.
        out: Output that it is given, guidance included; channels beyond the sample's are left out.
        timestep: As it is given.
        sample: As it holds it, `(B, *D)`, before it is scaled for the network.
    """
    timeline = Timeline.of(scheduler)
    level = timeline.level(float(timestep))
    scale = getattr(scheduler, "scale_model_input", None)
    x = upcast(sample if scale is None else scale(sample, timestep))
    x0 = timeline.prediction.x0(x, timeline.direction * upcast(out[:, : x.shape[1]]), level)
    return Predicted(x, level, x0, timestep)


class TimeArgument:
    """Arguments of a network for a timestep, as the calls of a sampling show it.

    At one timestep two rules may mean the same (t = n / 2); the others tell them apart.

    Args:
        rules: Those that may hold.
    """

    def __init__(self, rules: tuple[Rule, ...] = RULES) -> None:
        self._rules = rules
        self._seen: list[tuple[Mapping[str, Any], float, float]] = []

    def see(self, arguments: Mapping[str, Any], now: float, n: float) -> None:
        """Take note of a call at the timestep `now` of n, to be read when it is asked for."""
        if len(self._rules) > 1:
            times = {name: value for name, value in arguments.items() if _timed(name)}
            self._seen.append((times, now, n))

    def told(
        self, arguments: Mapping[str, Any], t: float, now: float, n: float, beside: bool = True
    ) -> dict[str, Any]:
        """Arguments with which a network is told the timestep t, from those of `now`.

        Tokens of a condition, of time 0, stay; they have to be `beside` the sample, not inside of
        it, where that is changed as well.

        Raises:
            ValueError: none of them, or more than one rule, is known to say the timestep.
        """
        for seen, then, count in self._seen:
            kept = tuple(rule for rule in self._rules if self._names(seen, rule(then, count)))
            self._rules = kept or self._rules
        self._seen.clear()
        names = {rule: self._names(arguments, rule(now, n), beside) for rule in self._rules}
        rules = [rule for rule, fitting in names.items() if fitting]
        if not rules or len({rule(t, n) for rule in rules}) > 1:
            raise InputError(
                "the guidance asks the network at another noise level, and it is not certain how "
                f"its arguments ({', '.join(arguments)}) say the timestep"
            )
        changed = dict(arguments)
        for name in names[rules[0]]:
            times = torch.as_tensor(arguments[name])
            dtype = times.dtype if times.is_floating_point() else torch.float32
            new = torch.full_like(times, rules[0](t, n), dtype=dtype)
            changed[name] = torch.where(_without_noise(times), times.to(dtype), new)
        return changed

    def _names(self, arguments: Mapping[str, Any], time: float, beside: bool = True) -> list[str]:
        """Names of the arguments that hold a time."""
        names = []
        for name, value in arguments.items():
            if _timed(name) and value is not None:
                times = torch.as_tensor(value)
                error = time - times.double()
                if not times.is_floating_point():  # rounded down
                    fits = (error >= 0) & (error < 1)
                else:
                    share = ROUNDING if times.dtype in LOSSY else 1e-4
                    fits = error.abs() <= share * abs(time) + 1e-5
                conditions = _without_noise(times) & beside
                if fits.any() & (fits | conditions).all():  # one read from the device
                    names.append(name)
        return names


def _without_noise(times: Tensor) -> Tensor:
    """Which tokens are of a condition, by times of each token."""
    return (times == 0) & (times.ndim > 1)


def _timed(name: str) -> bool:
    """Whether an argument may hold a time."""
    return name in ("t", "sigma") or name.startswith("time") or name.endswith("timestep")


@dataclass(frozen=True)
class Now:
    """A step of a sampling: its timeline, its place there, and its level.

    Attributes:
        timeline: Timesteps of the scheduler.
        step: This step.
        tracker: Follows the sampling.
        level: Noise level of this step.
    """

    timeline: Timeline
    step: SamplingStep
    tracker: StepTracker
    level: Level

    @property
    def time(self) -> float:
        """Timestep of the scheduler."""
        return float(self.step.time)

    def next(self, step: int) -> Level:
        """Level that a step goes to; the last goes to data."""
        times = (time for later, time in self.tracker.remaining() if later > step)
        return next(map(self.timeline.level, times), CLEAN)
