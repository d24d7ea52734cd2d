"""Stand in for the step of a pipeline's scheduler."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from diffsteer.hf.conditioning import CLASSES, conditioning_argument


@contextmanager
def stepping(scheduler: Any, step: Callable[..., Any]) -> Iterator[None]:
    """Let a function stand in for the step of a scheduler, until closed."""
    own = scheduler.__dict__.get("step")
    scheduler.step = step
    try:
        yield
    finally:
        scheduler.__dict__.pop("step")
        if own is not None:
            scheduler.step = own


@contextmanager
def seeded(pipe: Any, generators: Sequence[torch.Generator]) -> Iterator[None]:
    """Let a sampling's fresh noise come from its generators, one a row.

    Pipelines hand them to their scheduler, but for those of classes (DiT), which keep them.
    """
    step = pipe.scheduler.step
    if conditioning_argument(pipe) != CLASSES or "generator" not in signature(step).parameters:
        yield
        return

    @wraps(step)
    def handed(out: Tensor, timestep: Any, sample: Tensor, *args: Any, **more: Any) -> Any:
        each = [*generators] * (len(sample) // len(generators))  # of both halves
        return step(out, timestep, sample, *args, **{**more, "generator": each})

    with stepping(pipe.scheduler, handed):
        yield
