"""Step of a second sample (sound beside video), which has a scheduler of its own.

Pipelines copy their scheduler for it, and step it after their own, with the second output of the
same calls of the network.
"""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from traceback import walk_stack
from typing import Any

from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.hf.batched_arguments import signature
from diffsteer.hf.conditions import Part, StepParts
from diffsteer.hf.hooks import wrapped
from diffsteer.hf.probed_calls import Call
from diffsteer.hf.sample_placement import View


class SecondStep:
    """Gives a second scheduler its part of the guided output.

    Args:
        owner: Class of the pipeline, for errors.

    Attributes:
        awaited: Whether a step is still to come.
    """

    def __init__(self, owner: str) -> None:
        self._owner, self.awaited = owner, False
        self._replaced = ExitStack()

    def await_step(
        self,
        pipe: Any,
        calls: Sequence[Call],
        parts: Mapping[str, Part],
        guided: Tensor,
        stepped: Callable[[], None],
    ) -> None:
        """Wait for the step of the second sample; called in the step of the first.

        Args:
            pipe: The pipeline.
            calls: Of this step.
            parts: Conditions of the first sample.
            guided: Guided output of both, `(B, tokens, C)`.
            stepped: Called after the step.
        """
        self._check(parts, 0)
        scheduler = _other_scheduler(pipe)
        if scheduler is None:
            raise InputError(
                f"{self._owner} has two samples (video and sound), and no second scheduler that "
                "steps the other one can be seen"
            )
        act = partial(self._step, scheduler, calls, parts, guided, stepped)
        self._replaced.enter_context(wrapped(scheduler, "step", act))
        self.awaited = True

    def end(self, failed: bool = False) -> None:
        """End a step: what was awaited had to come."""
        awaited, self.awaited = self.awaited, False
        self._replaced.close()
        if awaited and not failed:
            raise InputError(
                f"{self._owner} did not step its second sample (sound) after its first by a "
                "scheduler like its own, where the guidance acts"
            )

    def _step(
        self,
        scheduler: Any,
        calls: Sequence[Call],
        parts: Mapping[str, Part],
        guided: Tensor,
        stepped: Callable[[], None],
        step: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Stand in for the scheduler's step: give it the guided output."""
        try:
            self.end(failed=True)
            given = step_arguments(scheduler, *args, **kwargs)
            output, sample = given.arguments["model_output"], given.arguments["sample"]
            try:
                own = StepParts.of(calls, output, sample).parts
            except InputError as error:
                raise InputError(f"{self._owner} {error}") from error
            self._check(own, 1, parts)
            given.arguments["model_output"] = own["cond"].given(guided).to(output.dtype)
            return step(*given.args[1:], **given.kwargs)
        finally:
            stepped()

    def _check(
        self, parts: Mapping[str, Part], sample: int, as_in: Mapping[str, Part] | None = None
    ) -> None:
        """Check that a scheduler steps a sample, the second whole, as the other is stepped."""
        first = as_in or parts
        for name, part in parts.items():
            lengths, view, other = part.call.lengths, part.taken, first.get(name, part)
            run = (sample * lengths[0], lengths[sample])
            whole = view == View(run=run) or (view.run == run and view.grid and not sample)
            forms = [(p.call, p.rows, p.sign) for p in (part, other)]
            if not whole or part.given != view or name not in first or forms[0] != forms[1]:
                raise InputError(
                    f"{self._owner} does not step its two samples (video, but for frames of a "
                    "condition, and sound) whole and with the same conditions: take the plain "
                    "pipeline"
                )


def step_arguments(scheduler: Any, *args: Any, **kwargs: Any) -> inspect.BoundArguments:
    """Arguments of a scheduler's step by name."""
    return signature(type(scheduler).step).bind(None, *args, **kwargs)


def _other_scheduler(pipe: Any) -> Any:
    """A scheduler like a pipeline's among the variables of what is running, or in its state."""
    kind, own = type(pipe.scheduler), pipe.scheduler
    for frame, _ in walk_stack(sys._getframe()):
        if frame.f_globals["__name__"].startswith("diffusers."):
            values = list(frame.f_locals.values())
            values += [
                v for x in values if type(x).__name__ == "BlockState" for v in vars(x).values()
            ]
            if others := [v for v in values if type(v) is kind and v is not own]:
                return others[0]
    return None
