"""Reading of a call of a known family's network, for an answer before its scheduler steps.

Refined noise changes the first call of a sampling, and a loop of one's own waits for the output.
So the pipeline's declarations and the batch have to tell which conditions the batch holds; at a
scheduler's step, `conditions` measures them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffsteer.core.errors import InputError
from diffsteer.core.level import upcast
from diffsteer.core.schedule import Flow
from diffsteer.guidance.batching import rows_of
from diffsteer.guidance.denoiser import Cond
from diffsteer.hf.batched_arguments import with_shared
from diffsteer.hf.families import Halves, family_of
from diffsteer.hf.network import PipelineNetwork, unwrap_compiled
from diffsteer.hf.timesteps import FLOW_TIMESTEPS, SamplingStep, StepTracker


@dataclass(frozen=True)
class Conditions:
    """Order of conditions in a batch.

    Attributes:
        names: In order.
        interleaved: Whether each sample comes under all conditions in turn, not all samples.
    """

    names: Halves
    interleaved: bool = False

    def rows(self, name: str, size: int) -> slice:
        """Rows of a condition in a batch of `size`."""
        place, each = self.names.index(name), size // len(self.names)
        if self.interleaved:
            return slice(place, None, len(self.names))
        return slice(place * each, (place + 1) * each)

    def repeated(self, out: Tensor) -> Tensor:
        """The batch that holds `out` under each condition."""
        if self.interleaved:
            return out.repeat_interleave(len(self.names), dim=0)
        return torch.cat([out] * len(self.names)) if len(self.names) > 1 else out

    def repeats(self, inputs: Tensor) -> bool:
        """Whether a batch holds the same samples under each condition."""
        if len(inputs) % len(self.names):
            return False
        parts = [inputs[self.rows(name, len(inputs))] for name in self.names]
        return all(torch.equal(part, parts[0]) for part in parts[1:])


ALONE = Conditions(("cond",))
"""One condition."""


def conditions_in_batch(
    pipe: Any,
    network: nn.Module,
    inputs: Tensor,
    arguments: Mapping[str, Any],
    in_run: bool = True,
) -> Conditions:
    """Conditions that the batch of a call holds; reads the sample.

    Outside of a run of the pipeline, what it declares is of its last run.
    """
    family = family_of(network)
    halves = family.halves
    if len(halves) == 1:
        return ALONE
    guides = declared = _declared(pipe) if in_run else None
    doubled = [c for c in (Conditions(halves), Conditions(halves, True)) if c.repeats(inputs)]
    if guides is None:
        guides = bool(doubled)
        if doubled and family.null_class is not None:
            labels = arguments["class_labels"][doubled[0].rows("null", len(inputs))]
            guides = bool((labels == family.null_class).all())
    threefold = not guides and declared is None and Conditions(("", "", "")).repeats(inputs)
    if threefold or (guides and not doubled):
        raise InputError(
            f"{type(pipe).__name__} calls its network with {len(inputs)} rows that are not the "
            f"same samples under {' and '.join(halves)}: switch off what else it guides by (an "
            "image, PAG, skipped layers) while it is steered, or take the plain pipeline"
        )
    if counting := counting_processor(network):
        raise InputError(
            f"{type(pipe).__name__} has put {counting} into its network, which looks at attention "
            "of the rows that the pipeline sends: take the plain pipeline"
        )
    return doubled[0] if guides else ALONE


def counting_processor(network: nn.Module) -> str:
    """Class of an attention processor that counts the rows of its pipeline's batch, or nothing."""
    kinds = {type(getattr(module, "processor", None)) for module in network.modules()}
    return next(
        (
            kind.__name__
            for kind in kinds
            if kind.__module__.startswith("diffusers.pipelines.") or kind.__name__.startswith("PAG")
        ),
        "",
    )


def _declared(pipe: Any) -> bool | None:
    """Whether a pipeline says that it guides; None where it says nothing, or always the same."""
    declared: Any = getattr(type(pipe), "do_classifier_free_guidance", None)
    if not isinstance(declared, property):
        return None
    reads: Any = declared.fget
    if not reads.__code__.co_names:
        return None
    guides: bool | None = getattr(pipe, "do_classifier_free_guidance", None)
    return guides


@dataclass(frozen=True, eq=False)
class BatchedCall:
    """A call of a known family's network, with the conditions that its batch holds.

    Attributes:
        pipe: The pipeline.
        network: The network, with what the pipeline's scheduler says of it.
        inputs: Argument with the sample: all conditions of the batch, extra channels.
        arguments: All other arguments by name.
        batch: Conditions that the batch holds, in order.
    """

    pipe: Any
    network: PipelineNetwork
    inputs: Tensor
    arguments: Cond
    batch: Conditions

    @classmethod
    def of(
        cls,
        pipe: Any,
        module: Any,
        forward: Callable[..., Any],
        arguments: Cond,
        in_run: bool = True,
    ) -> "BatchedCall":
        """Read a call.

        Args:
            pipe: The pipeline.
            module: Its network, maybe compiled.
            forward: Evaluates the network.
            arguments: Of the call, by name.
            in_run: Whether the pipeline calls it.
        """
        network = PipelineNetwork.of(pipe, forward, module)
        inputs = arguments[network.family.sample]
        batch = conditions_in_batch(pipe, unwrap_compiled(module), inputs, arguments, in_run)
        return cls(pipe, network, inputs, arguments, batch)

    @property
    def sample(self) -> Tensor:
        """Noisy sample of one condition, `(B, *D)`, as the network takes it, in its dtype."""
        return self.network.split(self.inputs[self.rows("cond")])[0]

    @property
    def conds(self) -> dict[str, Cond]:
        """Conditions by name: "cond" and, where the batch holds it, "null"."""
        size, inputs = len(self.inputs), self.inputs[self.rows("cond")]
        arguments = with_shared(self.network.module, self.arguments, size)
        return {
            name: self.network.condition(rows_of(arguments, self.rows(name), size), inputs)
            for name in self.batch.names
        }

    def rows(self, name: str) -> slice:
        """Rows of the batch that belong to a condition."""
        return self.batch.rows(name, len(self.inputs))

    def step(self, tracker: StepTracker) -> SamplingStep:
        """Step of the sampling for which the network is called."""
        flow = isinstance(self.network.schedule, Flow)
        factor = FLOW_TIMESTEPS / self.network.family.flow_time if flow else 1.0
        return tracker.read(self.arguments["timestep"], self.pipe.scheduler, factor)

    def moved(self, shift: Tensor) -> Cond:
        """Arguments with another sample under each condition: `shift`, `(B, *D)`, is added."""
        inputs = self.inputs.clone()
        for name in self.batch.names:
            sample = self.network.split(inputs[self.rows(name)])[0]
            sample.copy_(shifted(sample, shift))
        return {**self.arguments, self.network.family.sample: inputs}


def shifted(sample: Tensor, shift: Tensor) -> Tensor:
    """Sample, `(n B, *D)`, with `shift`, `(B, *D)`, added to each of its n parts, in its dtype."""
    copies = len(sample) // len(shift)
    return (upcast(sample) + shift.repeat(copies, *[1] * (shift.ndim - 1))).to(sample.dtype)
