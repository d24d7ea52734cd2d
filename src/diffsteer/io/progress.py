"""Progress of samplings: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

PAUSE = 10.0
"""Seconds between lines where no terminal shows a bar."""


class Bar(Protocol):
    """Counts what is made."""

    def update(self, n: int) -> object:
        """Count n more."""


class Lines:
    """Prints a line to stderr every PAUSE seconds; what takes less prints none."""

    def __init__(self, total: int, unit: str) -> None:
        self._total, self._unit, self._done = total, unit, 0
        self._start = self._last = time.monotonic()

    def update(self, n: int) -> None:
        """Count n more."""
        self._done += n
        now = time.monotonic()
        if now - self._last >= PAUSE:
            left = (now - self._start) / self._done * (self._total - self._done)
            text = f"{self._done} of {self._total} {self._unit}s, {left:.0f} s left"
            print(text, file=sys.stderr, flush=True)
            self._last = now


@contextmanager
def progress(total: int, unit: str = "image") -> Iterator[Bar]:
    """Show the progress of making things until closed."""
    if not sys.stderr.isatty():
        yield Lines(total, unit)
        return
    from tqdm import tqdm

    with tqdm(total=total, unit=unit) as bar:
        yield bar
