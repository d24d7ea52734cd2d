"""Guidance by a condition that has nothing to do with the prompt, where there is no null prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from diffsteer.core.errors import InputError
from diffsteer.core.fields import Finite
from diffsteer.core.noise import Noise, number
from diffsteer.guidance.base import Guidance, extrapolate
from diffsteer.guidance.queries import Branch, GuidanceState, Queries

EMBEDDINGS = ("encoder_hidden_states", "pooled_projections", "text_embeds")
CLASSES = "labels"
"""Names of the tensors that hold the prompt: embeddings, and one-hot classes."""


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


def unrelated(cond: Mapping[str, Any], seeds: Sequence[int]) -> dict[str, Any]:
    """Condition with the prompt of each sample replaced by a random one, drawn by its seed."""
    changed = dict(cond)
    for name, value in cond.items():
        if isinstance(value, Mapping):
            changed[name] = unrelated(value, seeds)
        elif _holds_prompt(name, value):
            drawn = [number(f"{seed} {name}".encode()) for seed in seeds]
            changed[name] = _embeddings(value, drawn) if name != CLASSES else _others(value, drawn)
    return changed


def require_prompt(cond: Mapping[str, Any]) -> None:
    """Refuse a condition in which no prompt is found."""
    if not any(
        _holds_prompt(name, value)
        for part in (cond, *(value for value in cond.values() if isinstance(value, Mapping)))
        for name, value in part.items()
    ):
        raise InputError(
            f"ICG finds no prompt that it could replace in {_names(cond) or 'no condition'}: it "
            f"works on {', '.join(EMBEDDINGS)} and one-hot classes; take PAG or TSG"
        )


def _names(cond: Mapping[Any, Any]) -> str:
    parts = (cond, *(value for value in cond.values() if isinstance(value, Mapping)))
    return ", ".join(name for part in parts for name in part if isinstance(name, str))


def _holds_prompt(name: str, value: Any) -> bool:
    floats = isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 1
    return floats and (name in EMBEDDINGS or (name == CLASSES and value.shape[1] > 1))


def _embeddings(value: Tensor, seeds: Sequence[int]) -> Tensor:
    dims = tuple(range(1, value.ndim))
    mean = value.mean(dim=dims, keepdim=True)
    spread = value.float().std(dim=dims, keepdim=True).to(value)
    return mean + spread * Noise(seeds)(value)


def _others(classes: Tensor, seeds: Sequence[int]) -> Tensor:
    """One-hot rows of other classes than these."""
    count = classes.shape[1] - 1
    rows = [row.roll(1 + seed % count) for row, seed in zip(classes, seeds, strict=True)]
    return torch.stack(rows)
