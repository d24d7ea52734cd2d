"""Guidance in the attention that reads the text: normalised attention guidance (NAG)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from diffsteer.core.fields import Finite, Name, PositiveFinite, Share
from diffsteer.guidance.attention_edits import SecondContext
from diffsteer.guidance.base import Guidance
from diffsteer.guidance.queries import Answer, Branch, GuidanceState, Queries


@dataclass(frozen=True, repr=False)
class NAG(Guidance):
    """Normalised attention guidance, a negative prompt without CFG; scale 0 is off.

    Where attention reads the text, its output for the image is Z+ + s (Z+ - Z-), of an L1 norm of
    at most tau |Z+|, blended with Z+ by alpha. Z- is that of the negative text for the same image.

    Args:
        scale: s; the official `nag_scale` is 1 + s.
        tau: Largest norm, in multiples of Z+'s.
        alpha: Share of the combination, in [0, 1]; 0.25 for Flux and Wan, 0.5 for UNets.
        on: The condition that is moved.
        negative: The condition with the negative text.

    Source: Chen et al. 2025, https://arxiv.org/abs/2505.21179.
    """

    scale: Finite
    tau: PositiveFinite = 2.5
    alpha: Share = 0.25
    on: Name = "cond"
    negative: Name = "null"

    @override
    def shift(self, at: GuidanceState) -> Queries[Tensor]:
        if self.scale == 0 or self.alpha == 0:
            return torch.zeros_like(at.x)
        plain, moved = yield Branch(self.on), self._moved
        return moved.x0 - plain.x0

    @override
    def guided(self, at: GuidanceState) -> Queries[tuple[Answer, Tensor]]:
        if self.scale == 0 or self.alpha == 0 or self.on != "cond":
            return (yield from super().guided(at))
        (moved,) = yield (self._moved,)
        return moved, torch.zeros_like(at.x)

    @property
    def _moved(self) -> Branch:
        second = SecondContext(self.scale, self.tau, self.alpha, self.negative)
        return Branch(self.on, second=second)
