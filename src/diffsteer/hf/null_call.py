"""Call of a network for the null prompt, of pipelines that do not make it.

Distilled models, and any pipeline whose own guidance is off, call their network for the prompt
alone. The pipeline's call is then begun once more (`repeated_call`) with its guidance on. What it
makes of the probes says which rows of a batch, or which call, is its null prompt (`conditions`), as
in a step that is guided. A pipeline that has no guidance is begun with the null prompt in the place
of the prompt.
"""

import inspect
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from diffsteer.core.errors import InputError
from diffsteer.hf.batched_arguments import equal
from diffsteer.hf.conditions import Part, StepParts
from diffsteer.hf.earlier_null import changed
from diffsteer.hf.families import known_family
from diffsteer.hf.network import network_of, unwrap_compiled
from diffsteer.hf.probed_calls import Call
from diffsteer.hf.repeated_call import FirstStep, RepeatedCall
from diffsteer.hf.split_conditions import split

NEGATIVE = "negative_"
"""What the names of arguments for the null prompt begin with."""
SCALES = ("true_cfg_scale", "guidance_scale")
"""Arguments with the scale of a pipeline's own guidance, which is on above 1: of a pipeline that
has both, the second is an input of its network."""
PROMPT = "prompt"
"""Argument of pipelines, and part of the names of all arguments that a prompt becomes."""
TEXTS = re.compile(r"prompt(_\d)?$")
"""Names of prompts that are texts."""
INTERVAL = re.compile(r"(cfg|guidance).*(start|end|stop|interval|trunc)")
"""Names of arguments that say at which steps a pipeline guides."""
FEATURES = re.compile(r"residual|block_samples|controlnet")
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
        """Note the call for the prompt of a step; the first is kept, for what changes after it."""
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
                if not equal(value, cond.arguments.get(name))
                or not _same_form(value, first.arguments.get(name))
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
        given, name = self.repeated.given, type(self.pipe).__name__
        purpose = f"the guidance asks for the null prompt {self.null!r}"
        if given is None:
            raise InputError(
                "the guidance asks for the null prompt, and this network was called without a "
                f"prompt of its pipeline: call the pipeline, or {ASK}"
            )
        if (guided := self._guided(given)) is not None:
            made = self.repeated.first_step(guided, purpose)
            try:
                found = _null_and_prompt(made, first)
            except InputError as error:
                text = f"{purpose}, and with its own guidance on {name} {error}"
                raise InputError(text) from error
            if found is not None:
                return found
            if getattr(made.pipe, "do_classifier_free_guidance", False):
                raise InputError(
                    f"{purpose}, and {name} does not send it at its first step with its own "
                    f"guidance on: {ASK}"
                )
        if PROMPT not in given:
            raise InputError(f"{purpose}, which {name} neither sends nor encodes: {ASK}")
        made = self.repeated.first_step(self._with_null(given), purpose)
        null = made.calls[0]
        if len(null.inputs) != len(first.inputs):
            raise InputError(
                f"{name} gives its network {len(null.inputs)} samples for the null prompt and "
                f"{len(first.inputs)} for the prompt: {ASK}"
            )
        same = null.inputs.shape == first.inputs.shape
        return null, replace(first, inputs=null.inputs if same else first.inputs)

    def _guided(self, given: Mapping[str, Any]) -> dict[str, Any] | None:
        """Arguments of the pipeline's call with its own guidance on; None where it has none."""
        scale = next((name for name in SCALES if name in given), None)
        if scale is None:
            return None
        value = given[scale]
        on = dict(given) | {scale: value if isinstance(value, int | float) and value > 1 else 2.0}
        defaults = _defaults(self.pipe)  # at all steps
        on |= {n: defaults[n] for n in given if INTERVAL.search(n) and n in defaults}
        negative = {n: v for n, v in _negatives(given).items() if PROMPT in n}
        embedded = any(_is_embedding(value) for value in negative.values())
        wanted = self.null or scale == SCALES[0]  # which is on with a negative prompt alone
        if wanted and PROMPT in negative and not embedded and not _say_something(negative):
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
        made = dict(given) | sizes
        if any(_is_embedding(value) for value in negative.values()):  # they may stand beside a text
            return made | {n: None if TEXTS.match(n) else v for n, v in negative.items()}
        made |= {
            n: None for n in given if TEXTS.match(n) or (PROMPT in n and _is_embedding(given[n]))
        }
        null = negative if _say_something(negative) else {PROMPT: self.null}
        return made | {name: _for_each(value, given) for name, value in null.items()}


def _null_and_prompt(made: FirstStep, first: Call) -> tuple[Call, Call] | None:
    """Calls for null prompt and prompt of a step that has both, told by what it makes of them."""
    if made.model_output is None or made.sample is None:
        return None
    measured = StepParts.of(made.calls, made.model_output, made.sample).parts
    if "null" not in measured:
        return None
    null, cond = (_alone(measured[name], first) for name in ("null", "cond"))
    return null, cond


def _alone(part: Part, first: Call) -> Call:
    """A condition as a call of its own."""
    count = len(part.call.inputs) // len(first.inputs)
    if count == 1:
        return part.call
    place = part.rows.start if part.rows.step else part.rows.start // len(first.inputs)
    return split(part.call, first, count, place, bool(part.rows.step))


def _same_form(a: Any, b: Any) -> bool:
    """Whether arguments have one form: a scale that a network is told is another value alone."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same_form(a[name], b[name]) for name in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_same_form, a, b))
    return type(a) is type(b)


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


def _say_something(negative: Mapping[str, Any]) -> bool:
    """Whether negative prompts say something; "" and [""] do not."""
    return any(any(value or ()) for value in negative.values())


def _for_each(value: Any, given: Mapping[str, Any]) -> Any:
    """A text once for each prompt of a call, where it has a list of them; else as it is."""
    count = _prompt_count(given) if isinstance(value, str) else None
    return value if count is None else [value] * count


def _prompt_count(given: Mapping[str, Any]) -> int | None:
    """Number of prompts of a call, None for one that is no list."""
    if isinstance(prompt := given.get(PROMPT), list):
        return len(prompt)
    embeddings = given.get("prompt_embeds")
    return len(embeddings) if isinstance(embeddings, Tensor | list) else None


def _is_embedding(value: Any) -> bool:
    """Whether an argument holds embeddings or masks of prompts."""
    value = value[0] if isinstance(value, list | tuple) and value else value
    return isinstance(value, Tensor)


def null_of(pipe: Any, null: str) -> NullCall | None:
    """Calls for the null prompt; None of pipelines of known families that have none."""
    family = known_family(unwrap_compiled(network_of(pipe)))
    there = family is None or "null" in family.halves or hasattr(pipe, "encode_prompt")
    return NullCall(pipe, null) if there else None
