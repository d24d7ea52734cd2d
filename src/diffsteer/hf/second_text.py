"""Conditions of a network with the text of another condition."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.guidance.network import Cond, no_text
from diffsteer.hf.batches import INPUTS, ROWS, Layout, RowsOf
from diffsteer.hf.conditions import Part
from diffsteer.hf.stacking import LISTED


def with_text_of(cond: Cond, other: Cond) -> Cond:
    """A condition with the text of another, and all else as it was.

    Texts are the arguments with a row of tokens for each sample, and their masks. Pooled texts act
    by the time embedding, on image and texts alike, and are not taken.
    """
    for name, value in cond.items():
        if "hidden_states" in name and isinstance(value, Tensor) and value.ndim == 4:
            raise InputError(
                f"NAG takes texts with a row of tokens for each sample, and {name} is "
                f"{tuple(value.shape)}: take CFG"
            )
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
    if isinstance(value, Mapping) and value.keys() == {LISTED}:
        value = value[LISTED]
    if isinstance(value, list) and value:
        return all(isinstance(v, Tensor) and v.ndim == 2 and v.is_floating_point() for v in value)
    return isinstance(value, Tensor) and value.ndim == 3 and value.is_floating_point()


def _mask(name: str, value: Any) -> bool:
    whole = isinstance(value, Tensor) and not value.is_floating_point() and value.ndim > 1
    return whole or ("mask" in name and isinstance(value, Tensor)) or "len" in name


def second(cond: Any, other: Any) -> Any:
    """A condition with the text of another; for batches like those of calls, one call of both."""
    ((layout, mine),), ((its_layout, its),) = cond.items(), other.items()
    if layout.tree is None or its_layout.tree is None:
        return pair_of(layout, its_layout)
    texts = with_text_of({k: v for k, v in mine.items() if k not in (INPUTS, ROWS)}, its)
    return {layout: {**mine, **texts, ROWS: torch.full_like(mine[ROWS], -1)}}


def pair_of(layout: Layout, other: Layout) -> RowsOf:
    """One call of a network for two conditions of calls: the first, and with the other's text."""
    part = layout.part
    mine = _rows(layout.arguments, part)
    mixed = with_text_of(mine, _rows(other.arguments, other.part))
    arguments = {
        name: value if name.endswith("scale") else _stacked(value, mixed[name], len(part.sample))
        for name, value in mine.items()
    }
    inputs = part.call.inputs[part.rows]
    call = replace(part.call, inputs=torch.cat([inputs, inputs]), arguments=arguments, out=None)
    pair = replace(part, call=call, rows=slice(0, len(inputs)))
    return {replace(layout, part=pair, arguments=arguments, tree=None): {}}


def _rows(arguments: Mapping[str, Any], part: Part) -> dict[str, Any]:
    """Arguments with the rows of a condition, where they have one for each of the batch."""
    batch = len(part.call.inputs)

    def rows(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: rows(v) for name, v in value.items()}
        if _per_sample(value, batch):
            return value[part.rows]
        return [rows(v) for v in value] if isinstance(value, list) else value

    # a scale may have an entry for each layer, as many as there are samples
    return {n: v if n.endswith("scale") else rows(v) for n, v in arguments.items()}


def _per_sample(value: Any, size: int) -> bool:
    """Whether a tensor or list has an entry for each sample; lists of stacks are of layers."""
    if isinstance(value, Tensor):
        return value.ndim > 0 and len(value) == size
    stacks = isinstance(value, list) and any(isinstance(v, Tensor) and v.ndim > 2 for v in value)
    return isinstance(value, list) and len(value) == size and not stacks


def _stacked(first: Any, second: Any, size: int) -> Any:
    """Rows of both, where there is one for each sample; else the first."""
    if isinstance(first, Mapping):
        return {name: _stacked(value, second[name], size) for name, value in first.items()}
    if _per_sample(first, size):
        both = [*first, *second]
        return both if isinstance(first, list) else torch.stack(both)
    if isinstance(first, list):
        return [_stacked(a, b, size) for a, b in zip(first, second, strict=True)]
    return first
