"""The call of a pipeline, begun once more up to its first step, on a copy and with other arguments.

So the masks, lengths and places of tokens of a prompt that the pipeline was not called with are
those that it makes. Its latest call is noted for that: arguments, and states of generators.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.hf.hooks import Replaced, wrapped
from diffsteer.hf.probed_calls import MOST_CALLS, Call, both_stepped
from diffsteer.hf.runs import call_frame
from diffsteer.hf.second_step import step_arguments

LONGEST = 200
"""Letters of a pipeline's own error that are told."""


class _Reached(BaseException):
    """Ends a repeated call."""


@dataclass(frozen=True, eq=False)
class FirstStep:
    """Calls of a pipeline up to its first step, and what the step was given.

    Attributes:
        calls: Of the network, each with its probe.
        model_output: What the scheduler is given, of the probes; None where there was no step.
        sample: The scheduler's, `(B, *D)`.
        pipe: The copy that was called.
    """

    calls: Sequence[Call]
    model_output: Tensor | None
    sample: Tensor | None
    pipe: Any


class RepeatedCall:
    """Notes the calls of a pipeline, and begins the latest again.

    Args:
        pipe: The pipeline.
        anew: Called where another call begins, and where one has ended.

    Attributes:
        given: Arguments of the latest call, by name; None where there was none.
        repeating: Whether the call is being repeated.
        calls: Of the network in a repeated call.
    """

    def __init__(self, pipe: Any, anew: Callable[[], None]) -> None:
        self.pipe, self.anew, self.repeating = pipe, anew, False
        self.calls: list[Call] = []
        self._call: Callable[..., Any] = type(pipe).__call__
        self.given: dict[str, Any] | None = None
        self._frame: FrameType | None = None
        self._generators: dict[int, Tensor] = {}
        self._states: list[Tensor] = []

    def noting(self) -> Iterator[Replaced]:
        """Replacements of methods at which a call is noted, and forgotten at its end."""
        for name in ("check_inputs", "encode_prompt"):
            if hasattr(self.pipe, name):
                yield wrapped(self.pipe, name, partial(self._before, self.note))
        if hasattr(self.pipe, "maybe_free_model_hooks"):
            yield wrapped(self.pipe, "maybe_free_model_hooks", partial(self._before, self.end))

    @staticmethod
    def _before(
        first: Callable[[], None], method: Callable[..., Any], *args: Any, **more: Any
    ) -> Any:
        """Call a function, and then the method in whose place this stands."""
        first()
        return method(*args, **more)

    def note(self) -> None:
        """Note the arguments of the call that is running, once: it may change them later."""
        frame = call_frame(self.pipe)
        if frame is self._frame and frame is not None:
            return
        self.end()
        self._frame = frame
        if frame is None or (call := _method(self.pipe, frame)) is None:
            return
        given: dict[str, Any] = {}
        for name, parameter in list(inspect.signature(call).parameters.items())[1:]:
            value = frame.f_locals.get(name)
            if parameter.kind is parameter.VAR_KEYWORD:
                given |= value or {}
            elif parameter.kind is not parameter.VAR_POSITIONAL:
                given[name] = value
        for text in ("prompt", "negative_prompt"):  # of which the call has made embeddings since
            if given.get(text):
                made = [n for n, v in given.items() if n.startswith(text) and isinstance(v, Tensor)]
                given |= dict.fromkeys(made)
        self._call, self.given = call, given
        self._generators = {id(g): g.get_state() for g in _generators(given)}
        self._states = [torch.get_rng_state(), *map(torch.cuda.get_rng_state, _gpus())]

    def end(self) -> None:
        """Forget a call that has ended."""
        self.given, self._frame, self._generators, self._states = None, None, {}, []
        self.anew()

    def reach(self, call: Call) -> None:
        """Note a call of the network while the pipeline is repeated."""
        if len(self.calls) == MOST_CALLS:
            raise _Reached
        self.calls.append(call)

    def first_step(self, given: Mapping[str, Any], purpose: str) -> FirstStep:
        """What the pipeline does up to its first step, called with such arguments.

        Args:
            given: Arguments of the pipeline's call.
            purpose: Of the call, for errors.

        Raises:
            InputError: the pipeline fails, or does not call its network.
        """
        given = {name: _restored(value, self._generators) for name, value in given.items()}
        made, steps = _copied(self.pipe), list[tuple[Tensor, Tensor]]()
        _stop_at_step(made, self.calls, steps)
        self.repeating = True
        self.calls.clear()
        try:
            with _random(self._states):
                self._call(made, **given)
        except _Reached:
            pass
        except Exception as error:
            absent = [n for n, v in vars(self.pipe).items() if "text_encoder" in n and v is None]
            said = " ".join(str(error).split())[:LONGEST]
            lacks = absent and "NoneType" in said
            reason = f"has no {absent[0]} to encode it" if lacks else f"cannot encode it ({said})"
            raise InputError(f"{purpose}, and {type(self.pipe).__name__} {reason}") from error
        finally:
            self.repeating = False
        if not self.calls:
            name = type(self.pipe).__name__
            raise InputError(f"{purpose}, and {name} did not call its network again")
        output, sample = steps[0] if steps else (None, None)
        calls = tuple(self.calls)
        self.calls.clear()
        return FirstStep(calls, output, sample, made)


def _stop_at_step(pipe: Any, calls: list[Call], steps: list[tuple[Tensor, Tensor]]) -> None:
    """Let the scheduler of a copy end its call at the first step, and note what it is given."""
    scheduler, step = pipe.scheduler, pipe.scheduler.step

    @wraps(step)
    def end(*args: Any, **kwargs: Any) -> Any:
        given = step_arguments(scheduler, *args, **kwargs).arguments
        if both_stepped(calls, given["sample"]):
            return step(*args, **kwargs)
        steps.append((given["model_output"], given["sample"]))
        raise _Reached

    scheduler.step = end


@contextmanager
def _random(states: Sequence[Tensor]) -> Iterator[None]:
    """Random numbers from such states of the CPU and the GPUs, which are then as before."""
    with torch.random.fork_rng(devices=_gpus()):
        torch.set_rng_state(states[0])
        for device, state in zip(_gpus(), states[1:], strict=False):
            torch.cuda.set_rng_state(state, device)
        yield


def _gpus() -> list[int]:
    used: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return list(range(torch.cuda.device_count())) if used else []


def _method(pipe: Any, frame: FrameType) -> Callable[..., Any] | None:
    """The method of a pipeline's class, or of a base of it, that runs in a frame."""
    methods = (vars(cls).get("__call__") for cls in type(pipe).__mro__)
    ours = (m for m in methods if m and inspect.unwrap(m).__code__ is frame.f_code)
    return next(ours, None)


def _copied(pipe: Any) -> Any:
    """Copy of a pipeline with its networks, a scheduler of its own, and nothing replaced."""
    made = copy.copy(pipe)
    for name, value in list(vars(made).items()):
        if isinstance(value, Replaced):
            del vars(made)[name]
            vars(made).update(value.below())
        elif name == "scheduler" or "guider" in name:
            vars(made)[name] = copy.copy(value)
    made.set_progress_bar_config(disable=True)
    return made


def _generators(given: Mapping[str, Any]) -> Sequence[torch.Generator]:
    values = given.get("generator")
    values = values if isinstance(values, list | tuple) else [values]
    return [value for value in values if isinstance(value, torch.Generator)]


def _restored(value: Any, states: Mapping[int, Tensor]) -> Any:
    """Generators in the states in which they were noted; all else as it is."""
    if isinstance(value, list | tuple):
        return type(value)(_restored(part, states) for part in value)
    if not isinstance(value, torch.Generator):
        return value
    made = torch.Generator(value.device)
    return made.set_state(states.get(id(value), value.get_state()))
