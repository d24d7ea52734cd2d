"""Classifier-free guidance (CFG), and two that correct the difference which it scales."""

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from diffsteer.core.fields import Count, Finite, Positive
from diffsteer.guidance.base import Guidance
from diffsteer.guidance.cfg_variants import dot
from diffsteer.guidance.queries import Branch, GuidanceState, Queries, extrapolate


@dataclass(frozen=True, repr=False)
class CFG(Guidance):
    """Classifier-free guidance; scale 1 is off and costs nothing.

    Args:
        scale: x0 becomes null + scale (cond - null).

    Source: Ho & Salimans 2022, eq. 6 with w = scale - 1, https://arxiv.org/abs/2207.12598.
    """

    scale: Finite

    @override
    def shift(self, at: GuidanceState) -> Queries[Tensor]:
        return (yield from extrapolate(at, self.scale - 1, Branch(), Branch(cond="null")))


@dataclass(frozen=True, repr=False)
class APG(Guidance):
    """Adaptive projected guidance: CFG that saturates less; scale 1 is off.

    The difference of the two predictions is shortened to `norm` and its part along the prediction,
    which raises saturation, is weighted by `parallel`.

    Args:
        scale: As for CFG.
        parallel: Share of the parallel part that stays; 1 is CFG.
        norm: Greatest length of the difference of a sample; inf leaves it.
        momentum: The difference gains so many times that of the step before, which has gained so
            itself; -0.5 in the paper, 0 is none.

    Source: Sadat et al. 2024, algorithm 1, https://arxiv.org/abs/2410.02416.
    """

    scale: Finite
    parallel: Finite = 0.0
    norm: Positive = float("inf")
    momentum: Finite = 0.0

    @override
    def shift(self, at: GuidanceState) -> Queries[Tensor]:
        if self.scale == 1:
            return torch.zeros_like(at.x)
        cond, null = yield Branch(), Branch(cond="null")
        difference = cond.x0 - null.x0
        if self.momentum != 0:
            before = at.memory.get("difference", torch.zeros_like(difference))
            difference = difference + self.momentum * before
            at.memory["difference"] = difference
        if self.norm < float("inf"):
            length = dot(difference, difference).sqrt()
            difference = difference * (self.norm / length.clamp(min=self.norm))
        along = _share(difference, cond.x0) * cond.x0
        return (self.scale - 1) * (difference - (1 - self.parallel) * along)


@dataclass(frozen=True, repr=False)
class CFGZero(Guidance):
    """CFG-Zero*: CFG from the best multiple of the null output, for flows; scale 1 is off.

    Args:
        scale: As for CFG.
        zero: Number of first steps in which the network's output is replaced by 0.

    Source: Fan et al. 2025, https://arxiv.org/abs/2503.18886.
    """

    scale: Finite
    zero: Count = 1

    @override
    def shift(self, at: GuidanceState) -> Queries[Tensor]:
        if self.scale == 1:
            return torch.zeros_like(at.x)
        if at.step < self.zero:
            (cond,) = yield (Branch(),)
            guided = torch.zeros_like(cond.out)
        else:
            cond, null = yield Branch(), Branch(cond="null")
            base = _share(cond.out, null.out) * null.out
            guided = base + self.scale * (cond.out - base)
        return at.prediction.x0(at.x, guided, at.level) - cond.x0


def _share(a: Tensor, b: Tensor) -> Tensor:
    """Multiple of `b` that is nearest to `a`; 0 where b is 0."""
    square = dot(b, b)
    return torch.where(square > 0, dot(a, b) / square, 0.0)
