"""Arguments of a network's call, taken apart by the rows of its batch and put together again."""

import inspect
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.guidance.denoiser import Cond


@dataclass(frozen=True, eq=False)
class Shared:
    """An argument that is the same for all rows, though its first dimension may be as long."""

    value: Any


@dataclass(frozen=True, eq=False)
class Repeated:
    """A list of the same item for each row."""

    item: Any


LISTED = "a list of tensors, stacked"
"""Only key of the mapping that stands for a list with a tensor for each row."""
PER_SAMPLE = frozenset({"gligen", "ip_adapter_image_embeds", "ip_hidden_states"})
"""Attention arguments with a row for each sample."""
SHARED = frozenset({"ip_adapter_masks", "img_ids", "txt_ids"})
"""Arguments without a row for each sample: one for each adapter, or token."""


@cache
def signature(forward: Hashable) -> inspect.Signature:
    """Signature of a network's forward."""
    return inspect.signature(forward)  # type: ignore[arg-type]


def with_shared(network: Any, arguments: Cond, rows: int) -> Cond:
    """Arguments of a call of so many rows, `Shared` where they have no row for each.

    What diffusers' own forward takes has a row for each sample, or one for all, but for what
    `SHARED` names. Attention arguments go to processors of any kind: only `PER_SAMPLE` has rows.
    """
    bases = (c for c in type(network).__mro__ if c.__module__.startswith("diffusers."))
    own: Any = next(bases, type(network))
    known = signature(own.forward).parameters
    return {
        name: {k: _shared(k, v, rows, k in PER_SAMPLE) for k, v in value.items()}
        if name.endswith("attention_kwargs") and isinstance(value, Mapping)
        else _shared(name, value, rows, name in known)
        for name, value in arguments.items()
    }


def _shared(name: str, value: Any, rows: int, per_sample: bool) -> Any:
    if isinstance(value, Mapping):
        return {k: _shared(k, v, rows, per_sample) for k, v in value.items()}
    if isinstance(value, list | tuple) and name not in SHARED:
        return type(value)(_shared(name, v, rows, per_sample) for v in value)
    if name in SHARED and not isinstance(value, Shared):
        return Shared(value)
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    if len(value) == 1 < rows:
        return Shared(value)
    if per_sample and len(value) != rows:
        raise InputError(
            f"{name} has {len(value)} rows in a call of {rows}: give one for each sample, or one"
        )
    if not per_sample and len(value) == rows > 1:
        raise InputError(
            f"{name} of shape {tuple(value.shape)} may hold a row for each of {rows} rows of this "
            "call, or be the same for all: give it another first dimension"
        )
    return value if per_sample else Shared(value)


def by_length(tree: Any, rows: int) -> Any:
    """Arguments of a call of so many rows, of which those as long are taken to have a row for each.

    A network that no table describes has to show that this is right, see `Batches.output`.

    Raises:
        InputError: tensors of a list have several forms.
    """
    if isinstance(tree, Mapping):
        return {name: by_length(value, rows) for name, value in tree.items()}
    if isinstance(tree, list) and len(tree) == rows:
        if all(isinstance(item, Tensor) and item.shape == tree[0].shape for item in tree):
            return {LISTED: torch.stack(tree)}
        if rows > 1 and all(isinstance(item, Tensor) for item in tree):
            raise InputError("a list holds tensors of several forms")
        if all(equal(item, tree[0]) for item in tree):
            return Repeated(tree[0])
    if isinstance(tree, Tensor) and tree.ndim > 0 and len(tree) == rows:
        return tree
    return Shared(tree)


def put_together(tree: Any, rows: int = 1) -> Any:
    """Inverse of `with_shared` and `by_length`: arguments as the network takes them, for `rows`."""
    if isinstance(tree, Shared):
        return tree.value
    if isinstance(tree, Repeated):
        return [tree.item] * rows
    if isinstance(tree, Mapping):
        if tree.keys() == {LISTED}:
            return list(tree[LISTED].unbind())
        return {key: put_together(value, rows) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(put_together(value, rows) for value in tree)
    return tree


def stackable(a: Any, b: Any) -> bool:
    """Whether two conditions can be one batch: what has no rows is equal, and rows have a form."""
    if isinstance(a, Shared | Repeated):
        return type(a) is type(b) and equal(vars(a), vars(b))
    if isinstance(a, Mapping):
        return (
            isinstance(b, Mapping)
            and a.keys() == b.keys()
            and all(stackable(value, b[name]) for name, value in a.items())
        )
    if isinstance(a, list | tuple):
        alike = isinstance(b, list | tuple) and len(a) == len(b)
        return alike and all(map(stackable, a, b))
    if isinstance(a, Tensor) and a.ndim > 0:
        return bool(form(a) == form(b))
    return equal(a, b)


def form(tensor: Any) -> Any:
    """Shape and dtype of a tensor; for anything else an object that equals no other."""
    return (tensor.shape, tensor.dtype) if isinstance(tensor, Tensor) else object()


def equal(a: Any, b: Any) -> bool:
    """Whether two arguments of a network are equal, tensors by value."""
    if a is b:
        return True
    if isinstance(a, Tensor):
        return bool(form(a) == form(b)) and torch.equal(a, b)
    if isinstance(a, Mapping):
        same = isinstance(b, Mapping) and a.keys() == b.keys()
        return same and all(equal(value, b[name]) for name, value in a.items())
    if isinstance(a, list | tuple):
        same = isinstance(b, list | tuple) and len(a) == len(b)
        return same and all(map(equal, a, b))
    return type(a) is type(b) and bool(a == b)
