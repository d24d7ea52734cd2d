"""Conditions of a network with the text of another condition."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.guidance.network import Cond, no_text
from diffsteer.hf.step_calls import Part


def with_text_of(cond: Cond, other: Cond) -> Cond:
    """A condition with the text of another, and all else as it was.

    Texts are the arguments with a row of tokens for each sample, and their masks. Pooled texts act
    by the time embedding, on image and texts alike, and are not taken.
    """
    texts = [name for name, value in cond.items() if _tokens(value) and name in other]
    if not texts:
        raise no_text()
    names = [*texts, *(name for name, value in cond.items() if _mask(name, value))]
    for name in names:
        if isinstance(cond[name], Tensor) and cond[name].shape != other[name].shape:
            lengths = cond[name].shape[1], other[name].shape[1]
            raise InputError(
                f"NAG evaluates both prompts in one batch, and they have {lengths[0]} and "
                f"{lengths[1]} tokens: pad both prompts to one length"
            )
    return {**cond, **{name: other[name] for name in names}}


def _tokens(value: Any) -> bool:
    """Whether an argument holds tokens of a text: one row for each sample."""
    if isinstance(value, list) and value:
        return all(isinstance(v, Tensor) and v.ndim == 2 and v.is_floating_point() for v in value)
    return isinstance(value, Tensor) and value.ndim == 3 and value.is_floating_point()


def _mask(name: str, value: Any) -> bool:
    whole = isinstance(value, Tensor) and not value.is_floating_point() and value.ndim > 1
    return whole or ("mask" in name and isinstance(value, Tensor)) or "len" in name


def pair_of(cond: Mapping[str, Any], other: Mapping[str, Any]) -> Mapping[str, Any]:
    """One call of a network for two conditions of calls: the first, and with the other's text."""
    part, null = cond["part"], other["part"]
    mine = _rows(part.call.arguments, part)
    mixed = with_text_of(mine, _rows(null.call.arguments, null))
    arguments = {
        name: _stacked(value, mixed[name], len(part.sample)) for name, value in mine.items()
    }
    inputs = part.call.inputs[part.rows]
    call = replace(part.call, inputs=torch.cat([inputs, inputs]), arguments=arguments, out=None)
    return {**cond, "part": replace(part, call=call, rows=slice(0, len(inputs)))}


def _rows(arguments: Mapping[str, Any], part: Part) -> dict[str, Any]:
    """Arguments with the rows of a condition, where they have one for each of the batch."""
    batch = len(part.call.inputs)

    def rows(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: rows(v) for name, v in value.items()}
        each = (isinstance(value, Tensor) and value.ndim > 0) or isinstance(value, list)
        return value[part.rows] if each and len(value) == batch else value

    return {name: rows(value) for name, value in arguments.items()}


def _stacked(first: Any, second: Any, size: int) -> Any:
    """Rows of both, where there is one for each sample; else the first."""
    if isinstance(first, Mapping):
        return {name: _stacked(value, second[name], size) for name, value in first.items()}
    if isinstance(first, list) and len(first) == size:
        return [*first, *second]
    if isinstance(first, Tensor) and first.ndim > 0 and len(first) == size:
        return torch.cat([first, second])
    return first
