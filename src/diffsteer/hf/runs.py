"""Runs of a steered pipeline: of this one, of the network that is steered, and one at a time.

Every pipeline of diffusers asks for a progress bar before its loop, and leaves it after.
"""

import sys
from collections.abc import Callable, Iterator
from threading import get_ident
from types import FrameType
from typing import Any, NoReturn
from weakref import ref

from diffsteer.core.errors import InputError


class Run:
    """A sampling, in the place of the pipeline's progress bar."""

    def __init__(self, bar: Any, ended: Callable[[bool], None]) -> None:
        self.bar, self.thread = bar, get_ident()
        self.ended = self.crossed = False
        self._ended = ended

    def __enter__(self) -> Any:
        return self.bar.__enter__()

    def __exit__(self, *error: object) -> Any:
        self.ended = True
        result = self.bar.__exit__(*error)
        self._ended(error[0] is not None)
        return result

    def __iter__(self) -> Iterator[Any]:
        failed = True
        try:
            yield from self.bar
            failed = False
        finally:
            self.ended = True
            self._ended(failed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.bar, name)


class Runs:
    """Follows the runs of a pipeline while it is steered.

    Args:
        pipe: The pipeline, whose method `progress_bar` is replaced by `begin`.
        parts: Its components that must stay while it is steered, by name.

    Attributes:
        ended: Called at the end of a run, with whether it failed.
    """

    def __init__(self, pipe: Any, parts: dict[str, Any]) -> None:
        self.pipe, self.parts = pipe, parts
        self._progress_bar: Callable[..., Any] | None = getattr(pipe, "progress_bar", None)
        self._run: Callable[[], Run | None] = lambda: None
        self.ended: Callable[[bool], None] = lambda failed: None

    def begin(self, *args: Any, **kwargs: Any) -> Run:
        """Begin a run: the progress bar of the pipeline."""
        for name, part in self.parts.items():
            if getattr(self.pipe, name) is not part:
                raise InputError(
                    f"{name} of this pipeline was replaced while it was steered, and the new one "
                    "is not: remove the steering, then steer again"
                )
        if (other := self._run()) and not other.ended and other.thread != get_ident():
            other.crossed = True
            _refuse_threads()
        assert self._progress_bar is not None
        run = Run(self._progress_bar(*args, **kwargs), self.ended)
        self._run = ref(run)
        return run

    def check(self) -> bool:
        """Whether a call of the network is one of the pipeline; raises where it is another's."""
        run = self._run()
        if run is not None and not run.ended:
            if run.crossed or run.thread != get_ident():
                _refuse_threads()
            return True
        if (other := _calling_pipeline()) not in (None, self.pipe):
            raise InputError(
                f"{type(other).__name__} shares its network with the {type(self.pipe).__name__} "
                "that is steered: steer the pipeline that you call"
            )
        return other is not None


def _refuse_threads() -> NoReturn:
    raise InputError(
        "two threads sample with one steered pipeline at once, and share its scheduler: let them "
        "take turns, or give each a pipeline of its own"
    )


def _calling_pipeline() -> Any:
    """The pipeline of diffusers that called what runs now, if one did."""
    from diffusers import DiffusionPipeline

    frame: FrameType | None = sys._getframe(1)
    while frame := frame and frame.f_back:
        if isinstance(caller := frame.f_locals.get("self"), DiffusionPipeline):
            return caller
    return None
