"""Runs of a steered pipeline: of this one, of the network that is steered, and one at a time.

Every pipeline of diffusers asks for a progress bar before its loop, and leaves it after.
"""

import sys
from collections.abc import Callable, Iterator
from threading import get_ident
from traceback import walk_stack
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
        from diffusers import DiffusionPipeline

        if (other := caller(DiffusionPipeline, "self")) not in (None, self.pipe):
            raise InputError(
                f"{type(other).__name__} shares its network with the {type(self.pipe).__name__} "
                "that is steered: steer the pipeline that you call"
            )
        if other is not None and call_frame(self.pipe) is None:
            raise InputError(
                f"{type(self.pipe).__name__} calls its network outside of its own call (as "
                "generate_mask of DiffEdit does), where no step of its scheduler follows, at which "
                "the guidance would act: remove the steering for that"
            )
        return other is not None


def _refuse_threads() -> NoReturn:
    raise InputError(
        "two threads sample with one steered pipeline at once, and share its scheduler: let them "
        "take turns, or give each a pipeline of its own"
    )


def call_frame(pipe: Any) -> FrameType | None:
    """Frame of the call of a pipeline that is running."""
    frames = (frame for frame, _ in walk_stack(sys._getframe()))
    return next(
        (f for f in frames if f.f_code.co_name == "__call__" and f.f_locals.get("self") is pipe),
        None,
    )


def caller(kind: Any, *names: str) -> Any:
    """The latest object of a class that such variables of what is running hold; None for none."""
    values = (f.f_locals.get(name) for f, _ in walk_stack(sys._getframe()) for name in names)
    return next((value for value in values if isinstance(value, kind)), None)
