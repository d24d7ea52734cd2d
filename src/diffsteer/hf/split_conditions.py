"""One of the conditions that a call of a network holds, as a call of its own."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from diffsteer.hf.probed_calls import Call


def split(call: Call, first: Call, count: int, place: int, in_turn: bool) -> Call:
    """One condition of a call.

    Args:
        call: Whose rows hold so many conditions.
        first: Call of one condition: it has fewer rows where an argument has some for each.
        count: Number of conditions.
        place: Of the one that is taken, from 0.
        in_turn: Whether each sample comes under all conditions in turn.
    """

    def part(value: Any, like: Any) -> Any:
        if isinstance(value, Mapping):
            likes = like if isinstance(like, Mapping) else {}
            return {name: part(each, likes.get(name)) for name, each in value.items()}
        if like is None and isinstance(value, Tensor) and value.ndim > 1:  # a mask of both alone
            like = first.inputs.new_empty(len(first.inputs), *value.shape[1:])
        if isinstance(value, Tensor) and isinstance(like, Tensor) and value.ndim == like.ndim:
            sizes = enumerate(zip(value.shape, like.shape, strict=True))
            dim = next((d for d, (n, m) in sizes if n == count * m), None)
            if dim is None:
                return value
            return value[(slice(None),) * dim + (rows(like.shape[dim]),)]
        if isinstance(value, list | tuple) and isinstance(like, list | tuple):
            if len(value) == count * len(like):
                return value[rows(len(like))]
            if len(value) == len(like):
                return type(value)(part(*pair) for pair in zip(value, like, strict=True))
        return value

    def rows(each: int) -> slice:
        return slice(place, None, count) if in_turn else slice(place * each, (place + 1) * each)

    inputs, arguments = part(call.inputs, first.inputs), part(call.arguments, first.arguments)
    return replace(call, inputs=inputs, arguments=arguments)
