"""Signs of life of the trials of a search, for workers that see nothing else of each other.

Optuna beats for databases and within its own loop alone. Here a worker counts an attribute of its
trial up, in any store, and others judge by their own clocks whether it still counts.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from threading import Event, Thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.trial import FrozenTrial

BEAT = "beat"
"""Attribute of a trial that is counted up while it is measured."""
EVERY, GRACE = 10.0, 60.0
"""Seconds between beats, and those without one after which a trial is lost."""


@contextmanager
def beating(trial: "Trial") -> Iterator[None]:
    """Count up the beats of a trial meanwhile."""
    stop = Event()

    def beat() -> None:
        for number in count(1):
            if stop.wait(EVERY):
                return
            try:
                trial.set_user_attr(BEAT, number)
            except Exception:  # of a store that does not answer: GRACE spans several beats
                continue

    thread = Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@dataclass(frozen=True)
class Pulse:
    """Beats of other workers' trials, and when they were first seen."""

    seen: dict[int, tuple[int, float]] = field(default_factory=dict)

    def lost(self, trial: "FrozenTrial") -> bool:
        """Whether a running trial has not beaten for `GRACE` seconds of this worker's clock."""
        beat, now = trial.user_attrs.get(BEAT, 0), time.monotonic()
        if self.seen.get(trial.number, (None,))[0] != beat:
            self.seen[trial.number] = beat, now
        return now - self.seen[trial.number][1] > GRACE
