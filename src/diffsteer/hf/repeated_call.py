"""The call of a pipeline, begun once more up to its first step, on a copy and with other arguments.

So masks, lengths and places of tokens are those that the pipeline makes. Noted is what it was
called with, and the states of generators then.
"""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.hf.hooks import Replaced, replaced
from diffsteer.hf.probed_calls import Call
from diffsteer.hf.runs import call_frame

MOST = 2
"""Most calls of the network that are looked at: one for each condition."""
LONGEST = 200
"""Letters of a pipeline's own error that are told."""


class _Reached(BaseException):
    """Ends a repeated call."""


class RepeatedCall:
    """Notes the calls of a pipeline, and begins the latest again.

    Args:
        pipe: The pipeline.

    Attributes:
        given: Arguments of the latest call, by name; None where there was none.
        anew: Called where another call begins.
        repeating: Whether the call is being repeated.
    """

    def __init__(self, pipe: Any, anew: Callable[[], None]) -> None:
        self.pipe, self.anew, self.repeating = pipe, anew, False
        self.given: dict[str, Any] | None = None
        self._call: Callable[..., Any] = type(pipe).__call__
        self._states: dict[int, Tensor] = {}
        self._rng = torch.empty(0)
        self._frame: FrameType | None = None
        self._calls: list[Call] = []

    def noting(self) -> Replaced | None:
        """Replacement of `encode_prompt` that notes what the pipeline was called with."""
        if (encode := getattr(self.pipe, "encode_prompt", None)) is None:
            return None
        return replaced(self.pipe, "encode_prompt", wraps(encode)(partial(self._encode, encode)))

    def _encode(self, encode: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.note()
        return encode(*args, **kwargs)

    def note(self) -> None:
        """Note the arguments of the call that is running, once: it may change them later."""
        frame = call_frame(self.pipe)
        if frame is self._frame and frame is not None:
            return
        self._frame, self.given = frame, None
        self.anew()
        if frame is None or (call := _method(self.pipe, frame)) is None:
            return
        self._call, self.given = call, {}
        for name, parameter in list(inspect.signature(call).parameters.items())[1:]:
            value = frame.f_locals.get(name)
            if parameter.kind is parameter.VAR_KEYWORD:
                self.given |= value or {}
            elif parameter.kind is not parameter.VAR_POSITIONAL:
                self.given[name] = value
        for text in ("prompt", "negative_prompt"):  # of which the call has made embeddings since
            if self.given.get(text):
                made = (n for n, v in self.given.items() if n.startswith(text) and n != text)
                self.given |= {n: None for n in made if isinstance(self.given[n], Tensor)}
        self._states = {id(g): g.get_state() for g in _generators(self.given)}
        self._rng = torch.get_rng_state()

    def end(self) -> None:
        """Forget the frame of a call that has ended."""
        self._frame = None

    def reach(self, call: Call, answer: Callable[[], Any]) -> Any:
        """Note a call of the network while the pipeline is repeated, and answer it."""
        self._calls.append(call)
        if len(self._calls) == MOST:
            raise _Reached
        return answer()

    def calls(self, given: Mapping[str, Any], purpose: str) -> Sequence[Call]:
        """Calls of the network before the first step of the scheduler, at most `MOST`.

        Args:
            given: Arguments of the pipeline's call.
            purpose: Of the call, for errors.

        Raises:
            InputError: the pipeline fails, or does not call its network.
        """
        given = {name: _restored(value, self._states) for name, value in given.items()}
        self.repeating, self._calls = True, []
        try:
            with torch.random.fork_rng(devices=()):
                torch.set_rng_state(self._rng)
                self._call(_copied(self.pipe), **given)
        except _Reached:
            pass
        except Exception as error:
            absent = [n for n, v in vars(self.pipe).items() if "text_encoder" in n and v is None]
            said = " ".join(str(error).split())[:LONGEST]
            reason = f"has no {absent[0]} to encode it" if absent else f"cannot encode it ({said})"
            raise InputError(f"{purpose}, and {type(self.pipe).__name__} {reason}") from error
        finally:
            self.repeating = False
        if not self._calls:
            name = type(self.pipe).__name__
            raise InputError(f"{purpose}, and {name} did not call its network again")
        return self._calls


def _method(pipe: Any, frame: FrameType) -> Callable[..., Any] | None:
    """The method of a pipeline's class, or of a base of it, that runs in a frame."""
    methods = (vars(cls).get("__call__") for cls in type(pipe).__mro__)
    ours = (m for m in methods if m and inspect.unwrap(m).__code__ is frame.f_code)
    return next(ours, None)


def _copied(pipe: Any) -> Any:
    """Copy of a pipeline with its networks and nothing replaced, whose scheduler ends a call."""
    made = copy.copy(pipe)
    for name, value in list(vars(made).items()):
        if isinstance(value, Replaced):
            del vars(made)[name]
        elif name == "scheduler" or "guider" in name:
            vars(made)[name] = copy.copy(value)
    if (scheduler := getattr(made, "scheduler", None)) is not None:

        @wraps(scheduler.step)
        def end(*_: Any, **__: Any) -> Any:
            raise _Reached

        scheduler.step = end
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
    return torch.Generator(value.device).set_state(states[id(value)])
