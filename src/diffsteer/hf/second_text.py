"""Pairs of conditions of a network that differ in their text."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.guidance.network import Cond, no_text
from diffsteer.hf.batched_arguments import LISTED, Shared, signature
from diffsteer.hf.conditions import Part
from diffsteer.hf.layout import INPUTS, ROWS, Layout, RowsOf
from diffsteer.hf.network import unwrap_compiled


def texts_of_both(cond: Cond, other: Cond, network: Any) -> tuple[Cond, Cond]:
    """A condition, and one with the text of another and all else as it was.

    Texts are the arguments with a row of tokens for each sample, and their masks. Pooled texts act
    by the time embedding, on image and texts alike, and are not taken. The shorter text is padded
    where the network takes a mask of it.
    """
    texts = [name for name, value in cond.items() if _is_tokens(value) and name in other]
    for name, value in cond.items():
        whole = value.value if isinstance(value, Shared) else value
        deep = isinstance(whole, Tensor) and whole.ndim == 4
        if "hidden_states" in name and (deep or (not texts and _is_tokens(whole))):
            raise InputError(
                f"NAG takes texts with a row of tokens for each sample, and {name} is "
                f"{tuple(whole.shape)}: take CFG"
            )
    if not texts:
        raise no_text()
    names = dict.fromkeys((*cond, *other))
    masks = [n for n in names if _is_mask(n, cond.get(n)) or _is_mask(n, other.get(n))]
    first, second = dict(cond), {**cond, **{name: other.get(name) for name in (*texts, *masks)}}
    for name in texts:
        if isinstance(cond[name], Tensor) and cond[name].shape != other[name].shape:
            lengths = cond[name].shape[1], other[name].shape[1]
            mask = _mask_of(name, network)
            if mask is None:
                raise _of_two_lengths(*lengths)
            first |= _padded(first, name, mask, max(lengths))
            second |= _padded(second, name, mask, max(lengths))
    for name in masks:
        first[name], second[name] = _both_masks(first.get(name), second[name])
    return first, second


def _both_masks(first: Any, second: Any) -> tuple[Any, Any]:
    """Two masks of one shape; where there is one alone, the other hides nothing."""
    if isinstance(first, Tensor) != isinstance(second, Tensor):
        ones = torch.ones_like(first if isinstance(first, Tensor) else second)
        first, second = (x if isinstance(x, Tensor) else ones for x in (first, second))
    if isinstance(first, Tensor) and first.shape != second.shape:
        raise _of_two_lengths(first.shape[-1], second.shape[-1])
    return first, second


def _of_two_lengths(length: int, other: int) -> InputError:
    return InputError(
        f"NAG evaluates both prompts in one batch, they have {length} and {other} tokens, and the "
        "network takes no mask of its text alone: pad both prompts to one length"
    )


def _mask_of(name: str, network: Any) -> str | None:
    """Argument of a network that masks a text; None where it has none."""
    names = f"{name}_mask", name.replace("hidden_states", "attention_mask")
    takes = signature(type(unwrap_compiled(network)).forward).parameters
    return next((n for n in names if n != name and n in takes), None)


def _padded(cond: Cond, name: str, mask: str, count: int) -> dict[str, Tensor]:
    """A text with zeros after its last token, and its mask."""
    tokens, seen = cond[name], cond.get(mask)
    if not isinstance(seen, Tensor):
        seen = tokens.new_ones(tokens.shape[:2], dtype=torch.bool)
    more = count - tokens.shape[1]
    return {name: F.pad(tokens, (0, 0, 0, more)), mask: F.pad(seen, (0, more))}


def _is_tokens(value: Any) -> bool:
    """Whether an argument holds tokens of a text: one row for each sample."""
    if isinstance(value, Mapping) and value.keys() == {LISTED}:
        value = value[LISTED]
    if isinstance(value, list) and value:
        return all(isinstance(v, Tensor) and v.ndim == 2 and v.is_floating_point() for v in value)
    return isinstance(value, Tensor) and value.ndim == 3 and value.is_floating_point()


def _is_mask(name: str, value: Any) -> bool:
    """Whether an argument says which tokens of a text are there, by a mask, numbers or lengths."""
    whole = isinstance(value, Tensor) and not value.is_floating_point() and value.ndim > 1
    return whole or ("mask" in name and isinstance(value, Tensor)) or "len" in name


def second(cond: Any, other: Any) -> tuple[Any, ...]:
    """Pair of conditions for `Network.second`: one, and the same with another's text.

    Where calls are evaluated whole, it is one condition, of a call that holds both.
    """
    ((layout, own),), ((its_layout, its),) = cond.items(), other.items()
    if layout.tree is None or its_layout.tree is None:
        return (pair_of(layout, its_layout),)
    rows = {ROWS: torch.minimum(own[ROWS], ~own[ROWS])}
    arguments = {k: v for k, v in own.items() if k not in (INPUTS, ROWS)}
    texts = texts_of_both(arguments, its, layout.part.call.module)
    return tuple({layout: {**own, **text, **rows}} for text in texts)


def pair_of(layout: Layout, other: Layout) -> RowsOf:
    """One call of a network for two conditions of calls: the first, and with the other's text."""
    part = layout.part
    own, its = _rows(part), _rows(other.part)
    both = texts_of_both(own, its, part.call.module)
    arguments = {
        name: value if name.endswith("scale") else _stacked(value, both[1][name], len(part.sample))
        for name, value in both[0].items()
    }
    inputs = part.call.inputs[part.rows]
    call = replace(part.call, inputs=torch.cat([inputs, inputs]), arguments=arguments, out=None)
    pair = replace(part, call=call, rows=slice(0, len(inputs)))
    return {replace(layout, part=pair, tree=None): {}}


def _rows(part: Part) -> dict[str, Any]:
    """Arguments with the rows of a condition, where they have one for each of the batch."""
    batch = len(part.call.inputs)

    def rows(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: rows(v) for name, v in value.items()}
        if _per_sample(value, batch):
            return value[part.rows]
        return [rows(v) for v in value] if isinstance(value, list) else value

    # a scale may have an entry for each layer, as many as there are samples
    return {n: v if n.endswith("scale") else rows(v) for n, v in part.call.arguments.items()}


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
