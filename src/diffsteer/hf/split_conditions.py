"""Conditions of a call of a network, told apart by what one of them, the prompt, is known to be."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from diffsteer.hf.batched_arguments import equal
from diffsteer.hf.probed_calls import Call
from diffsteer.hf.timesteps import LOSSY


def split(call: Call, first: Call, count: int, in_turn: bool) -> list[Call]:
    """Conditions of a call as calls of their own.

    Args:
        call: Whose rows hold so many conditions.
        first: Call of one condition: it has fewer rows where an argument has some for each.
        count: Number of conditions.
        in_turn: Whether each sample comes under all conditions in turn.
    """

    def part(i: int, value: Any, like: Any) -> Any:
        if isinstance(value, Mapping):
            likes = like if isinstance(like, Mapping) else {}
            return {name: part(i, each, likes.get(name)) for name, each in value.items()}
        if like is None and isinstance(value, Tensor) and value.ndim > 1:
            like = first.inputs.new_empty(size, *value.shape[1:])
        if isinstance(value, Tensor) and isinstance(like, Tensor) and value.ndim == like.ndim:
            sizes = enumerate(zip(value.shape, like.shape, strict=True))
            dim = next((d for d, (n, m) in sizes if n == count * m), None)
            if dim is None:
                return value
            return value[(slice(None),) * dim + (rows(i, like.shape[dim]),)]
        if isinstance(value, list | tuple) and isinstance(like, list | tuple):
            if len(value) == count * len(like):
                return value[rows(i, len(like))]
            if len(value) == len(like):
                return type(value)(part(i, *pair) for pair in zip(value, like, strict=True))
        return value

    def rows(i: int, each: int) -> slice:
        return slice(i, None, count) if in_turn else slice(i * each, (i + 1) * each)

    size = len(first.inputs)

    return [
        replace(
            call,
            inputs=part(i, call.inputs, first.inputs),
            arguments=part(i, call.arguments, first.arguments),
        )
        for i in range(count)
    ]


def alike(a: Any, b: Any) -> bool:
    """Whether arguments are equal, but for what a text encoder rounds in batches of other sizes.

    Of texts of other lengths what both have is compared, at the start or at the end. Masks and
    places of other lengths say nothing, nor does what one of two calls has.
    """
    if isinstance(a, Tensor) and isinstance(b, Tensor) and a.ndim == b.ndim:
        if a.shape == b.shape:
            return _close(a, b)
        other = [n for n, m in zip(a.shape, b.shape, strict=True) if n != m]
        if len(other) > 1 or not a.is_floating_point():
            return True
        sizes = tuple(map(min, a.shape, b.shape))
        return _close(_start(a, sizes), _start(b, sizes)) or _close(_end(a, sizes), _end(b, sizes))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return all(alike(a[name], b[name]) for name in a.keys() & b.keys())
    if isinstance(a, list | tuple):
        same = isinstance(b, list | tuple) and len(a) == len(b)
        return same and all(map(alike, a, b))
    return equal(a, b)


def _start(x: Tensor, sizes: tuple[int, ...]) -> Tensor:
    return x[tuple(slice(n) for n in sizes)]


def _end(x: Tensor, sizes: tuple[int, ...]) -> Tensor:
    return x[tuple(slice(length - n, None) for n, length in zip(sizes, x.shape, strict=True))]


def _close(a: Tensor, b: Tensor) -> bool:
    close = 0.03 if a.dtype in LOSSY else 1e-3
    a, b = a.double(), b.double()
    return not a.numel() or bool((a - b).abs().max() <= close * b.abs().max())
