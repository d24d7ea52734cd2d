"""Stacks of conditions: join those of several branches, and take some rows of them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffsteer.core.errors import InputError, brief
from diffsteer.core.fields import is_whole, plain_number


def require_max_rows(most: int | None) -> None:
    """Check the most rows of a pass."""
    if most is not None and not (is_whole(plain_number(most)) and most >= 1):
        raise InputError(
            f"max_rows={brief(most)} leaves no pass: give a whole number, at least 1, or None"
        )


def chunks(rows: int, most: int | None) -> Iterator[slice]:
    """Slices of at most so many rows that hold all of them in turn."""
    step = most or rows
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def stacked(parts: Sequence[Tensor]) -> Tensor:
    """Join parts along the batch."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def shapes(tree: Any) -> Any:
    """Shapes of a condition's tensors, in its form; conditions of equal ones can be stacked."""
    if isinstance(tree, Tensor):
        return tuple(tree.shape)
    if isinstance(tree, Mapping):
        return tuple((key, shapes(value)) for key, value in tree.items())
    if isinstance(tree, list | tuple):
        return tuple(shapes(value) for value in tree)
    return None


def joined(trees: Sequence[Any], size: int) -> Any:
    """Join conditions of `size` rows each; what has no rows is taken from the first."""
    first = trees[0]
    if isinstance(first, Tensor) and first.ndim > 0 and len(first) == size:
        return stacked(trees)
    if isinstance(first, Mapping):
        return {key: joined([tree[key] for tree in trees], size) for key in first}
    if isinstance(first, list | tuple):
        return type(first)(joined(column, size) for column in zip(*trees, strict=True))
    return first


def rows_of(tree: Any, rows: slice | list[int], size: int) -> Any:
    """Some rows of a condition of `size` rows."""
    if isinstance(tree, Tensor):
        return tree[rows] if tree.ndim > 0 and len(tree) == size else tree
    if isinstance(tree, Mapping):
        return {key: rows_of(value, rows, size) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(rows_of(value, rows, size) for value in tree)
    return tree
