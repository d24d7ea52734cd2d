"""Conditioning of a pipeline's call, prompts or names of classes, and seeds of its fresh noise."""

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.hf.hooks import wrapped
from diffsteer.hf.network import network_of

PROMPTS, CLASSES = "prompt", "class_labels"
"""Arguments of pipelines that say what images show."""
NONE = 1000
"""Class that DiT pipelines send for none in particular, whatever their network has."""


def conditioning_argument(pipe: Any) -> str:
    """Name of the argument that says what a pipeline shows; empty where it takes none."""
    takes = inspect.signature(pipe.__call__).parameters
    if PROMPTS in takes:
        return PROMPTS
    return CLASSES if CLASSES in takes and _class_count(pipe) else ""


def conditioning_kwargs(pipe: Any, texts: Sequence[str], guided: bool = False) -> dict[str, Any]:
    """Arguments of a pipeline's call by which its images show texts, one each.

    Args:
        pipe: Of prompts, of classes (DiT), or of neither.
        texts: A prompt each, or the name or number of a class; empty for none in particular.
        guided: Whether the pipeline is to send the null half as well.
    """
    name = conditioning_argument(pipe)
    if name == PROMPTS:
        return {name: list(texts)}
    if name == CLASSES:
        if guided and _class_count(pipe) != NONE:
            raise InputError(
                f"{type(pipe).__name__} sends class {NONE} for none in particular, which this "
                f"network of {_class_count(pipe)} classes has not: sample it without guidance"
            )
        numbers = {text: _class_number(pipe, text.strip()) for text in set(texts)}
        return {name: [numbers[text] for text in texts]}
    if any(texts):
        raise InputError(f"{type(pipe).__name__} takes no prompt: leave it out")
    return {"batch_size": len(texts)}


def seeded(pipe: Any, generators: Sequence[torch.Generator]) -> AbstractContextManager[None]:
    """Let a sampling's fresh noise come from its generators, one for each sample.

    Pipelines hand them to their scheduler, but class-conditional ones (DiT) do not.
    """
    takes = inspect.signature(pipe.scheduler.step).parameters
    if conditioning_argument(pipe) != CLASSES or "generator" not in takes:
        return nullcontext()

    def step(
        own: Any, out: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        each = [*generators] * (len(sample) // len(generators))  # under both conditions
        return own(out, timestep, sample, *args, **{**kwargs, "generator": each})

    return wrapped(pipe.scheduler, "step", step)


def _class_count(pipe: Any) -> int:
    """Number of classes that a network knows; 0 for none."""
    return int(getattr(network_of(pipe).config, "num_embeds_ada_norm", 0) or 0)


def _class_number(pipe: Any, text: str) -> int:
    """Number of a class by its name, or in digits; that of no class for an empty text."""
    count, names = _class_count(pipe), getattr(pipe, "labels", {})
    if not text:
        return count
    if text.isdecimal() and int(text) < count:
        return int(text)
    # all names of one class, or one
    parts = {_class_named(part, names) for part in text.split(",")}
    if len(parts) == 1 and (number := parts.pop()) is not None:
        return number
    near = [] if text.lstrip("-").isdecimal() else get_close_matches(text, names, 3)
    choices = ", ".join([*(repr(name) for name in near), f"a number below {count}, or nothing"])
    raise InputError(
        f"{text!r} is no class of this {type(pipe).__name__}, which shows classes and takes no "
        f"other prompt: give {choices}"
    )


def _class_named(text: str, names: dict[str, int]) -> int | None:
    """Number of the class of a name, in any case where that leaves one; None for none."""
    text = " ".join(text.split())
    if text in names:
        return int(names[text])
    alike = {number for name, number in names.items() if name.casefold() == text.casefold()}
    return int(alike.pop()) if len(alike) == 1 else None
