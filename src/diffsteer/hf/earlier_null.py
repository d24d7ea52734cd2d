"""Null prompt of an earlier step, where a pipeline ends its guidance before its last step."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.guidance.batching import rows_of
from diffsteer.hf.batched_arguments import Shared, by_length, equal, put_together, with_shared
from diffsteer.hf.conditions import Part
from diffsteer.hf.families import known_family
from diffsteer.hf.network import unwrap_compiled


def null_at_step(null: Part, before: Part, now: Part) -> Part:
    """Null prompt at a step at which the pipeline sends the prompt alone.

    Arguments and channels beside the sample in which it differed from the prompt stay as they were;
    all else is that of the prompt now.

    Args:
        null: The null prompt at the step at which it was last sent.
        before: The prompt at that step, in the same call or in one of its own.
        now: The prompt at this step.

    Raises:
        InputError: what it had otherwise changes from step to step.
    """
    of_null, of_prompt, current = (_arguments(part) for part in (null, before, now))
    own = {k: v for k, v in of_null.items() if not equal(v, of_prompt.get(k))}
    inputs = [part.call.inputs[part.rows] for part in (null, before, now)]
    alike = equal(*inputs[:2])  # else its channels beside the sample are its own
    changing = changed(own, of_prompt, current)
    if not alike and not changing:
        before.place(moved := inputs[1].clone(), now.sample)
        changing = "" if equal(moved, inputs[2]) else before.call.name
    if changing:
        raise InputError(
            f"the pipeline ended its guidance before its last step, and {changing} of "
            "the null prompt changes from step to step (features of a ControlNet): leave its "
            "guidance on at all steps, and limit this one by .within(lo, hi) or .over(a, b)"
        )
    part = now if alike else null
    call = replace(part.call, arguments={**current, **own}, out=None)
    return replace(part, call=call, scale=now.scale, held=now.held)


def changed(own: Iterable[str], before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Names of arguments that change between two steps, of those in `own`; empty for none."""
    return ", ".join(name for name in own if not equal(before.get(name), now.get(name)))


def _arguments(part: Part) -> Mapping[str, Any]:
    """Arguments of a call for the rows of a part alone."""
    call, count = part.call, len(part.call.inputs)
    if len(part.sample) == count:
        return call.arguments
    network = unwrap_compiled(call.module)
    if known_family(network) is not None:
        tree = with_shared(network, call.arguments, count)
    else:
        tree = {name: _divided(value, part, count) for name, value in call.arguments.items()}
    return dict(put_together(rows_of(tree, part.rows, count), len(part.sample)))


def _divided(value: Any, part: Part, count: int) -> Any:
    """An argument with its rows apart; of a list of a tensor for each row, those of the part."""
    if isinstance(value, list) and len(value) == count and isinstance(value[0], Tensor):
        return Shared(value[part.rows])
    return by_length(value, count)
