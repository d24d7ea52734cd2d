"""Guidance by a condition that has nothing to do with the prompt, where there is no null prompt."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.core.fields import Finite
from diffsteer.core.noise import Noise, number
from diffsteer.guidance.base import Guidance
from diffsteer.guidance.queries import Branch, GuidanceState, Queries, extrapolate

EMBEDDINGS = frozenset(
    {
        *("encoder_hidden_states", "encoder_hidden_states_1", "encoder_hidden_states_2"),
        *("encoder_hidden_states_t5", "encoder_hidden_states_llama3", "pooled_projections"),
        *("text_embeds", "pooled_embeds", "cap_feats", "text_bth", "proj_embedding"),
        *("clip_text", "clip_text_pooled"),
    }
)
CLASSES = frozenset({"labels", "class_labels", "y"})
"""Names of the tensors that hold the prompt: embeddings, and classes, one-hot or as numbers."""


@dataclass(frozen=True, repr=False)
class ICG(Guidance):
    """Independent condition guidance: CFG whose null is a random condition; scale 1 is off.

    Embeddings of text become Gaussian noise of the mean and the standard deviation of the sample's
    own, and classes others. Each sample has its own, anew at every level, from its seed.

    Args:
        scale: As for CFG.

    Source: Sadat et al. 2024, https://arxiv.org/abs/2407.02687.
    """

    scale: Finite

    @override
    def shift(self, at: GuidanceState) -> Queries[Tensor]:
        other = Branch(unrelated=at.seeds_for("condition"))
        return (yield from extrapolate(at, self.scale - 1, Branch(), other))


def unrelated(
    cond: Mapping[Any, Any], seeds: Sequence[int], classes: int = 0, within: str = ""
) -> dict[Any, Any]:
    """Condition whose prompts, one a sample, are replaced by random ones, drawn by seeds.

    Args:
        cond: The condition.
        seeds: One for each sample.
        classes: That the network knows by number; 0 where such numbers are no classes.
        within: Name of what holds the condition.
    """
    changed = dict(cond)
    for key, value in cond.items():
        name = _name(key, within)
        if isinstance(value, Mapping):
            changed[key] = unrelated(value, seeds, classes, name)
        elif _holds_prompt(name, value, classes):
            drawn = [number(f"{seed} {name}".encode()) for seed in seeds]
            draw = _random_embeddings if name in EMBEDDINGS else _other_classes
            changed[key] = draw(value, drawn, classes)
    return changed


def require_prompt(cond: Mapping[Any, Any], classes: int = 0) -> None:
    """Refuse a condition in which no prompt is found."""
    leaves = {name: value for name, value in _leaves(cond) if value is not None}
    if any(_holds_prompt(name, value, classes) for name, value in leaves.items()):
        return
    if shared := sorted(EMBEDDINGS & leaves.keys()):
        raise InputError(
            f"ICG replaces the prompt of each sample, and {', '.join(shared)} has no row for each "
            "(it is of several layers or frames): take CFG, PAG or TSG"
        )
    raise InputError(
        f"ICG finds no prompt that it could replace in {', '.join(leaves) or 'no condition'}: "
        f"it works on {', '.join(sorted(EMBEDDINGS))}, and classes that the network counts; "
        "take PAG or TSG"
    )


def _leaves(cond: Mapping[Any, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    """Yield all parts of a condition, tensors or not, with their names."""
    for key, value in cond.items():
        name = _name(key, within)
        if isinstance(value, Mapping):
            yield from _leaves(value, name)
        else:
            yield name, value


def _name(key: Any, within: str) -> str:
    """Name of a part of a condition: that of the list of embeddings which holds it, or its own."""
    return within if within in EMBEDDINGS or not isinstance(key, str) else key


def _holds_prompt(name: str, value: Any, classes: int) -> bool:
    """Whether a part of a condition is a prompt for each sample: its embedding, or its class."""
    if not isinstance(value, Tensor):
        return False
    if not value.is_floating_point():
        return name in CLASSES and classes > 1 and value.ndim == 1
    return value.ndim > 1 and (name in EMBEDDINGS or (name == "labels" and value.shape[1] > 1))


def _random_embeddings(value: Tensor, seeds: Sequence[int], classes: int) -> Tensor:
    """Noise with the mean and the standard deviation of each sample's embedding."""
    dims = tuple(range(1, value.ndim))
    mean = value.mean(dim=dims, keepdim=True)
    spread = value.float().std(dim=dims, keepdim=True).to(value)
    return mean + spread * Noise(seeds)(value)


def _other_classes(value: Tensor, seeds: Sequence[int], classes: int) -> Tensor:
    """Other classes than these, as numbers, or as one-hot rows."""
    if value.ndim == 1:
        draws = value.new_tensor([1 + seed % (classes - 1) for seed in seeds])
        return (value + draws) % classes
    rows = [row.roll(1 + seed % (len(row) - 1)) for row, seed in zip(value, seeds, strict=True)]
    return torch.stack(rows)
