"""Conditions that the batch of a network call holds, and their order."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffsteer.core.errors import InputError
from diffsteer.hf.architectures import Halves, family_of


@dataclass(frozen=True)
class Conditions:
    """Conditions that a batch holds.

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
    pipe: Any, network: nn.Module, inputs: Tensor, arguments: Mapping[str, Any]
) -> Conditions:
    """Conditions that the batch of a call holds; reads the sample."""
    family = family_of(network)
    halves = family.halves
    if len(halves) == 1:
        return ALONE
    guides = declared = _declared(pipe)
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
    _check_processors(pipe, network)
    return doubled[0] if guides else ALONE


def _check_processors(pipe: Any, network: nn.Module) -> None:
    """Check that no attention processor counts the rows of its pipeline's batch."""
    for module in network.modules():
        kind = type(getattr(module, "processor", None))
        if kind.__module__.startswith("diffusers.pipelines.") or kind.__name__.startswith("PAG"):
            raise InputError(
                f"{type(pipe).__name__} has put {kind.__name__} into its network, which looks at "
                "attention of the rows that the pipeline sends: take the plain pipeline"
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
