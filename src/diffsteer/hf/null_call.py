"""Call of a network for the null prompt, of pipelines that do not make it.

Distilled models, and any pipeline whose own guidance is off, call their network for the prompt
alone. The pipeline's call is then begun once more (`repeated_call`) with its guidance on. What it
sends its network there beside the prompt, which is known, is its null prompt: rows of a batch or a
call of its own, whichever differ. A pipeline that has no guidance is begun with the null prompt in
the place of the prompt.
"""

import inspect
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.hf.batched_arguments import equal
from diffsteer.hf.earlier_null import changed
from diffsteer.hf.families import known_family
from diffsteer.hf.network import network_of, unwrap_compiled
from diffsteer.hf.probed_calls import Call
from diffsteer.hf.repeated_call import RepeatedCall
from diffsteer.hf.split_conditions import alike, split

NEGATIVE = "negative_"
"""What the names of arguments for the null prompt begin with."""
SCALES = ("true_cfg_scale", "guidance_scale")
"""Arguments with the scale of a pipeline's own guidance, which is on above 1: of a pipeline that
has both, the second is an input of its network."""
PROMPT = "prompt"
"""Argument of pipelines, and part of the names of all arguments that a prompt becomes."""
TEXTS = re.compile(r"prompt(_\d)?$")
"""Names of prompts that are texts."""
FEATURES = re.compile(r"residual|block_samples")
"""Names of features of a ControlNet, which are made anew at each step."""
ASK = (
    "switch its own guidance on (a scale above 1, and a negative prompt), so that it sends it, or "
    "take a guidance that needs none, such as PAG"
)


class NullCall:
    """Calls of a network for the null prompt.

    Args:
        pipe: The pipeline.
        null: The null prompt, where a call of the pipeline has no negative prompt.

    Attributes:
        repeated: Notes the calls of the pipeline.
    """

    def __init__(self, pipe: Any, null: str = "") -> None:
        self.pipe, self.null = pipe, null
        self.repeated = RepeatedCall(pipe, self._anew)
        self._anew()

    def _anew(self) -> None:
        self._first: Call | None = None
        self._changes: dict[str, Any] | None = None
        self._inputs: Tensor | None = None
        self._network: Any = None

    def see(self, cond: Call) -> None:
        """Note the call for the prompt of a step; the first of a pipeline's call is kept."""
        self._first = self._first or cond

    def of(self, now: Call) -> Call:
        """Call for the null prompt.

        Args:
            now: Call for the prompt in this step.
        """
        first = self._first or now
        if now.keeps:
            raise InputError(
                "the guidance asks for the null prompt, and this pipeline keeps keys and values of "
                f"the prompt alone: {ASK}, or switch the cache off (use_kv_cache=False)"
            )
        if self._changes is None:
            null, cond = self._conditions(first)
            self._changes = {
                name: value
                for name, value in null.arguments.items()
                if not equal(value, first.arguments.get(name))
            }
            self._inputs = None if equal(null.inputs, cond.inputs) else null.inputs
            self._network = None if null.module is cond.module else null.module  # Ideogram 4
        features = ", ".join(name for name in self._changes if FEATURES.search(name))
        if changing := features or changed(self._changes, first.arguments, now.arguments):
            raise InputError(
                f"the guidance asks for the null prompt, and {changing} changes from step to step "
                "(features of a ControlNet, or a callback), which this pipeline makes for its "
                f"prompt alone: {ASK}"
            )
        inputs = now.inputs if self._inputs is None else self._inputs
        arguments = now.arguments | self._changes
        samples, network = (now.second, now.lengths), self._network or now.module
        return Call(network, now.name, inputs, now.listed, arguments, now.autocast, *samples)

    def _conditions(self, first: Call) -> tuple[Call, Call]:
        """Calls for null prompt and prompt, in the pipeline's own guidance if it has one."""
        given, purpose = self.repeated.given, self._purpose
        if given is None:
            raise InputError(
                "the guidance asks for the null prompt, and this network was called without a "
                f"prompt of its pipeline: call the pipeline, or {ASK}"
            )
        found = [] if (on := self._guided(given)) is None else self._parts(on, first)
        if len(found) == 2:
            for null, cond in (found, found[::-1]):
                if alike(cond.arguments, first.arguments):
                    return null, cond
        if len(found) > 1:
            raise InputError(
                f"{purpose}, and {type(self.pipe).__name__} does not show which it is where its "
                f"own guidance is on: {ASK}"
            )
        if PROMPT not in given:
            name = type(self.pipe).__name__
            raise InputError(f"{purpose}, which {name} neither sends nor encodes: {ASK}")
        null = self.repeated.calls(self._with_null(given), purpose)[0].joined(first.second)
        if len(null.inputs) != len(first.inputs):
            raise InputError(
                f"{type(self.pipe).__name__} gives its network {len(null.inputs)} samples for "
                f"the null prompt and {len(first.inputs)} for the prompt: {ASK}"
            )
        same = null.inputs.shape == first.inputs.shape
        return null, null if same else first

    @property
    def _purpose(self) -> str:
        return f"the guidance asks for the null prompt {self.null!r}"

    def _parts(self, given: Mapping[str, Any], first: Call) -> list[Call]:
        """Conditions of the first step where the pipeline is called so, each as its own call."""
        found = list[Call]()
        for call in self.repeated.calls(given, self._purpose):
            count = len(call.joined(first.second).inputs) // len(first.inputs)
            ways = [
                split(call.joined(first.second), first, count, turns) for turns in (False, True)
            ]
            known = (w for w in ways if any(alike(c.arguments, first.arguments) for c in w))
            found += next(known, ways[0])
        return found

    def _guided(self, given: Mapping[str, Any]) -> dict[str, Any] | None:
        """Arguments of the pipeline's call with its own guidance on; None where it has none."""
        scale = next((name for name in SCALES if name in given), None)
        if scale is None:
            return None
        value = given[scale]
        on = dict(given) | {scale: value if isinstance(value, int | float) and value > 1 else 2.0}
        negative = {n: v for n, v in _negatives(given).items() if PROMPT in n}
        embedded = any(_embedded(value) for value in negative.values())
        wanted = self.null or scale == SCALES[0]  # which is on with a negative prompt alone
        if wanted and PROMPT in negative and not embedded and not _texts(negative):
            on[NEGATIVE + PROMPT] = _for_each(self.null, given)
        return on

    def _with_null(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of the pipeline's call with the negative prompt in the place of the prompt."""
        negative, defaults = _negatives(given), _defaults(self.pipe)
        sizes = {
            name: value
            for name, value in negative.items()
            if PROMPT not in name and value not in (None, defaults.get(NEGATIVE + name))
        }
        negative = {name: value for name, value in negative.items() if PROMPT in name}
        changed = dict(given) | sizes
        if any(_embedded(value) for value in negative.values()):  # they may stand beside a text
            return changed | {n: None if TEXTS.match(n) else v for n, v in negative.items()}
        changed |= {
            n: None for n in given if TEXTS.match(n) or (PROMPT in n and _embedded(given[n]))
        }
        null = negative if _texts(negative) else {PROMPT: self.null}
        return changed | {name: _for_each(value, given) for name, value in null.items()}


def _negatives(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for the null prompt, by the names of those for the prompt."""
    return {
        name: given[NEGATIVE + name]
        for name in given
        if not name.startswith(NEGATIVE) and NEGATIVE + name in given
    }


def _defaults(pipe: Any) -> dict[str, Any]:
    parameters = inspect.signature(type(pipe).__call__).parameters.values()
    return {p.name: p.default for p in parameters}


def _texts(negative: Mapping[str, Any]) -> bool:
    """Whether a negative prompt says something; "" and [""] do not."""
    return any(any(value or ()) for value in negative.values())


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


def null_of(pipe: Any, null: str) -> NullCall | None:
    """Calls for the null prompt; None of pipelines of known families that have none."""
    family = known_family(unwrap_compiled(network_of(pipe)))
    there = family is None or "null" in family.halves or hasattr(pipe, "encode_prompt")
    return NullCall(pipe, null) if there else None
