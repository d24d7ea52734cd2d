"""One call of a pipeline's network: read once, replied to once.

Pipelines call their network in patterns, each with a `CallReader` of its own:

A. `BatchedConditions`: one call holds all conditions in its batch (Stable Diffusion, SD3, PixArt).
B. One call for each condition and step. `SeparateConditions` knows both prompts at the first of
   them, by watching the pipeline encode them (Flux), so that the answer serves the second.
C. `NotedCalls`: a guider announces how many calls a step has (modular pipelines).
"""

from abc import ABC, abstractmethod
from collections import UserDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.core.level import Level, upcast
from diffsteer.guidance.batching import rows_of
from diffsteer.guidance.denoiser import Cond
from diffsteer.hf.architectures import family_of
from diffsteer.hf.batch_conditions import ALONE, Conditions, conditions_in_batch
from diffsteer.hf.network import (
    PipelineNetwork,
    Place,
    bind_arguments,
    unwrap_compiled,
    with_shared,
)
from diffsteer.hf.null_prompt import Prompts
from diffsteer.hf.protocols import SchedulerLike
from diffsteer.hf.timesteps import SamplingStep, StepTracker, level_at, timestep_factor

CondMakers = Mapping[str, Callable[[], Cond]]
"""Conditions by name, each made when it is first asked for."""


class Conds(UserDict[str, Any]):
    """Conditions by name, each made when it is first asked for and kept."""

    @override
    def __getitem__(self, name: str) -> Cond:
        if callable(self.data[name]):
            self.data[name] = self.data[name]()
        made: Cond = self.data[name]
        return made


@dataclass(frozen=True, eq=False)
class NetworkCall:
    """A call of a pipeline's network.

    Attributes:
        reader: Reads this pipeline's calls.
        scheduler: The pipeline's.
        inputs: Argument with the sample, as sent: all conditions of the batch, extra channels.
        arguments: All other arguments by name.
        starts: Whether the scheduler has new timesteps: the first call of a sampling.
        return_dict: Form of the reply.
        pending: Answer to give without evaluating anything; None where this call is evaluated.
    """

    reader: "CallReader"
    scheduler: SchedulerLike
    inputs: Tensor
    arguments: Cond
    starts: bool
    return_dict: bool = True
    pending: Tensor | None = None

    @cached_property
    def network(self) -> PipelineNetwork:
        """The network, with what the scheduler says of it."""
        return self.reader.network(self.scheduler)

    @cached_property
    def step(self) -> SamplingStep:
        """Step of the sampling and timestep."""
        network = self.network
        factor = timestep_factor(network.schedule, network.family.flow_time)
        return self.reader.tracker.read(self.arguments["timestep"], self.scheduler, factor)

    @cached_property
    def level(self) -> Level:
        """Noise level of the sample."""
        return level_at(self.network.schedule, self.step.time)

    @property
    def placed(self) -> bool:
        """Whether it is certain which channels are the noisy sample."""
        return self.reader.place is not None or self.network.place.certain

    @cached_property
    def batch(self) -> Conditions:
        """Conditions that the batch holds, in order."""
        return self.reader.batch(self)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of these conditions."""
        return self.batch.names

    @property
    def sample(self) -> Tensor:
        """Noisy sample of one condition, `(B, *D)`, as the network takes it, in its dtype."""
        return self.network.split(self.inputs[self.rows("cond")])[0]

    @cached_property
    def conds(self) -> Mapping[str, Cond]:
        """Conditions by name: "cond" and, where the pipeline has one, "null"."""
        makers = self.reader.conditions(self).items()
        return Conds({name: partial(self._condition, arguments) for name, arguments in makers})

    def _condition(self, arguments: Callable[[], Cond]) -> Cond:
        return self.network.condition(arguments(), self.inputs[self.rows("cond")])

    def rows(self, name: str) -> slice:
        """Rows of the batch that belong to a condition."""
        return self.batch.rows(name, len(self.inputs))

    def moved(self, shift: Tensor) -> "NetworkCall":
        """This call with another sample under each condition: `shift`, `(B, *D)`, is added."""
        inputs = self.inputs.clone()
        for name in self.names:
            sample = self.network.split(inputs[self.rows(name)])[0]
            sample.copy_(shifted(sample, shift))
        return self.changed(inputs=inputs)

    def changed(self, **changes: Any) -> "NetworkCall":
        """This call with other attributes; a step and a batch are read once."""
        made = replace(self, **changes)
        vars(made).update({k: v for k, v in vars(self).items() if k in ("step", "level", "batch")})
        return made

    def forwarded(self) -> dict[str, Any]:
        """Arguments by name with which this call is passed on."""
        sample = {self.reader.family.sample: self.inputs}
        return {**self.arguments, **sample, "return_dict": self.return_dict}

    def reply(self, out: Tensor) -> Any:
        """Answer the pipeline: `out`, `(B, *D)`, under each condition, as its network would."""
        out = out.to(self.inputs.dtype)
        if self.pending is None:
            self.reader.answered(self, out)
            out = self.batch.repeated(out)
        if not self.return_dict:
            return (out,)
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        return Transformer2DModelOutput(sample=out)


def shifted(sample: Tensor, shift: Tensor) -> Tensor:
    """Sample, `(n B, *D)`, with `shift`, `(B, *D)`, added to each of its n parts, in its dtype."""
    copies = len(sample) // len(shift)
    return (upcast(sample) + shift.repeat(copies, *[1] * (shift.ndim - 1))).to(sample.dtype)


class CallReader(ABC):
    """Reads the calls of one network, in one pattern.

    Args:
        module: The network, maybe compiled.
        forward: Its forward as it was before it was replaced; may be set anew.

    Attributes:
        owner: Class that errors name: the pipeline's, or the network's.
        place: Place of the noisy sample in the input, once the scheduler's own told.
    """

    def __init__(self, module: Any, forward: Callable[..., Any]) -> None:
        self.module, self.forward = module, forward
        self.owner = type(module).__name__
        self.family = family_of(unwrap_compiled(module))
        self.tracker = StepTracker()
        self._network: tuple[Any, PipelineNetwork] | None = None
        self.place: Place | None = None

    def read(
        self, scheduler: SchedulerLike, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> NetworkCall:
        """Read a call of the network."""
        arguments = bind_arguments(self.module, args, kwargs)
        inputs, return_dict = arguments.pop(self.family.sample), arguments.pop("return_dict", True)
        starts, pending = self.tracker.follow(scheduler), self.pending(inputs, arguments)
        return NetworkCall(self, scheduler, inputs, arguments, starts, return_dict, pending)

    def network(self, scheduler: SchedulerLike) -> PipelineNetwork:
        """The network with what a scheduler says of it; read once for each config."""
        config = scheduler.config
        if self._network is None or self._network[0] is not config:
            network = PipelineNetwork.on(scheduler, self.module, self.forward)
            self._network = (config, network)
        network = self._network[1]
        return replace(network, forward=self.forward, place=self.place or network.place)

    def batch(self, call: NetworkCall) -> Conditions:
        """Conditions that the batch of a call holds, in order."""
        return ALONE

    @abstractmethod
    def conditions(self, call: NetworkCall) -> CondMakers:
        """Arguments besides the sample for each condition."""

    def pending(self, inputs: Tensor, arguments: Cond) -> Tensor | None:
        """Answer to a call that is not evaluated, else None."""
        return None

    def answered(self, call: NetworkCall, out: Tensor) -> None:  # noqa: B027
        """Take note of an answer, `(B, *D)`, before it is returned."""


class BatchedConditions(CallReader):
    """Calls whose batch holds all conditions."""

    def __init__(self, pipe: Any, module: Any, forward: Callable[..., Any]) -> None:
        super().__init__(module, forward)
        self._pipe, self.owner = pipe, type(pipe).__name__
        self._batch: tuple[int, Conditions] = (0, ALONE)

    @override
    def batch(self, call: NetworkCall) -> Conditions:
        size = len(call.inputs)
        if call.step.first or size != self._batch[0]:
            network = unwrap_compiled(self.module)
            read = conditions_in_batch(self._pipe, network, call.inputs, call.arguments)
            self._batch = (size, read)
        return self._batch[1]

    @override
    def conditions(self, call: NetworkCall) -> CondMakers:
        size = len(call.inputs)
        arguments = with_shared(unwrap_compiled(self.module), call.arguments, size)
        return {name: partial(rows_of, arguments, call.rows(name), size) for name in call.names}


class SeparateConditions(CallReader):
    """One call for each prompt, both known at the first by `prompts`."""

    def __init__(
        self, pipe: Any, module: Any, forward: Callable[..., Any], prompts: Prompts
    ) -> None:
        super().__init__(module, forward)
        self.owner, self._prompts = type(pipe).__name__, prompts
        self._inputs: Tensor | None = None
        self._answer: Tensor | None = None

    @override
    def pending(self, inputs: Tensor, arguments: Cond) -> Tensor | None:
        if self._prompts.is_null(arguments):
            if self._answer is None or self._inputs is not inputs:
                raise InputError(
                    f"{self.owner} calls its network for the negative prompt with "
                    "another sample than for the prompt: call it with true_cfg_scale=1"
                )
            return self._answer
        self._inputs, self._answer = inputs, None
        return None

    @override
    def conditions(self, call: NetworkCall) -> CondMakers:
        arguments, size = call.arguments, len(call.inputs)
        return {
            "cond": lambda: arguments,
            "null": partial(self._prompts.null_of, arguments, size),
        }

    @override
    def answered(self, call: NetworkCall, out: Tensor) -> None:
        self._answer = out


class NotedCalls(CallReader):
    """Calls for one condition each, of an announced number, of which the last is evaluated."""

    def __init__(self, module: Any, forward: Callable[..., Any]) -> None:
        super().__init__(module, forward)
        self._expected, self._calls = 1, list[Cond]()

    def expect(self, calls: int) -> None:
        """Begin a step of so many calls: of the prompt and, if there are two, the null prompt."""
        self._expected, self._calls = calls, []

    @override
    def pending(self, inputs: Tensor, arguments: Cond) -> Tensor | None:
        self._calls.append(arguments)
        return torch.zeros_like(inputs) if len(self._calls) < self._expected else None

    @override
    def conditions(self, call: NetworkCall) -> CondMakers:
        calls = zip(("cond", "null"), self._calls, strict=False)
        return {name: partial(dict, arguments) for name, arguments in calls}
