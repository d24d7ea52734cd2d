"""Record of how a pipeline calls its network in a sampling."""

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a network."""

    network: Any
    component: str
    context: str | None
    kwargs: dict[str, Any]  # all arguments by name, the noisy sample first
    out: Tensor
    step: int

    def again(self, **changed: Any) -> Tensor:
        """The network's output for other arguments."""
        with torch.no_grad():
            return first(self.network(**self.kwargs | changed))


@dataclass(frozen=True, eq=False)
class Step:
    """What the scheduler's `step` is given."""

    output: Tensor
    t: float
    sigma: float
    sample: Tensor


@dataclass(frozen=True)
class Record:
    """Calls and steps of a sampling, in their order."""

    calls: list[Call] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    def first_calls(self) -> list[Call]:
        """Calls before the first step."""
        return [call for call in self.calls if call.step == 0]

    def first_step(self) -> Step:
        """The step that these calls end in: the last one before the next call."""
        later = [call.step for call in self.calls if call.step > 0]
        return self.steps[min(later, default=len(self.steps)) - 1]


def first(out: Any) -> Tensor:
    """The prediction in what a network or a pipeline returns; lists of samples are stacked."""
    while not isinstance(out, Tensor):
        if isinstance(out, list) and isinstance(out[0], Tensor):
            return torch.stack(out)
        if isinstance(out, list | tuple | dict):
            out = list(out.values() if isinstance(out, dict) else out)[0]
        else:
            out = torch.as_tensor(out)
    return out


@contextmanager
def recorded(pipe: Any, network: str) -> Iterator[Record]:
    """Record the calls of all networks of the class name, and the scheduler's steps."""
    record, contexts = Record(), [None]
    parts = vars(pipe)  # `pipe.components` misses a part whose argument has a default
    with ExitStack() as stack:
        for name, part in parts.items():
            if type(part).__name__ == network:
                _record_calls(stack, record, name, part, contexts)
        _record_steps(stack, record, pipe)
        yield record


def _record_calls(stack: ExitStack, record: Record, name: str, part: Any, contexts: Any) -> None:
    forward, signature = part.forward, inspect.signature(part.forward)

    @wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        names = dict(signature.bind(*args, **kwargs).arguments)
        names |= names.pop("kwargs", {})
        names = {k: v.clone() if isinstance(v, Tensor) else v for k, v in names.items()}
        out = forward(*args, **kwargs)
        if isinstance(out, tuple) and out[0] is None:
            return out  # fills a cache, predicts nothing
        value = first(out).clone()
        record.calls.append(Call(part, name, contexts[-1], names, value, len(record.steps)))
        return out

    stack.enter_context(patch.object(part, "forward", call))
    if hasattr(part, "cache_context"):
        entered = part.cache_context

        @contextmanager
        def cache_context(name: str, **kwargs: Any) -> Iterator[None]:
            contexts.append(name)
            with entered(name, **kwargs):
                yield
            contexts.pop()

        stack.enter_context(patch.object(part, "cache_context", cache_context))


def _record_steps(stack: ExitStack, record: Record, pipe: Any) -> None:
    """Patch the class and look at the instance: copies of the scheduler step through audio."""
    original = type(pipe.scheduler).step
    signature = inspect.signature(original)

    @wraps(original)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self is not pipe.scheduler:
            return original(self, *args, **kwargs)
        names = signature.bind(self, *args, **kwargs).arguments
        output, t, sample = list(names.values())[1:4]
        given = output.clone(), float(t), sample.clone()
        result = original(self, *args, **kwargs)
        sigmas, index = getattr(self, "sigmas", None), getattr(self, "step_index", None) or 1
        sigma = float("nan") if sigmas is None else float(sigmas[index - 1])
        record.steps.append(Step(given[0], given[1], sigma, given[2]))
        return result

    stack.enter_context(patch.object(type(pipe.scheduler), "step", step))
