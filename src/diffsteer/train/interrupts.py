"""Requests to end a process: Ctrl-C, and SIGTERM of a queue."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def end_requests(note: Callable[[], None]) -> Iterator[None]:
    """Let the first request call a function, and a second one end the process at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        note()
        restore()

    def restore() -> None:
        for s, handler in before.items():
            signal.signal(s, handler)

    before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        restore()
