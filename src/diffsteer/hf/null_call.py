"""Call of a network for the null prompt, of pipelines that do not make it.

Distilled models, and any pipeline whose own guidance is off, call their network for the prompt
alone. The pipeline's call is then begun once more, on a copy and with the null prompt, up to its
first call of the network; what that gives the network otherwise than the first call for the prompt
is the null prompt. So masks, lengths and places of tokens are those that the pipeline makes. Where
a pipeline of a known family can send both conditions in one call, it is begun with its guidance on.
"""

import copy
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial, wraps
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.guidance.batching import rows_of
from diffsteer.hf.batched_arguments import equal, put_together, with_shared
from diffsteer.hf.earlier_null import changed
from diffsteer.hf.families import known_family
from diffsteer.hf.hooks import Replaced, replaced
from diffsteer.hf.known_family_call import Conditions
from diffsteer.hf.network import network_of, unwrap_compiled
from diffsteer.hf.probed_calls import Call
from diffsteer.hf.runs import call_frame

NEGATIVE = "negative_"
"""What the names of arguments for the null prompt begin with."""
SCALE = "guidance_scale"
"""Argument of pipelines with the scale of their own guidance, which is on above 1."""
PROMPT = "prompt"
"""Argument of pipelines, and part of the names of all arguments that a prompt becomes."""
TEXTS = re.compile(r"prompt(_\d)?$")
"""Names of prompts that are texts."""


class _Reached(BaseException):
    """Ends a call of a pipeline at its first call of the network."""


class NullCall:
    """Calls of a network for the null prompt, as a context that notes the calls of a pipeline.

    Args:
        pipe: The pipeline.
        null: The null prompt, where a call of the pipeline has no negative prompt.
    """

    def __init__(self, pipe: Any, null: str = "") -> None:
        self.pipe, self.null = pipe, null
        self._noted: tuple[dict[str, Any], dict[int, Any]] | None = None
        self._reached: Call | None = None
        self._changes: dict[str, Any] | None = None
        self._inputs: Tensor | None = None
        self._rng = torch.empty(0)
        self._frame: FrameType | None = None
        self.repeating = False

    def noting(self) -> Replaced | None:
        """Replacement of `encode_prompt` that notes what the pipeline was called with."""
        if (encode := getattr(self.pipe, "encode_prompt", None)) is None:
            return None
        return replaced(self.pipe, "encode_prompt", wraps(encode)(partial(self._encode, encode)))

    def _encode(self, encode: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._frame = call_frame(self.pipe)
        self._note(self._frame)
        return encode(*args, **kwargs)

    def begin(self) -> None:
        """Take note of a sampling that begins, also where `encode_prompt` had nothing to do."""
        if (frame := call_frame(self.pipe)) is not self._frame or frame is None:
            self._note(frame)
        self._frame = None

    def _note(self, frame: FrameType | None) -> None:
        names = inspect.signature(type(self.pipe).__call__).parameters
        self._noted, self._changes = None, None
        if frame is not None and PROMPT in names:
            given = {n: v for n, v in frame.f_locals.items() if n in names and n != "self"}
            self._noted = given, {id(g): g.get_state() for g in _generators(given)}
            self._rng = torch.get_rng_state()

    def reach(self, call: Call) -> None:
        """End the repeated call of the pipeline at its first call of the network."""
        self._reached = call
        raise _Reached

    def of(self, first: Call, now: Call) -> Call:
        """Call for the null prompt.

        Args:
            first: Call for the prompt that began this sampling.
            now: Call for the prompt in this step.
        """
        if "ip_adapter_image_embeds" in (now.arguments.get("joint_attention_kwargs") or {}):
            raise InputError(
                "the guidance asks for the null prompt, and this pipeline says what its image "
                "prompt (IP-Adapter) is without one only later: guide without CFG, or without it"
            )
        if now.keeps:
            raise InputError(
                "the guidance asks for the null prompt, and this pipeline keeps keys and values of "
                f"the prompt alone: {ASK}, or switch the cache off (use_kv_cache=False)"
            )
        if self._changes is None:
            null = (self._half(first) or self._repeated()).joined(first.second)
            if len(null.inputs) != len(first.inputs):
                raise InputError(
                    f"{type(self.pipe).__name__} gives its network {len(null.inputs)} samples for "
                    f"the null prompt and {len(first.inputs)} for the prompt: {ASK}"
                )
            self._changes = {
                name: value
                for name, value in null.arguments.items()
                if not equal(value, first.arguments.get(name))
            }
            self._inputs = None if null.inputs.shape == first.inputs.shape else null.inputs
        if changing := changed(self._changes, first.arguments, now.arguments):
            raise InputError(
                f"the guidance asks for the null prompt, and {changing} changes from step to step "
                f"(features of a ControlNet), which this pipeline makes for its prompt alone: {ASK}"
            )
        inputs = now.inputs if self._inputs is None else self._inputs
        arguments = now.arguments | self._changes
        samples = now.second, now.lengths
        return Call(now.module, now.name, inputs, now.listed, arguments, now.autocast, *samples)

    def _half(self, first: Call) -> Call | None:
        """Its half of the batch that the pipeline makes with its own guidance on, if it does."""
        network = unwrap_compiled(first.module)
        family, given = known_family(network), self._noted[0] if self._noted else {}
        if family is None or "null" not in family.halves or SCALE not in given:
            return None
        on: dict[str, Any] = {SCALE: 2.0}
        negative = [value for name, value in _negatives(given).items() if PROMPT in name]
        if self.null and all(value is None for value in negative):
            on[NEGATIVE + PROMPT] = _for_each(self.null, given)
        call = self._begun(given | on)
        count = len(call.inputs)
        if count != 2 * len(first.inputs):  # a network that is told the scale (LCM)
            return None
        rows = Conditions(family.halves).rows("null", count)
        arguments = put_together(rows_of(with_shared(network, call.arguments, count), rows, count))
        return replace(call, inputs=call.inputs[rows], arguments=arguments)

    def _repeated(self) -> Call:
        """First call of the network where the pipeline is called with the null prompt."""
        if self._noted is None:
            if PROMPT in inspect.signature(type(self.pipe).__call__).parameters:
                raise InputError(
                    "the guidance asks for the null prompt, and this network was called without a "
                    "prompt of its pipeline: call the pipeline"
                )
            raise InputError(
                f"the guidance asks for the null prompt, which {type(self.pipe).__name__} neither "
                f"sends nor encodes: {ASK}"
            )
        return self._begun(self._with_null(self._noted[0]))

    def _begun(self, given: Mapping[str, Any]) -> Call:
        """First call of the network where the pipeline is called with such arguments."""
        assert self._noted is not None
        states = self._noted[1]
        given = {name: _restored(value, states) for name, value in given.items()}
        self.repeating, self._reached = True, None
        try:
            with torch.random.fork_rng(devices=()):
                torch.set_rng_state(self._rng)
                type(self.pipe).__call__(shadow(self.pipe), **given)
        except _Reached:
            pass
        except Exception as error:
            absent = [n for n, v in vars(self.pipe).items() if "text_encoder" in n and v is None]
            reason = f"has no {absent[0]} to encode it" if absent else f"cannot encode it ({error})"
            raise InputError(
                f"the guidance asks for the null prompt {self.null!r}, and "
                f"{type(self.pipe).__name__} {reason}: {ASK}"
            ) from error
        finally:
            self.repeating = False
        if self._reached is None:
            raise InputError(f"{type(self.pipe).__name__} did not call its network again: {ASK}")
        return self._reached

    def _with_null(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of the pipeline's call with the negative prompt in the place of the prompt."""
        changed = dict(given)
        names = [name for name in given if NEGATIVE + name in given or PROMPT in name]
        negative = _negatives(given)
        if any(_embedded(value) for value in negative.values()):  # they may stand beside a text
            return changed | {n: None if TEXTS.match(n) else v for n, v in negative.items()}
        changed |= {n: None for n in names if TEXTS.match(n) or _embedded(given[n])}
        texts = any(any(value or ()) for value in negative.values())  # [""] is none
        null = negative if texts else {PROMPT: self.null}
        return changed | {name: _for_each(value, given) for name, value in null.items()}


ASK = (
    "switch its own guidance on (a scale above 1, and a negative prompt), so that it sends it, or "
    "take a guidance that needs none, such as PAG"
)


def shadow(pipe: Any) -> Any:
    """Copy of a pipeline with its networks, a scheduler of its own, and nothing replaced."""
    made = copy.copy(pipe)
    for name, value in list(vars(made).items()):
        if isinstance(value, Replaced):
            del vars(made)[name]
        elif name == "scheduler" or "guider" in name:
            vars(made)[name] = copy.copy(value)
    made.set_progress_bar_config(disable=True)
    return made


def _negatives(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for the null prompt, by the names of those for the prompt."""
    return {
        name: given[NEGATIVE + name]
        for name in given
        if not name.startswith(NEGATIVE) and NEGATIVE + name in given
    }


def _for_each(value: Any, given: Mapping[str, Any]) -> Any:
    """A text once for each prompt of a call, where it has a list of them; else as it is."""
    count = _count(given) if isinstance(value, str) else None
    return value if count is None else [value] * count


def _count(given: Mapping[str, Any]) -> int | None:
    """Number of prompts of a call, None for one that is no list."""
    if isinstance(prompt := given.get(PROMPT), list):
        return len(prompt)
    embeddings = given.get("prompt_embeds")
    return len(embeddings) if isinstance(embeddings, Tensor | list) else None


def _embedded(value: Any) -> bool:
    """Whether an argument holds embeddings or masks of prompts."""
    value = value[0] if isinstance(value, list | tuple) and value else value
    return isinstance(value, Tensor)


def _generators(given: Mapping[str, Any]) -> Sequence[torch.Generator]:
    values = given.get("generator")
    values = values if isinstance(values, list | tuple) else [values]
    return [value for value in values if isinstance(value, torch.Generator)]


def _restored(value: Any, states: Mapping[int, Tensor]) -> Any:
    """Generators in the states in which they were noted; all else as it is."""
    if isinstance(value, list | tuple):
        return type(value)(_restored(part, states) for part in value)
    if not isinstance(value, torch.Generator):
        return value
    return torch.Generator(value.device).set_state(states[id(value)])


def null_of(pipe: Any, null: str) -> NullCall | None:
    """Calls for the null prompt; None of pipelines of known families that take no prompt."""
    family = known_family(unwrap_compiled(network_of(pipe)))
    return NullCall(pipe, null) if family is None or hasattr(pipe, "encode_prompt") else None
