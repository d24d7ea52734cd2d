"""Noise schedules. Importing the package registers all of them for `parse`."""

from collections.abc import Callable

from diffsteer.core.schedule.base import Schedule, Time
from diffsteer.core.schedule.continuous import EDM, Cosine, Flow, LogSigma, OffsetCosine
from diffsteer.core.schedule.discrete import Discrete

__all__ = ["EDM", "Cosine", "Discrete", "Flow", "LogSigma", "OffsetCosine", "Schedule", "Time"]

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
