"""Guidance by a network whose self-attention is disturbed: one more row of the same pass."""

from dataclasses import dataclass

from torch import Tensor
from typing_extensions import override

from diffsteer.core.fields import Finite, Name, Positive
from diffsteer.guidance.attention_taps import BlurQuery, Identity
from diffsteer.guidance.base import Guidance, extrapolate
from diffsteer.guidance.queries import Branch, GuidanceState, Queries


@dataclass(frozen=True, repr=False)
class PAG(Guidance):
    """Perturbed-attention guidance; scale 0 is off and costs nothing.

    Args:
        scale: x0 gains scale (x0 - x0 with identity attention).
        layer: Self-attention layers to perturb, by a part of their names.
        on: The branch to perturb, "cond" or "null".

    Source: Ahn et al. 2024, eq. 12, https://arxiv.org/abs/2403.17377.
    """

    scale: Finite
    layer: Name = "mid"
    on: Name = "cond"

    @override
    def shift(self, at: GuidanceState) -> Queries[Tensor]:
        disturbed = Branch(self.on, edits=((self.layer, Identity()),))
        return (yield from extrapolate(at, self.scale, Branch(self.on), disturbed))


@dataclass(frozen=True, repr=False)
class SEG(Guidance):
    """Smoothed energy guidance; scale 0 is off and costs nothing.

    Args:
        scale: x0 gains scale (x0 - x0 with blurred queries).
        sigma: Of the Gaussian over the queries, in tokens, > 0; inf is their mean.
        layer: As for PAG.
        on: As for PAG.

    Source: Hong 2024, https://arxiv.org/abs/2408.00760.
    """

    scale: Finite
    sigma: Positive = float("inf")
    layer: Name = "mid"
    on: Name = "cond"

    @override
    def shift(self, at: GuidanceState) -> Queries[Tensor]:
        disturbed = Branch(self.on, edits=((self.layer, BlurQuery(self.sigma)),))
        return (yield from extrapolate(at, self.scale, Branch(self.on), disturbed))
